"""Read → resize → run → upsample (→ draw → write), overlapped in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.backends import Backend, Prediction
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import BUSY, Frame, Item, Pause, Source, SourceEnd
from fada_deploy.runtime.sources.in_flight import InFlight
from fada_deploy.runtime.sources.streams import LiveSource, read_together
from fada_deploy.runtime.stage_threads import CHANNEL_DEPTH, Stage, chain_stages

# The measured stages in pipeline order; `draw` and `write` are added by the writers.
STAGES = ("decode", "resize", "network", "upsample", "draw", "write")


class Timings:
    """Work time of each stage in seconds, without the time spent waiting.

    Args:
        keep_samples: Also keep every single measurement in `samples`, which grows with the video.

    Attributes:
        seconds: Wall-clock seconds by stage name; work that runs in parallel is added up.
        cpu: CPU seconds of the stage threads. Codecs and backends have further threads.
        samples: Seconds of each measurement by stage name, if requested.
    """

    def __init__(self, *, keep_samples: bool = False) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.samples: dict[str, list[float]] | None = {} if keep_samples else None

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the block to `stage`."""
        wall_start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall = time.perf_counter() - wall_start
            cpu = time.thread_time() - cpu_start
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + wall
                self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu
                if self.samples is not None:
                    self.samples.setdefault(stage, []).append(wall)


@dataclass(eq=False)
class _Batch:
    """Frames that go through the network together, and the items that came between them."""

    items: list[Frame | DataError | SourceEnd] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    prediction: Future[Prediction] | None = None


def read_frames(
    sources: Iterable[Source],
    timings: Timings,
    stop: threading.Event | None = None,
    skipped: Collection[str] = (),
    in_flight: InFlight | None = None,
) -> Generator[Item | SourceEnd, None, None]:
    """Yield the frames of all sources, the errors of frames that failed, and each source's end.

    Streams and cameras are read at the same time, in threads of their own, while `in_flight` has
    room. All other sources are read one after the other, until `stop` is set. A file whose name is
    in `skipped` is not read, or read no further.
    """
    sources = list(sources)
    if live := [source for source in sources if isinstance(source, LiveSource)]:
        yield from read_together(live, in_flight)
        return
    for source in sources:
        if source.name in skipped:
            yield SourceEnd(source)
            continue
        is_interrupted = False
        with closing(source.frames()) as items:
            while True:
                # Waiting for the next image of a watched folder is not work.
                with nullcontext() if source.is_live else timings.measure("decode"):
                    item = next(items, None)
                if item is None or source.name in skipped:
                    break
                # After `next`: a file that was read to its end is not interrupted.
                if stop is not None and stop.is_set() and not source.is_live:
                    is_interrupted = True
                    break
                yield item
        yield SourceEnd(source, is_interrupted)
        if is_interrupted:
            return


def resize_frames(
    items: Iterable[Item | SourceEnd], size_hw: tuple[int, int], batch: int, timings: Timings
) -> Generator[_Batch, None, None]:
    """Yield batches of frames resized to the network's input size.

    A batch may hold frames of several sources. `PAUSE` ends an incomplete batch, so that the frames
    of a live source do not wait.
    """
    pending = _Batch()
    for item in items:
        if isinstance(item, Pause):
            # A source that has ended must not wait for frames of others, which may wait for it.
            if len(pending.items) > (len(pending.images) if item is BUSY else 0):
                yield pending
                pending = _Batch()
            continue
        pending.items.append(item)
        if isinstance(item, Frame):
            with timings.measure("resize"):
                pending.images.append(resize_frame(item.rgb, size_hw))
        # Items that are not frames continue at once if there is no incomplete batch.
        if len(pending.images) in (0, batch):
            yield pending
            pending = _Batch()
    if pending.items:
        yield pending


