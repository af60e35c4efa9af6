"""Fine-grained adversarial domain adaptation for driving scenes, from training to the car.

`fada_deploy.training` adapts, `fada_deploy.export` makes files, `fada_deploy.runtime` runs them.
Importing this package imports none of them.
"""

__version__ = "0.1.0"
