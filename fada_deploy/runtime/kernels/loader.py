"""Load the numba kernels in a background thread, so that no frame waits for the compiler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

# Importing numba takes longer than labeling a few images with NumPy; it pays off for videos.
_FRAMES_BEFORE_LOADING = 3


@dataclass(frozen=True)
class Kernels:
    """The functions of `upsample_compiled`, `resize_compiled` and `draw_compiled`."""

    write_labels: Callable[..., None]
    average: Callable[..., None]
    blend: Callable[..., None]
    count: Callable[..., None]


class KernelLoader:
    """Loads the compiled kernels once; `ready` is None until then and where numba is missing.

    The resize step calls `get` once per frame, which starts the loading after a few frames. Other
    callers only read `ready`.
    """

    def __init__(self) -> None:
        self.ready: Kernels | None = None
        self._lock = threading.Lock()
        self._calls = 0
        self._thread: threading.Thread | None = None

    def get(self) -> Kernels | None:
        """Return the kernels if they are ready; start loading them after the first few calls."""
        if self.ready is None and self._thread is None:
            with self._lock:
                self._calls += 1
                if self._calls > _FRAMES_BEFORE_LOADING and self._thread is None:
                    self._start()
        return self.ready

    def wait(self) -> bool:
        """Load the kernels now and return whether they are available."""
        with self._lock:
            if self._thread is None:
                self._start()
            thread = self._thread
        assert thread is not None
        thread.join()
        return self.ready is not None

    def _start(self) -> None:
        # Not a daemon thread: a process that exits while LLVM compiles would crash.
        self._thread = threading.Thread(target=self._load, name="kernel-loader")
        self._thread.start()

    def _load(self) -> None:
        if find_spec("numba") is None:
            return
        try:
            from fada_deploy.runtime.kernels import (
                draw_compiled,
                resize_compiled,
                upsample_compiled,
            )

            self.ready = Kernels(
                upsample_compiled.write_labels,
                resize_compiled.average,
                draw_compiled.blend,
                draw_compiled.count,
            )
        except Exception:
            # Compiling can fail for many reasons (read-only cache, unsupported LLVM). The NumPy
            # implementations give the same results.
            return


kernel_loader = KernelLoader()
