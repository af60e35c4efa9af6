"""The state of a job: which tasks there are, what is done, and what has failed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.cluster.pool import LostTask, WorkerInfo
from fada_deploy.common.errors import DataError
from fada_deploy.common.progress import Progress
from fada_deploy.runtime.distributed.manifest import (
    DoneLine,
    FailedLine,
    InputLine,
    Manifest,
    PartLine,
)
from fada_deploy.runtime.distributed.tasks import (
    JobSource,
    JoinResult,
    JoinTask,
    PartResult,
    PartTask,
    PlanResult,
    PlanTask,
    source_folder,
)
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.images import UnreadableSource
from fada_deploy.runtime.writers.inference import InferenceSummary

logger = logging.getLogger(__name__)


@dataclass
class JobSummary(InferenceSummary):
    """What a job did, and what its workers say about themselves."""

    workers: list[WorkerInfo] = field(default_factory=list)


@dataclass
class _Active:
    """A source that is being processed."""

    source: JobSource
    parts: int
    done: int = 0
    frames: int = 0
    errors: list[str] = field(default_factory=list)
    # The work of this run, without parts that an earlier one has done.
    new_frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add_work(self, result: PartResult) -> None:
        """Count a part that was done in this run."""
        self.new_frames += result.frames
        _add(self.seconds, result.seconds)


class JobState:
    """The state of a job: which tasks there are, and what is done.

    Attributes:
        summary: What was done so far.
        has_work: Whether a source was left to process at the start.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        job_sources: Sequence[JobSource],
        manifest: Manifest,
        output: OutputFolder,
        chunk_frames: int,
        stop: threading.Event,
        run: str,
    ) -> None:
        self.summary = JobSummary()
        self._manifest, self._output, self._stop = manifest, output, stop
        self._chunk_frames, self._run = chunk_frames, run
        self._is_single = len(sources) == 1
        self._order = {source.id: number for number, source in enumerate(job_sources)}
        self._errors: dict[str, list[str]] = {}
        # Warnings of the workers; each is shown once.
        self._messages: set[str] = set()
        self._active: dict[str, _Active] = {}
        self._tasks: deque[PartTask | JoinTask] = deque()
        self._total = sum(source.size for source in job_sources)
        self._completed = self._shown = 0
        self._unread = len(sources)
        # Whether a source was given up after parts of it were done.
        self._has_failed = False
        left: list[JobSource] = []
        for source, job_source in zip(sources, job_sources, strict=True):
            if job_source.id in manifest.done:
                self.summary.finished_before += 1
                self._complete(job_source)
            elif isinstance(source, UnreadableSource):
                self._fail(job_source, [str(error) for error in source.frames()])
            else:
                left.append(job_source)
        self._left: Iterator[JobSource] = iter(left)
        self.has_work = bool(left)
        if self.summary.finished_before:
            logger.info(
                "%d of %d sources were finished before", self.summary.finished_before, len(sources)
            )

    def take(self) -> PlanTask | PartTask | JoinTask | None:
        """Return the next task, None if there is none now.

        The tasks of begun sources come first, so that few sources are unfinished at a time.
        """
        if self._stop.is_set():
            return None
        if self._tasks:
            return self._tasks.popleft()
        if (source := next(self._left, None)) is None:
            return None
        if source.items is None:
            return PlanTask(source=source, frames=self._chunk_frames)
        self._begin(source, list(_image_parts(source, self._chunk_frames)))
        return self._tasks.popleft()

    def receive(self, task: PlanTask | PartTask | JoinTask, result: Any) -> None:
        """Take the result of a task."""
        source = task.source
        if not isinstance(task, PlanTask) and source.id not in self._active:
            # Another part of the source has failed.
            return
        if isinstance(result, LostTask):
            self._fail(source, [f"{source.name}: {result.reason}"])
            return
        match task:
            case PlanTask():
                self._begin(source, _video_parts(source, result))
            case PartTask():
                self._receive_part(task, result)
            case JoinTask():
                self._receive_join(source, result)

    def finish(self) -> JobSummary:
        """Return the summary; remove unfinished files unless the job can be continued."""
        self.summary.unread = self._unread
        for id_ in sorted(self._errors, key=self._order.__getitem__):
            self.summary.errors += self._errors[id_]
        if self._manifest.has_begun and not self._unread and not self._has_failed:
            self._output.remove(PARTS)
        return self.summary

    def show_progress(self, bar: Progress) -> None:
        """Update the progress bar, which counts percent of the bytes of all sources."""
        begun = sum(each.source.size * each.done / each.parts for each in self._active.values())
        percent = int(100 * (self._completed + begun) / self._total)
        if percent > self._shown:
            bar.update(percent - self._shown)
            self._shown = percent
        bar.set_postfix({"frames": str(self.summary.frames)})

    def _begin(self, source: JobSource, tasks: Sequence[PartTask]) -> None:
        self._active[source.id] = _Active(source, len(tasks))
        self._tasks.extend(tasks)
        self._manifest.add(
            InputLine(id=source.id, source=source.absolute, output=source.output, parts=len(tasks))
        )

    def _receive_part(self, task: PartTask, result: PartResult) -> None:
        for message in set(result.messages) - self._messages:
            logger.warning("%s", message)
        self._messages.update(result.messages)
        active = self._active[task.source.id]
        if result.fatal:
            self._fail(active.source, [result.fatal])
            return
        active.done += 1
        active.frames += result.frames
        active.errors += result.errors
        if result.run not in ("", self._run):
            self.summary.frames_before += result.frames
        else:
            self.summary.frames += result.frames
            active.add_work(result)
            self._add_seconds(result.seconds)
        self._manifest.add(PartLine(id=active.source.id, part=task.index, frames=result.frames))
        if active.done < active.parts:
            return
        if active.parts == 1:
            self._done(active, result.files)
        else:
            self._tasks.appendleft(JoinTask(source=active.source, count=active.parts))

    def _add_seconds(self, seconds: Mapping[str, float]) -> None:
        _add(self.summary.timings.seconds, seconds)

    def _receive_join(self, source: JobSource, result: JoinResult) -> None:
        active = self._active[source.id]
        if result.fatal:
            self._fail(source, [result.fatal])
        elif result.mismatch:
            logger.info(
                "%s: processed again without dividing it, because %s", source.name, result.mismatch
            )
            self._output.remove(source_folder(source))
            # What was done in vain is not counted.
            self.summary.frames -= active.new_frames
            self.summary.frames_before -= active.frames - active.new_frames
            self._add_seconds({stage: -each for stage, each in active.seconds.items()})
            self._begin(source, [PartTask(source=source)])
        else:
            if result.error:
                active.errors.append(result.error)
            self._done(active, result.files)

    def _done(self, active: _Active, files: dict[str, str]) -> None:
        errors = list(dict.fromkeys(active.errors))
        source = active.source
        del self._active[source.id]
        if active.parts > 1:
            self._output.remove(source_folder(source))
        if not active.frames and errors:
            self._fail(source, errors)
            return
        self._manifest.add(
            DoneLine(
                id=source.id,
                source=source.absolute,
                output=source.output,
                frames=active.frames,
                errors=errors,
                files=files,
            )
        )
        if errors:
            self._errors[source.id] = errors
        self._complete(source)

    def _fail(self, source: JobSource, errors: list[str]) -> None:
        """Give up a source; leave out its other parts."""
        if self._is_single and not self._stop.is_set():
            raise DataError(errors[0])
        # Its finished parts are needed when the job is continued.
        active = self._active.pop(source.id, None)
        self._has_failed |= active is not None and active.parts > 1 and active.done > 0
        self._tasks = deque(task for task in self._tasks if task.source.id != source.id)
        for error in errors:
            self._manifest.add(FailedLine(id=source.id, source=source.absolute, error=error))
        self._errors[source.id] = errors
        self._complete(source)

    def _complete(self, source: JobSource) -> None:
        self._unread -= 1
        self._completed += source.size


def _add(total: dict[str, float], seconds: Mapping[str, float]) -> None:
    for stage, each in seconds.items():
        total[stage] = total.get(stage, 0.0) + each


def _video_parts(source: JobSource, plan: PlanResult) -> list[PartTask]:
    if len(plan.chunks) < 2:
        return [PartTask(source=source)]
    return [
        PartTask(
            source=source, index=chunk.index, count=chunk.count, chunk=chunk, corner=plan.corner
        )
        for chunk in plan.chunks
    ]


def _image_parts(source: JobSource, images: int) -> Iterator[PartTask]:
    assert source.items is not None
    items = list(source.items.items())
    starts = range(0, len(items), images)
    for index, start in enumerate(starts):
        part = replace(source, items=dict(items[start : start + images]))
        yield PartTask(source=part, index=index, count=len(starts), first_index=start)
