"""Read → resize → run → upsample (→ draw → write), overlapped in threads, in order, in flat memory.

A stage is a generator function from an iterator to an iterator. `chain` gives each its own thread and
puts a bounded channel behind it. That is all there is: order is kept because every stage takes and
gives in order, memory is flat because a full channel holds its writer back, and a failure travels down
the channels, behind the results that came before it, until it reaches the caller.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
from fada_deploy.runtime.sources.base import Frame, Item, Pause, Source, SourceEnd
from fada_deploy.runtime.sources.streams import LiveSource, read_together

Stage = Callable[[Iterator[Any]], Generator[Any, None, None]]
# What is timed, in the order of the road; the last two are the sinks'.
STAGES = ("decode", "resize", "network", "upsample", "draw", "write")
# Items that wait between two stages. Two hide the jitter of their times; more only cost memory.
DEPTH = 2


class Timings:
    """Seconds of work by stage name, waiting left out; of what runs side by side, the sum.

    `cpu` are the CPU seconds of the stages' own threads; libraries have others (codecs, an engine's pool). With
    `keep` the single times are kept too, in `samples`; they grow with the film.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.samples: dict[str, list[float]] | None = {} if keep else None

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            spent, cpu = time.perf_counter() - start, time.thread_time() - cpu
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + spent
                self.cpu[name] = self.cpu.get(name, 0.0) + cpu
                if self.samples is not None:
                    self.samples.setdefault(name, []).append(spent)


class _Closed(Exception):
    """The channel's other side is gone."""


@dataclass(frozen=True)
class _Last:
    """The last thing in a channel: the end, or what went wrong."""

    error: BaseException | None


class _Channel:
    """A bounded queue whose waiting ends wake up when it is closed."""

    def __init__(self, depth: int) -> None:
        self._items: deque[Any] = deque()
        self._depth = depth
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if self._closed:
                raise _Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _Running:
    """One stage at work in its own thread."""

    def __init__(self, name: str, items: Generator[Any, None, None], depth: int) -> None:
        self._items = items
        self.channel = _Channel(depth)
        self.thread = threading.Thread(target=self._pump, name=f"fada-{name}", daemon=True)
        self.thread.start()

    def _pump(self) -> None:
        last = _Last(None)
        try:
            # Closing the generator ends its `with` blocks in the thread that entered them.
            with closing(self._items):
                for item in self._items:
                    self.channel.put(item)
        except _Closed:
            return
        except BaseException as error:
            last = _Last(error)
        try:
            self.channel.put(last)
        except _Closed:
            return

    def __iter__(self) -> Iterator[Any]:
        while not isinstance(item := self.channel.get(), _Last):
            yield item
        if item.error is not None:
            raise item.error


def chain(
    source: Iterable[Any], stages: Mapping[str, Stage], *, depth: int = DEPTH
) -> Generator[Any, None, None]:
    """Yield what the last of the stages gives, each at work in a thread of its own.

    Whatever any of them raises is raised here. When this generator ends, for whatever reason, all
    threads have ended.
    """
    running: list[_Running] = []
    items = iter(source)
    try:
        for name, stage in stages.items():
            running.append(_Running(name, stage(items), depth))
            items = iter(running[-1])
        yield from items
    finally:
        for stage_running in running:
            stage_running.channel.close()
        for stage_running in running:
            stage_running.thread.join()


@dataclass
class _Batch:
    """Frames that go through the network together, and what came between them."""

    items: list[Frame | DataError | SourceEnd] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    prediction: Future[Prediction] | None = None


def read(sources: Iterable[Source], timings: Timings) -> Generator[Item | SourceEnd, None, None]:
    """Yield the frames of sources, pictures that failed, and each source's end.

    Live ones are read at the same time (and decoded in threads of their own), others one after the other.
    """
    sources = list(sources)
    if live := [source for source in sources if isinstance(source, LiveSource)]:
        yield from read_together(live)
        return
    for source in sources:
        # To wait for a picture is no work.
        clock = timings.clock if not source.is_live else lambda _: nullcontext()
        with closing(source.frames()) as items:
            while True:
                with clock("decode"):
                    item = next(items, None)
                if item is None:
                    break
                yield item
        yield SourceEnd(source)


