"""Run an exported segmenter on pictures and video; needs NumPy, OpenCV, PyAV and one engine.

```python
from fada_deploy.runtime import Segmenter
```

Engines and decoders are imported when something is opened.
"""

from fada_deploy.common.system import throughput_parallelism
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import BACKENDS
from fada_deploy.runtime.drift import Drift, DriftMonitor
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
from fada_deploy.runtime.sources.streams import LiveOptions, LiveSource

__all__ = [
    "BACKENDS",
    "Drift",
    "DriftMonitor",
    "FolderWatcher",
    "LiveOptions",
    "LiveSource",
    "OverlayRenderer",
    "OverlayStyle",
    "Result",
    "Segmenter",
    "open_backend",
    "throughput_parallelism",
]
