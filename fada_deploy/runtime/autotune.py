"""The engines for a file raced against each other on the first film it labels, so that nobody has to measure them.

A few batches of the film go through the other engines too, whose answers are thrown away. They are opened in the
background once some frames are done, so that the first ones come as soon as ever. The fastest is what
`--backend auto` takes from the next run on; this run stays with the engine it began with.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from fada_deploy.common.errors import FadaError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backend_selection import backends_of, runnable_onnx
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS, Backend, Prediction
from fada_deploy.runtime.backends.base import Frames
from fada_deploy.runtime.backends.preference import fastest_backend, remember_fastest

# BatchLoader before the others are opened, warm up, and are measured.
_BEFORE, _WARM_UP, _MEASURED = 5, 2, 8
# Fewer batches may be over before the others are open, which would be for nothing, and again the next time.
MIN_BATCHES = 100


def backends_to_measure(path: Path, backend: Backend) -> list[str]:
    """Return the engines worth racing against an opened one: proven for the file, on the CPU, not measured yet."""
    if (
        backend.device != "cpu"
        or backends_of(path) != ONNX_BACKENDS
        or fastest_backend(backend.metadata) is not None
    ):
        return []
    proven = backend.metadata.verification or {}
    able = runnable_onnx(backend.metadata.precision)
    return [name for name in able if name != backend.name and name in proven]


class Autotuner:
    """The backend `own` with others measured beside it; answers are `own`'s alone.

    `seconds`: the median of a batch by engine, and `fastest`, both empty until the race is over; `kept`: the next
    run will know it.
    """

    def __init__(self, path: Path, own: Backend, rivals: list[str]) -> None:
        self.name, self.device, self.parallel = own.name, own.device, own.parallel
        self.metadata: ModelMetadata = own.metadata
        self.seconds: dict[str, float] = {}
        self.fastest = ""
        self.kept = False
        self._path, self._own, self._names = path, own, rivals
        self._lock = threading.Lock()
        self._batches = 0
        self._opening: threading.Thread | None = None
        self._rivals: list[Backend] = []
        self._ready = self._closed = False
        self._times: dict[str, list[float]] = {}

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        start = time.perf_counter()
        prediction = self._own.submit(frames_bhwc)
        spent = time.perf_counter() - start
        if self._names:
            self._race(frames_bhwc, spent)
        return prediction

    def _race(self, frames_bhwc: Frames, spent: float) -> None:
        with self._lock:
            self._batches += 1
            if self._batches == _BEFORE:
                self._opening = threading.Thread(target=self._open, name="fada-race", daemon=True)
                self._opening.start()
            if not self._ready or self._closed:
                return
            self._times.setdefault(self.name, []).append(spent)
        for rival in self._rivals:
            start = time.perf_counter()
            try:
                rival.submit(frames_bhwc)
            except FadaError:
                # An engine that cannot is no rival, and no reason to stop.
                self._end()
                return
            spent = time.perf_counter() - start
            with self._lock:
                self._times.setdefault(rival.name, []).append(spent)
        if min(map(len, self._times.values())) >= _WARM_UP + _MEASURED:
            self._decide()

    def _open(self) -> None:
        for name in self._names:
            try:
                rival = BACKENDS[name](self._path, device="cpu", parallel=self.parallel)
            except FadaError:
                continue
            self._rivals.append(rival)
        self._ready = bool(self._rivals)

    def _decide(self) -> None:
        with self._lock:
            if self.fastest:
                return
            self.seconds = {name: median(times[_WARM_UP:]) for name, times in self._times.items()}
            self.fastest = min(self.seconds, key=lambda name: self.seconds[name])
        # A cache that cannot be written is no reason to lose the film.
        with suppress(OSError):
            remember_fastest(self.metadata, self.fastest)
            self.kept = True
        self._end()

    def _end(self) -> None:
        self._names = []

    def close(self) -> None:
        """Let all engines go."""
        self._closed = True
        if self._opening is not None:
            self._opening.join()
        for rival in self._rivals:
            rival.close()
        self._own.close()