def resize(
    items: Iterable[Item | SourceEnd], size_hw: tuple[int, int], batch: int, timings: Timings
) -> Generator[_Batch, None, None]:
    """Gather batches for the network, across sources; of live ones what is there."""
    waiting = _Batch()
    for item in items:
        if isinstance(item, Pause):
            if waiting.items:
                yield waiting
                waiting = _Batch()
            continue
        waiting.items.append(item)
        if isinstance(item, Frame):
            with timings.clock("resize"):
                waiting.pictures.append(resize_frame(item.rgb, size_hw))
        # With nothing to wait for, what is no frame goes on at once.
        if len(waiting.pictures) in (0, batch):
            yield waiting
            waiting = _Batch()
    if waiting.items:
        yield waiting


def run(
    batches: Iterable[_Batch], backend: Backend, timings: Timings
) -> Generator[_Batch, None, None]:
    """Give each batch to the network, as many at once as the backend runs; the next stage waits for the answer."""

    def answer(pictures: list[NDArray[np.uint8]]) -> Prediction:
        try:
            with timings.clock("network"):
                return backend.submit(
                    np.stack(pictures) if len(pictures) > 1 else pictures[0][None]
                )
        finally:
            free.release()

    # One more would wait inside for its turn, where a live source cannot drop it.
    free = threading.Semaphore(backend.parallel)
    with ThreadPoolExecutor(backend.parallel, "fada-network") as requests:
        for batch in batches:
            if batch.pictures:
                free.acquire()
                batch.prediction = requests.submit(answer, batch.pictures)
            yield batch


def upsample(
    batches: Iterable[_Batch], backend: Backend, confidence: bool, timings: Timings
) -> Generator[Result | DataError | SourceEnd, None, None]:
    """Make each frame's result at the frame's own size."""
    for batch in batches:
        done = 0
        for item in batch.items:
            if not isinstance(item, Frame):
                yield item
                continue
            assert batch.prediction is not None
            prediction = batch.prediction.result()
            with timings.clock("upsample"):
                result = _result(item, prediction[done], backend, confidence)
            done += 1
            yield result


def _result(frame: Frame, prediction: Prediction, backend: Backend, confidence: bool) -> Result:
    size = frame.rgb.shape[:2]
    labels = prediction.labels(size)[0]
    sure = prediction.confidence(size)[0] if confidence else None
    return Result(
        labels,
        frame.rgb,
        backend.metadata.label_space,
        frame.captured,
        time.monotonic() - frame.captured,
        source=frame.source,
        index=frame.index,
        item=frame.item,
        pts=frame.pts,
        time_base=frame.time_base,
        confidence=sure,
        decoded=frame.decoded,
    )


def run_pipeline(
    sources: Sequence[Source],
    backend: Backend,
    *,
    batch: int = 1,
    confidence: bool = False,
    timings: Timings | None = None,
    then: Mapping[str, Stage] | None = None,
) -> Generator[Any, None, None]:
    """Yield a `Result` for each frame, a `DataError` for what cannot be read, an `SourceEnd` for each source.

    `then` adds stages behind (drawing, writing); what the last of them gives is yielded instead.
    """
    clock = timings or Timings()
    size = backend.metadata.input_size_hw
    stages: dict[str, Stage] = {
        "read": lambda items: read(items, clock),
        "resize": lambda items: resize(items, size, batch, clock),
        "run": lambda items: run(items, backend, clock),
        "upsample": lambda items: upsample(items, backend, confidence, clock),
    }
    # What waits between stages is old by the time it is done: of a live source as little as can be.
    live = any(source.is_live for source in sources)
    return chain(sources, {**stages, **(then or {})}, depth=1 if live else DEPTH)
