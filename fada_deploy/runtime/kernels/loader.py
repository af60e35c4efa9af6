"""What is compiled, when it is there: loaded in the background, so that no frame waits for a compiler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

# One picture is done before numba is imported; it pays for films.
_FRAMES_BEFORE = 3


@dataclass(frozen=True)
class Kernels:
    """The functions of `upsample_kernel`, `area_kernel` and `draw_kernel`."""

    write_labels: Callable[..., None]
    average: Callable[..., None]
    blend: Callable[..., None]
    count: Callable[..., None]


class Compiled:
    """`compiled()` is the kernels once they are ready, None before and where numba is missing.

    It is asked once a frame by the resize, after some of which the loading begins; others look at `ready`.
    """

    def __init__(self) -> None:
        self.ready: Kernels | None = None
        self._lock = threading.Lock()
        self._asked = 0
        self._thread: threading.Thread | None = None

    def __call__(self) -> Kernels | None:
        if self.ready is None and self._thread is None:
            with self._lock:
                self._asked += 1
                if self._asked > _FRAMES_BEFORE and self._thread is None:
                    # No daemon: a process that ends inside a compiler crashes.
                    self._thread = threading.Thread(target=self._load, name="kernel")
                    self._thread.start()
        return self.ready

    def wait(self) -> bool:
        """Load them now; return whether they are there."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, name="kernel")
                self._thread.start()
        self._thread.join()
        return self.ready is not None

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
            # Whatever keeps it from compiling (no place for its cache, another LLVM), NumPy goes on.
            return


compiled = Compiled()
