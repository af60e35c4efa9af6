"""The compiled upsampling, when it is there: loaded in the background, so that no frame waits for a compiler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

# One picture is done before numba is imported; it pays for films.
_FRAMES_BEFORE = 3


class Kernel:
    """`kernel()` is `upsample_kernel.write_labels` once it is ready, None before and where numba is missing."""

    def __init__(self) -> None:
        self._write: Callable[..., None] | None = None
        self._lock = threading.Lock()
        self._asked = 0
        self._thread: threading.Thread | None = None

    def __call__(self) -> Callable[..., None] | None:
        if self._write is None and self._thread is None:
            with self._lock:
                self._asked += 1
                if self._asked > _FRAMES_BEFORE and self._thread is None:
                    # No daemon: a process that ends inside a compiler crashes.
                    self._thread = threading.Thread(target=self._load, name="kernel")
                    self._thread.start()
        return self._write

    def wait(self) -> bool:
        """Load it now; return whether it is there."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, name="kernel")
                self._thread.start()
        self._thread.join()
        return self._write is not None

    def _load(self) -> None:
        if find_spec("numba") is None:
            return
        try:
            from fada_deploy.runtime import upsample_kernel

            module: Any = upsample_kernel
            self._write = module.write_labels
        except Exception:
            # Whatever keeps it from compiling (no place for its cache, another LLVM), NumPy goes on.
            return


kernel = Kernel()
