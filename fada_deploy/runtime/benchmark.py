"""Measure a model on this machine: the network alone, and the pipeline from video to overlay video.

Both are measured in one process with the same backend and threads, so that their ratio shows the
cost of everything but the network. `fada bench MODEL… --video drive.mp4` prints the results.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.system import memory_mib
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.pipeline import STAGES, Timings
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame, Source
from fada_deploy.runtime.writers.save import SaveOptions, save_results

_MIN_RUNS = 10


@dataclass(frozen=True)
class Percentiles:
    """The 50th, 95th and 99th percentile of a time in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def from_seconds(cls, seconds: list[float]) -> Percentiles:
        """Return the percentiles of times in seconds."""
        return cls(*(round(1e3 * float(v), 3) for v in np.percentile(seconds, [50, 95, 99])))


@dataclass(frozen=True)
class ModelOnlyTiming:
    """Timing of the network alone on a batch that is already in memory.

    `ms` is the time of one batch, `fps` the throughput in frames per second, `cpu_ms` the CPU time
    per frame. `parallel` batches run at the same time.
    """

    batch: int
    parallel: int
    runs: int
    ms: Percentiles
    fps: float
    cpu_ms: float


@dataclass(frozen=True)
class EndToEndTiming:
    """Timing of the pipeline: decode → resize → network → upsample → draw → encode (H.264).

    `ms` is the time per frame of each stage, `cpu_ms` the total CPU time per frame. `stage_cpu_ms`
    is the CPU time of each stage's own threads; "others" are the threads of codecs and backends.
    """

    frames: int
    fps: float
    cpu_ms: float
    ms: dict[str, Percentiles]
    stage_cpu_ms: dict[str, float]


@dataclass(frozen=True)
class BenchmarkResult:
    """The measurements of one model on one backend.

    `warm_up_ms` is the time to open the model, run it once and load the compiled kernels.
    `memory_mib` is the resident memory of the process at the end, None if it is unknown.
    """

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
        """End-to-end throughput divided by model-only throughput."""
        return None if self.end_to_end is None else self.end_to_end.fps / self.model_only.fps

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document."""
        return {**asdict(self), "ratio": self.ratio}


def benchmark(
    model: Path,
    *,
    backend: str,
    device: str | int = "auto",
    batch: int | None = None,
    parallel: int = 1,
    video: Source | None = None,
    frames: int | None = None,
    seconds: float = 3.0,
) -> BenchmarkResult:
    """Measure a model file on a backend.

    Args:
        model: An exported file.
        backend: Name of the backend.
        device: "auto", "cpu", or a GPU as "cuda", "cuda:N" or N.
        batch: Frames per batch [the file's fixed batch, else 1].
        parallel: Batches that run at the same time.
        video: A video for the end-to-end measurement [none is made].
        frames: Number of frames of the end-to-end measurement [all].
        seconds: Duration of the model-only measurement.

    Raises:
        DataError: The video has no frames.
        FadaError: The model cannot be opened; see `Segmenter`.
    """
    start = time.perf_counter()
    with Segmenter(
        model, backend=backend, device=device, batch=batch, parallel=parallel
    ) as segmenter:
        height, width = segmenter.metadata.input_size_hw
        inputs = _input_batch(video, segmenter)
        segmenter.backend.submit(inputs)
        kernel_loader.wait()
        warm_up = time.perf_counter() - start
        model_only = _time_model_only(segmenter, inputs, seconds)
        end_to_end = None if video is None else _time_end_to_end(segmenter, video, frames)
        return BenchmarkResult(
            model=str(model),
            backend=segmenter.backend.name,
            device=segmenter.backend.device,
            precision=segmenter.metadata.precision,
            input=f"{width}x{height}",
            warm_up_ms=round(1e3 * warm_up, 1),
            model_only=model_only,
            end_to_end=end_to_end,
            memory_mib=memory_mib(),
        )


def _input_batch(video: Source | None, segmenter: Segmenter) -> NDArray[np.uint8]:
    """Return one batch of network inputs: the first frames of the video, or gray images."""
    height, width = segmenter.metadata.input_size_hw
    images: list[NDArray[np.uint8]] = []
    if video is not None:
        with closing(video.frames()) as items:
            for item in items:
                if isinstance(item, Frame):
                    images.append(resize_frame(item.rgb, (height, width)))
                if len(images) == segmenter.batch:
                    break
        if not images:
            raise DataError(f"{video.name}: contains no frames")
    while len(images) < segmenter.batch:
        images.append(images[-1] if images else np.full((height, width, 3), 128, np.uint8))
    return np.stack(images)


def _time_model_only(
    segmenter: Segmenter, inputs: NDArray[np.uint8], seconds: float
) -> ModelOnlyTiming:
    parallel = segmenter.backend.parallel
    times: list[float] = []

    def run(_: int) -> None:
        start = time.perf_counter()
        segmenter.backend.submit(inputs)
        times.append(time.perf_counter() - start)

    with ThreadPoolExecutor(parallel) as executor:
        # A short trial determines how many runs fit into the given time.
        list(executor.map(run, range(3 * parallel)))
        fastest = min(times)
        times.clear()
        runs = max(_MIN_RUNS, round(seconds / fastest)) * parallel
        cpu_start, start = time.process_time(), time.perf_counter()
        list(executor.map(run, range(runs)))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    frames = runs * len(inputs)
    return ModelOnlyTiming(
        batch=len(inputs),
        parallel=parallel,
        runs=runs,
        ms=Percentiles.from_seconds(times),
        fps=round(frames / wall, 2),
        cpu_ms=round(1e3 * cpu / frames, 2),
    )


def _time_end_to_end(segmenter: Segmenter, video: Source, max_frames: int | None) -> EndToEndTiming:
    timings, frames = Timings(keep_samples=True), 0
    total = min((n for n in (max_frames, video.count()) if n is not None), default=None)
    with TemporaryDirectory() as folder, progress_bar(total, "end-to-end", unit="frame") as bar:
        cpu_start, start = time.process_time(), time.perf_counter()
        options = SaveOptions(Path(folder))
        with closing(save_results(segmenter, [video], options, timings=timings)) as items:
            for item in items:
                if isinstance(item, Result):
                    frames += 1
                    bar.update()
                if frames == max_frames:
                    break
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    samples = timings.samples or {}
    # The network stage is measured per batch, the other stages per frame.
    divisors = dict.fromkeys(STAGES, 1) | {"network": segmenter.batch}
    stage_ms = {
        name: Percentiles.from_seconds([t / divisors[name] for t in samples[name]])
        for name in STAGES
        if samples.get(name)
    }
    stage_cpu_ms = {
        name: round(1e3 * timings.cpu[name] / frames, 2) for name in STAGES if name in timings.cpu
    }
    cpu_ms = round(1e3 * cpu / frames, 2)
    others = round(cpu_ms - sum(stage_cpu_ms.values()), 2)
    return EndToEndTiming(
        frames=frames,
        fps=round(frames / wall, 2),
        cpu_ms=cpu_ms,
        ms=stage_ms,
        stage_cpu_ms=stage_cpu_ms | {"others": others},
    )
