"""Export trained networks to ONNX, convert their precision, and build TensorRT engines.

The package is also the function `fada_deploy.export`: `fada_deploy.export(run)` calls
`fada_deploy.api.export`. Importing it loads neither torch nor the `onnx` package.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fada_deploy.export.plan import ExportResult


class _CallablePackage(ModuleType):
    """Python binds an imported subpackage to its name, so a function of that name needs this."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (__name__,)

    def __call__(self, source: str | Path, **options: Any) -> ExportResult:
        """Export a run to ONNX files and engines, as `fada export` does.

        Each file is compared with the trained network on real frames before it is saved under its
        final name.

        Args:
            source: Folder of a run or of a stage, a weights file, or an ONNX file of an earlier
                export.
            options: The fields of `fada_deploy.export.options.ExportOptions`, for example
                `precisions=("fp32", "int8")`.

        Returns:
            The paths of the files and how each backend compared.

        Raises:
            ToleranceError: The outputs of the fp32 file differ too much from those of the network.
            RefusedFilesError: Those of other files do. It is a `ToleranceError` whose `result`
                describes the files that were written.
            ModelError: `source` does not exist or cannot be exported.
            DataError: There are no frames to verify or calibrate with.
            UsageError: The options do not fit together.
            MissingExtraError: A package is not installed.
            OSError: A folder cannot be created.
        """
        # By name, because `fada_deploy.api` imports this package.
        result: ExportResult = importlib.import_module("fada_deploy.api").export(source, **options)
        return result


_package = sys.modules[__name__]
_package.__class__ = _CallablePackage
# `help(fada_deploy.export)` shows the documentation of the function first.
_package.__doc__ = f"{inspect.getdoc(_CallablePackage.__call__)}\n\n{__doc__}"
