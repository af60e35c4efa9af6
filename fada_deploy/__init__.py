"""Adapt driving-scene segmentation networks to your own video, export them, and run them.

```python
import fada_deploy as fada

run = fada.train(src="gta5", tgt="drives/").run
model = fada.export(run).model
with fada.Segmenter(model) as segmenter:
    for result in segmenter.stream("drive.mp4"):
        print(result.time_s, result.fractions["road"])
```

Names are imported when they are first used: `import fada_deploy` itself loads neither torch nor
OpenCV nor an inference backend.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from fada_deploy._version import __version__ as __version__

# Silent unless the program configures logging; otherwise Python prints warnings to stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from fada_deploy.api import adapt as adapt
    from fada_deploy.api import evaluate as evaluate
    from fada_deploy.api import export as export
    from fada_deploy.api import train as train
    from fada_deploy.common.errors import DataError as DataError
    from fada_deploy.common.errors import DeviceError as DeviceError
    from fada_deploy.common.errors import FadaError as FadaError
    from fada_deploy.common.errors import InterruptedRunError as InterruptedRunError
    from fada_deploy.common.errors import MissingExtraError as MissingExtraError
    from fada_deploy.common.errors import ModelError as ModelError
    from fada_deploy.common.errors import ToleranceError as ToleranceError
    from fada_deploy.common.errors import UsageError as UsageError
    from fada_deploy.common.label_space import LabelClass as LabelClass
    from fada_deploy.common.label_space import LabelSpace as LabelSpace
    from fada_deploy.runtime.drift import DriftMonitor as DriftMonitor
    from fada_deploy.runtime.overlay.renderer import OverlayRenderer as OverlayRenderer
    from fada_deploy.runtime.overlay.style import OverlayStyle as OverlayStyle
    from fada_deploy.runtime.result import Result as Result
    from fada_deploy.runtime.segmenter import Segmenter as Segmenter
    from fada_deploy.runtime.sources.open import open_sources as open_sources
    from fada_deploy.runtime.sources.stream_reader import LiveOptions as LiveOptions
    from fada_deploy.runtime.sources.streams import LiveSource as LiveSource
    from fada_deploy.runtime.writers.video_writer import VideoWriter as VideoWriter

# Public name → the module that defines it.
_EXPORTS = {
    "DataError": "common.errors",
    "DeviceError": "common.errors",
    "DriftMonitor": "runtime.drift",
    "FadaError": "common.errors",
    "InterruptedRunError": "common.errors",
    "LabelClass": "common.label_space",
    "LabelSpace": "common.label_space",
    "LiveOptions": "runtime.sources.stream_reader",
    "LiveSource": "runtime.sources.streams",
    "MissingExtraError": "common.errors",
    "ModelError": "common.errors",
    "OverlayRenderer": "runtime.overlay.renderer",
    "OverlayStyle": "runtime.overlay.style",
    "Result": "runtime.result",
    "Segmenter": "runtime.segmenter",
    "ToleranceError": "common.errors",
    "UsageError": "common.errors",
    "VideoWriter": "runtime.writers.video_writer",
    "adapt": "api",
    "evaluate": "api",
    "open_sources": "runtime.sources.open",
    "train": "api",
}

# `export` is both a subpackage and a function: the subpackage is callable (export/__init__.py).
__all__ = sorted([*_EXPORTS, "__version__", "export"])


def __getattr__(name: str) -> Any:
    if name == "export":
        return importlib.import_module("fada_deploy.export")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
