"""Segment sources into files from start to end, and sum up what was done."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field

from fada_deploy.common.errors import DataError
from fada_deploy.common.progress import progress_bar
from fada_deploy.runtime.pipeline import STAGES, Timings
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Source, SourceEnd
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.writers.finished import FinishedSources
from fada_deploy.runtime.writers.save import SaveOptions, save_results

logger = logging.getLogger(__name__)


@dataclass
class InferenceSummary:
    """What `run_inference` did.

    Attributes:
        frames: Number of frames that were segmented.
        errors: One line per frame or file that could not be read.
        seconds: Wall-clock seconds.
        timings: Time spent in each stage.
        live: Counters of each stream and camera by name; see `LiveSource.counters`.
        interrupted: Name of the source that was stopped before its end, and the number of its
            frames that were segmented; None if no source was.
        unread: Number of sources that were not read, because the run was stopped before.
        finished_before: Number of sources that an earlier run has finished.
        frames_before: Number of frames of other sources that an earlier run has segmented.
    """

    frames: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    timings: Timings = field(default_factory=Timings)
    live: dict[str, dict[str, int]] = field(default_factory=dict)
    interrupted: tuple[str, int] | None = None
    unread: int = 0
    finished_before: int = 0
    frames_before: int = 0

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def ms_per_frame(self) -> dict[str, float]:
        """Milliseconds of work per frame of each stage that ran, in pipeline order."""
        seconds, frames = self.timings.seconds, max(1, self.frames)
        return {name: 1000 * seconds[name] / frames for name in STAGES if name in seconds}


def run_inference(
    segmenter: Segmenter,
    sources: Sequence[Source],
    options: SaveOptions,
    *,
    on_result: Callable[[Result], None] | None = None,
    stop: threading.Event | None = None,
    finished: FinishedSources | None = None,
) -> InferenceSummary:
    """Segment all sources and write output files under a progress bar.

    Errors of live sources are also logged at once, because such a run may take days. `on_result` is
    called with each result after it was written. When `stop` is set, the run ends after the output
    files of the current file are completed. Sources in `finished` are not read, and completed ones
    are added to it. Raise the errors of `save_results`.
    """
    summary = InferenceSummary()
    is_live = any(source.is_live for source in sources)
    skipped = finished.names(sources) if finished else set()
    left = [source for source in sources if source.name not in skipped]
    results = save_results(
        segmenter, sources, options, timings=summary.timings, stop=stop, skipped=skipped
    )
    frames: Counter[str] = Counter()
    summary.unread, summary.finished_before = len(sources), len(skipped)
    errors_before = 0
    start = time.perf_counter()
    with (
        nullcontext() if finished is None else finished.written(),
        closing(results),
        progress_bar(total_frames(left), "segmenting") as bar,
    ):
        for item in results:
            if isinstance(item, Result):
                summary.frames += 1
                frames[item.source] += 1
                bar.update()
                if on_result is not None:
                    on_result(item)
            elif isinstance(item, DataError):
                summary.errors.append(str(item))
                if is_live:
                    logger.warning("%s", item)
            elif isinstance(item, SourceEnd):
                summary.unread -= 1
                if item.is_interrupted:
                    summary.interrupted = item.source.name, frames[item.source.name]
                elif (
                    finished
                    and frames[item.source.name]
                    and item.source.name not in skipped
                    and len(summary.errors) == errors_before
                ):
                    finished.add(item.source)
                errors_before = len(summary.errors)
    summary.seconds = time.perf_counter() - start
    summary.live = {s.name: asdict(s.counters) for s in sources if isinstance(s, LiveSource)}
    return summary


def total_frames(sources: Sequence[Source], *, if_unknown: int | None = None) -> int | None:
    """Return the total number of frames, None if that of a source is unknown.

    With `if_unknown`, a source of unknown length counts as that many frames.
    """
    counts = [source.count() for source in sources]
    known = [if_unknown if count is None else count for count in counts]
    return None if None in known else sum(count for count in known if count is not None)