def run_network(
    batches: Iterable[_Batch], backend: Backend, timings: Timings
) -> Generator[_Batch, None, None]:
    """Submit each batch to the backend, up to `backend.parallel` at the same time.

    The batches are yielded with a future; the next stage waits for its result.
    """

    def predict(images: list[NDArray[np.uint8]]) -> Prediction:
        try:
            with timings.measure("network"):
                return backend.submit(np.stack(images) if len(images) > 1 else images[0][None])
        finally:
            free_requests.release()

    # A batch that waited in the executor's queue could not be dropped by a live source.
    free_requests = threading.Semaphore(backend.parallel)
    with ThreadPoolExecutor(backend.parallel, "fada-network") as executor:
        for batch in batches:
            if batch.images:
                free_requests.acquire()
                batch.prediction = executor.submit(predict, batch.images)
            yield batch


def upsample_predictions(
    batches: Iterable[_Batch], backend: Backend, confidence: bool, timings: Timings
) -> Generator[Result | DataError | SourceEnd, None, None]:
    """Yield a `Result` at each frame's own size; pass on errors and ends of sources."""
    for batch in batches:
        index = 0
        for item in batch.items:
            if not isinstance(item, Frame):
                yield item
                continue
            assert batch.prediction is not None
            prediction = batch.prediction.result()
            with timings.measure("upsample"):
                result = _to_result(item, prediction[index], backend, confidence)
            index += 1
            yield result


def _to_result(frame: Frame, prediction: Prediction, backend: Backend, confidence: bool) -> Result:
    size_hw = (frame.rgb.shape[0], frame.rgb.shape[1])
    labels = prediction.labels(size_hw)[0]
    probabilities = prediction.confidence(size_hw)[0] if confidence else None
    return Result(
        labels=labels,
        frame=frame.rgb,
        space=backend.metadata.label_space,
        captured=frame.captured,
        latency_s=time.monotonic() - frame.captured,
        source=frame.source,
        index=frame.index,
        item=frame.item,
        pts=frame.pts,
        time_base=frame.time_base,
        confidence=probabilities,
        decoded=frame.decoded,
    )


def run_pipeline(
    sources: Sequence[Source],
    backend: Backend,
    *,
    batch: int = 1,
    confidence: bool = False,
    timings: Timings | None = None,
    stop: threading.Event | None = None,
    skipped: Collection[str] = (),
    further_stages: Mapping[str, Stage] | None = None,
) -> Generator[Any, None, None]:
    """Yield a `Result` per frame, a `DataError` per failed frame, and a `SourceEnd` per source.

    Args:
        sources: Open sources of frames.
        backend: The opened model.
        batch: Number of frames per inference call.
        confidence: Also compute the softmax probability of each pixel's class.
        timings: Collects the work time of each stage.
        stop: When it is set, no further frame of a file is read. The frames that were read are
            processed, then the current source ends with an interrupted `SourceEnd`, and later
            sources are left out. Live sources have a method `stop` instead.
        skipped: Names of files to read no further; it may grow while the pipeline runs.
        further_stages: Stages to append, for example drawing and writing; then the items of the
            last of them are yielded.
    """
    clock = timings or Timings()
    size_hw = backend.metadata.input_size_hw
    # One more than the network takes, so that it need not wait for the caller, and enough for the
    # further stages to work at the same time.
    in_flight = InFlight(backend.parallel * batch + 1 + 2 * len(further_stages or {}))
    stages: dict[str, Stage] = {
        "read": lambda items: read_frames(items, clock, stop, skipped, in_flight),
        "resize": lambda items: resize_frames(items, size_hw, batch, clock),
        "run": lambda items: run_network(items, backend, clock),
        "upsample": lambda items: upsample_predictions(items, backend, confidence, clock),
    }
    # Frames that wait between stages get old, so live sources use the shortest channels.
    is_live = any(source.is_live for source in sources)
    depth = 1 if is_live else CHANNEL_DEPTH
    items = chain_stages(sources, {**stages, **(further_stages or {})}, depth=depth)
    with closing(items):
        for item in items:
            yield item
            if is_live:
                in_flight.finished(item)
