"""Export trained networks to ONNX, convert their precision, and build TensorRT engines.

The package is also the function `fada_deploy.export`: `fada_deploy.export(run)` calls
`fada_deploy.api.export`. Importing it loads neither torch nor the `onnx` package.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Python binds an imported subpackage to its name, so a function of that name needs this."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By name, because `fada_deploy.api` imports this package.
        return importlib.import_module("fada_deploy.api").export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
