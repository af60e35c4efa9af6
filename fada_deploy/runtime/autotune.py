"""Measure the other installed backends while a video is processed, and remember the fastest.

A few batches of the video also run through the other backends, whose predictions are discarded.
They are opened in the background after the first frames, so that the first results are not
delayed. `--backend auto` uses the fastest backend from the next run on; the current run stays with
the backend it started with.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from fada_deploy.common.errors import FadaError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backend_selection import backends_of, runnable_for
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS, Backend, Prediction
from fada_deploy.runtime.backends.base import Frames
from fada_deploy.runtime.backends.preference import fastest_backend, remember_fastest

# Batches before the other backends are opened, to warm each up, and to measure each.
_BATCHES_BEFORE, _WARM_UP_BATCHES, _MEASURED_BATCHES = 5, 2, 8
# With fewer batches a video may end before the other backends are open.
MIN_BATCHES = 100


def backends_to_measure(path: Path, backend: Backend) -> list[str]:
    """Return the backends to compare with an opened one.

    These are the installed backends that were verified for the file at its export. The list is
    empty on a GPU, and if the fastest backend is already known.
    """
    if (
        backend.device != "cpu"
        or backends_of(path) != ONNX_BACKENDS
        or fastest_backend(backend.metadata) is not None
    ):
        return []
    verified = backend.metadata.verification or {}
    runnable = runnable_for(backend.metadata)
    return [name for name in runnable if name != backend.name and name in verified]


class Autotuner:
    """A backend that measures other backends beside itself; all predictions are its own.

    Attributes:
        seconds: Median time of a batch by backend; empty until all are measured.
        fastest: Name of the fastest backend; "" until all are measured.
        is_remembered: True if the next run will use the fastest backend.
    """

    def __init__(self, path: Path, backend: Backend, others: list[str]) -> None:
        self.name, self.device, self.parallel = backend.name, backend.device, backend.parallel
        self.metadata: ModelMetadata = backend.metadata
        self.seconds: dict[str, float] = {}
        self.fastest = ""
        self.is_remembered = False
        self._path, self._backend, self._names = path, backend, others
        self._lock = threading.Lock()
        self._batches = 0
        self._opener: threading.Thread | None = None
        self._others: list[Backend] = []
        self._is_ready = self._is_closed = False
        self._times: dict[str, list[float]] = {}

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        start = time.perf_counter()
        prediction = self._backend.submit(frames_bhwc)
        elapsed = time.perf_counter() - start
        if self._names:
            self._measure(frames_bhwc, elapsed)
        return prediction

    def _measure(self, frames_bhwc: Frames, own_seconds: float) -> None:
        with self._lock:
            self._batches += 1
            if self._batches == _BATCHES_BEFORE:
                self._opener = threading.Thread(
                    target=self._open_others, name="fada-autotune", daemon=True
                )
                self._opener.start()
            if not self._is_ready or self._is_closed:
                return
            self._times.setdefault(self.name, []).append(own_seconds)
        for other in self._others:
            start = time.perf_counter()
            try:
                other.submit(frames_bhwc)
            except FadaError:
                # A backend that fails is not a candidate, and no reason to stop the run.
                self._stop()
                return
            elapsed = time.perf_counter() - start
            with self._lock:
                self._times.setdefault(other.name, []).append(elapsed)
        if min(map(len, self._times.values())) >= _WARM_UP_BATCHES + _MEASURED_BATCHES:
            self._decide()

    def _open_others(self) -> None:
        for name in self._names:
            try:
                other = BACKENDS[name](self._path, device="cpu", parallel=self.parallel)
            except FadaError:
                continue
            self._others.append(other)
        self._is_ready = bool(self._others)

    def _decide(self) -> None:
        with self._lock:
            if self.fastest:
                return
            self.seconds = {
                name: median(times[_WARM_UP_BATCHES:]) for name, times in self._times.items()
            }
            self.fastest = min(self.seconds, key=lambda name: self.seconds[name])
        # A cache that cannot be written must not end the run.
        with suppress(OSError):
            remember_fastest(self.metadata, self.fastest)
            self.is_remembered = True
        self._stop()

    def _stop(self) -> None:
        self._names = []
        # Another thread may be running one of them, which then raises `ModelError`.
        for other in self._others:
            other.close()

    def close(self) -> None:
        """Release all backends."""
        self._is_closed = True
        if self._opener is not None:
            self._opener.join()
        for other in self._others:
            other.close()
        self._backend.close()
