"""Run an exported segmenter on pictures and video; needs NumPy, OpenCV, PyAV and one engine.

```python
from fada_deploy.runtime import Segmenter
```

Engines and decoders are imported when something is opened.
"""

from fada_deploy.runtime.backends import BACKENDS, open_backend
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter

__all__ = ["BACKENDS", "Result", "Segmenter", "open_backend"]
