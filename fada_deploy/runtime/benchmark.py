"""How fast a model runs here: the bare network, and the whole road from a film to its overlay.

`fada bench MODEL… --source drive.mp4`. Both are measured in this process with the same engine and threads, so
that their ratio says what the road costs beside the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fada_deploy.common.errors import DataError
from fada_deploy.common.system import memory_mib
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.pipeline import STAGES, Timings
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame, Source
from fada_deploy.runtime.writers.save import SaveOptions, save_results

_LEAST_RUNS = 10


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds that half, 95 % and 99 % of the runs stay below."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Percentiles:
        """Return the percentiles of measured seconds, in ms."""
        return cls(*(round(1e3 * float(v), 3) for v in np.percentile(seconds, [50, 95, 99])))


@dataclass(frozen=True)
class ModelOnlyTiming:
    """The network alone on a batch that lies ready: times of a batch, frames a second, CPU time of a frame.

    `parallel` batches are under way at a time.
    """

    batch: int
    parallel: int
    runs: int
    ms: Percentiles
    fps: float
    cpu_ms: float


@dataclass(frozen=True)
class EndToEndTiming:
    """The whole road: decode → resize → network → upsample → draw → H.264; `ms` of each stage and frame.

    `cpu_ms` is all CPU time of a frame; `stage_cpu_ms` what the stages' own threads have of it, and under "others"
    what is left: the threads of codecs and engines.
    """

    frames: int
    fps: float
    cpu_ms: float
    ms: dict[str, Percentiles]
    stage_cpu_ms: dict[str, float]


@dataclass(frozen=True)
class BenchmarkResult:
    """One model on one backend. `warm_up_ms`: until it is opened, run once, and the kernels compiled."""

    model: str
    backend: str
    device: str
    precision: str
    input: str
    warm_up_ms: float
    model_only: ModelOnlyTiming
    end_to_end: EndToEndTiming | None
    memory_mib: int | None

    @property
    def ratio(self) -> float | None:
        """The road's frames a second as a share of the bare network's."""
        return None if self.end_to_end is None else self.end_to_end.fps / self.model_only.fps

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document."""
        return {**asdict(self), "ratio": self.ratio}


def measure(
    model: Path,
    *,
    backend: str,
    device: str = "auto",
    batch: int | None = None,
    parallel: int = 1,
    source: Source | None = None,
    frames: int | None = None,
    seconds: float = 3.0,
    progress: Callable[[int], None] = lambda n: None,
) -> BenchmarkResult:
    """Measure a model file; `seconds` are spent on the bare network, `frames` of `source` on the road (None: all).

    Raise the errors of `Segmenter`, and `DataError` for a source without frames.
    """
    start = time.perf_counter()
    with Segmenter(
        model, backend=backend, device=device, batch=batch, parallel=parallel
    ) as segmenter:
        height, width = segmenter.metadata.input_size_hw
        ready = _pictures(source, segmenter)
        segmenter.backend.submit(ready)
        kernel_loader.wait()
        warm_up = time.perf_counter() - start
        bare = _model_only(segmenter, ready, seconds)
        road = None if source is None else _end_to_end(segmenter, source, frames, progress)
        return BenchmarkResult(
            str(model),
            segmenter.backend.name,
            segmenter.backend.device,
            segmenter.metadata.precision,
            f"{width}x{height}",
            round(1e3 * warm_up, 1),
            bare,
            road,
            memory_mib(),
        )


def _pictures(source: Source | None, segmenter: Segmenter) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a batch for the bare network: the film's first frames, or a gray one where there is no film."""
    height, width = segmenter.metadata.input_size_hw
    pictures = []
    if source is not None:
        with closing(source.frames()) as items:
            for item in items:
                if isinstance(item, Frame):
                    pictures.append(resize_frame(item.rgb, (height, width)))
                if len(pictures) == segmenter.batch:
                    break
        if not pictures:
            raise DataError(f"{source.name}: holds no frame")
    while len(pictures) < segmenter.batch:
        pictures.append(pictures[-1] if pictures else np.full((height, width, 3), 128, np.uint8))
    return np.stack(pictures)


def _model_only(
    segmenter: Segmenter, ready: np.ndarray[Any, np.dtype[np.uint8]], seconds: float
) -> ModelOnlyTiming:
    parallel = segmenter.backend.parallel
    times: list[float] = []

    def one(_: int) -> None:
        began = time.perf_counter()
        segmenter.backend.submit(ready)
        times.append(time.perf_counter() - began)

    with ThreadPoolExecutor(parallel) as requests:
        list(requests.map(one, range(3 * parallel)))
        each = min(times)
        times.clear()
        runs = max(_LEAST_RUNS, round(seconds / each)) * parallel
        cpu, start = time.process_time(), time.perf_counter()
        list(requests.map(one, range(runs)))
        spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    done = runs * len(ready)
    fps, cpu_ms = round(done / spent, 2), round(1e3 * cpu / done, 2)
    return ModelOnlyTiming(len(ready), parallel, runs, Percentiles.of(times), fps, cpu_ms)


def _end_to_end(
    segmenter: Segmenter, source: Source, frames: int | None, progress: Callable[[int], None]
) -> EndToEndTiming:
    timings, done = Timings(keep_samples=True), 0
    with TemporaryDirectory() as folder:
        cpu, start = time.process_time(), time.perf_counter()
        with closing(
            save_results(segmenter, [source], SaveOptions(Path(folder)), timings=timings)
        ) as items:
            for item in items:
                if isinstance(item, Result):
                    done += 1
                    progress(1)
                if frames is not None and done == frames:
                    break
        spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    samples = timings.samples or {}
    # The network's time is a batch's, the others' are a frame's.
    per_frame = {
        name: [t / segmenter.batch for t in samples[name]] if name == "network" else samples[name]
        for name in STAGES
        if samples.get(name)
    }
    stages = {name: Percentiles.of(times) for name, times in per_frame.items()}
    own = {name: round(1e3 * timings.cpu[name] / done, 2) for name in STAGES if name in timings.cpu}
    total = round(1e3 * cpu / done, 2)
    return EndToEndTiming(
        done,
        round(done / spent, 2),
        total,
        stages,
        own | {"others": round(total - sum(own.values()), 2)},
    )
