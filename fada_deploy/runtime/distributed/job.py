"""Segment sources on a Ray cluster into the same files that one process writes."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.cluster.pool import LOCAL, ClusterOptions, LostTask, WorkerInfo, WorkerPool
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.progress import Progress, progress_bar
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
    WorkerSetup,
    source_folder,
)
from fada_deploy.runtime.distributed.worker import InferenceWorker
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.images import ImageSource, UnreadableSource
from fada_deploy.runtime.writers.finished import FINISHED, output_settings, source_state
from fada_deploy.runtime.writers.inference import InferenceSummary
from fada_deploy.runtime.writers.options import SaveOptions
from fada_deploy.runtime.writers.output import output_names

logger = logging.getLogger(__name__)

# Smallest number of frames in a chunk of a video. A chunk decodes up to one group of pictures more
# than it needs, which is 250 frames by x264's default.
CHUNK_FRAMES = 600


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model of a job; see `Segmenter`."""

    path: Path
    device: str = "auto"
    backend: str = "auto"
    batch: int | None = None
    allow_unverified: bool = False


@dataclass
class JobSummary(InferenceSummary):
    """What a job did, and what its workers say about themselves."""

    workers: list[WorkerInfo] = field(default_factory=list)


def run_job(
    model: ModelOptions,
    sources: Sequence[Source],
    options: SaveOptions,
    output: OutputFolder,
    cluster: ClusterOptions,
    *,
    chunk_frames: int = CHUNK_FRAMES,
    resume: bool = False,
    stop: threading.Event | None = None,
) -> JobSummary:
    """Segment videos and images on a Ray cluster under a progress bar.

    Videos of at least two chunks are divided at keyframes. Memory in the driver and in the workers
    does not depend on the length of the videos.

    Args:
        model: The model; its files are sent to the workers.
        sources: Files and folders; see `open_sources`.
        options: What is written; its `out` is not used.
        output: Where it is written.
        cluster: The workers.
        chunk_frames: Smallest number of frames in a chunk of a video, and the largest number of
            images in a part of a folder.
        resume: Leave out the sources that an earlier job in the folder has finished, and the parts
            of others that it has.
        stop: When it is set, no further part is begun.

    Raises:
        DataError: The only source cannot be processed, or the manifest cannot be written.
        UsageError: `resume` is set, and the job in the folder had other settings.
        DeviceError: There is no cluster, or its workers cannot start.
        FadaError: The model cannot be opened.
    """
    start = time.perf_counter()
    settings = {**output_settings(model.path, options), "chunk_frames": chunk_frames}
    job_sources = _job_sources(sources, options, settings)
    manifest = Manifest(output, settings, resume=resume)
    _check_names(job_sources, manifest)
    # The list of `fada infer` without a cluster would no longer be true.
    output.remove(FINISHED)
    if not resume:
        output.remove(PARTS)
    job = _Job(sources, job_sources, manifest, output, chunk_frames, stop or threading.Event())
    setup = WorkerSetup(
        model=model.path,
        files={} if cluster.address == LOCAL else _model_files(model.path),
        device=model.device,
        backend=model.backend,
        batch=model.batch,
        allow_unverified=model.allow_unverified,
        options=options,
        output=output,
    )
    with closing(manifest), progress_bar(100, "segmenting", unit="%") as bar:
        job.show_progress(bar)
        if job.has_work():
            with WorkerPool(partial(InferenceWorker, setup), cluster) as pool:
                with closing(pool.run(job.take, stop)) as results:
                    for task, result in results:
                        job.receive(task, result)
                        job.show_progress(bar)
                job.summary.workers = pool.workers
    summary = job.finish()
    summary.seconds = time.perf_counter() - start
    return summary


def _check_names(sources: Sequence[JobSource], manifest: Manifest) -> None:
    """Raise `UsageError` if a source would overwrite the outputs of another one of the job."""
    for source in sources:
        owner = manifest.outputs.get(source.output, source.name)
        if Path(owner).resolve() != Path(source.name).resolve():
            raise UsageError(
                f"--resume: {source.name} would overwrite the outputs of {owner}, which are named "
                f"{source.output}; name the same sources in the same order, or another --out"
            )


def _model_files(model: Path) -> dict[str, bytes]:
    """Return the content of the files of a model: itself, its sidecar and its reference outputs."""
    stem = model.name.partition(".")[0]
    return {
        path.name: path.read_bytes()
        for path in model.parent.iterdir()
        if path.is_file() and path.name.partition(".")[0] == stem
    }


def _job_sources(
    sources: Sequence[Source], options: SaveOptions, settings: dict[str, Any]
) -> list[JobSource]:
    names = output_names(sources, options.tree)
    result = []
    for source in sources:
        items = source.items if isinstance(source, ImageSource) else None
        files = [Path(source.name)] if items is None else list(items.values())
        key = [str(Path(source.name).resolve()), source_state(source), names[source.name], settings]
        result.append(
            JobSource(
                id=hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20],
                name=source.name,
                output=names[source.name],
                items=items,
                size=max(1, sum(path.stat().st_size for path in files if path.is_file())),
            )
        )
    return result


@dataclass
class _Active:
    """A source that is being processed."""

    source: JobSource
    parts: int
    done: int = 0
    frames: int = 0
    errors: list[str] = field(default_factory=list)


class _Job:
    """The state of a job: which tasks there are, and what is done."""

    def __init__(
        self,
        sources: Sequence[Source],
        job_sources: Sequence[JobSource],
        manifest: Manifest,
        output: OutputFolder,
        chunk_frames: int,
        stop: threading.Event,
    ) -> None:
        self.summary = JobSummary()
        self._manifest, self._output, self._stop = manifest, output, stop
        self._chunk_frames = chunk_frames
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
        self._has_work = bool(left)
        if self.summary.finished_before:
            logger.info(
                "%d of %d sources were finished before", self.summary.finished_before, len(sources)
            )

    def has_work(self) -> bool:
        """Return whether a source is left to process."""
        return self._has_work

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
        if not self._unread and not self._has_failed:
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
            InputLine(id=source.id, source=source.name, output=source.output, parts=len(tasks))
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
        self.summary.frames += result.frames
        for stage, seconds in result.seconds.items():
            total = self.summary.timings.seconds
            total[stage] = total.get(stage, 0.0) + seconds
        self._manifest.add(PartLine(id=active.source.id, part=task.index, frames=result.frames))
        if active.done < active.parts:
            return
        if active.parts == 1:
            self._done(active, result.files)
        else:
            self._tasks.appendleft(JoinTask(source=active.source, count=active.parts))

    def _receive_join(self, source: JobSource, result: JoinResult) -> None:
        active = self._active[source.id]
        if result.fatal:
            self._fail(source, [result.fatal])
        elif result.mismatch:
            logger.info(
                "%s: processed again without dividing it, because %s", source.name, result.mismatch
            )
            self._output.remove(source_folder(source))
            self.summary.frames -= active.frames
            self._begin(source, [PartTask(source=source)])
        else:
            if result.error:
                active.errors.append(result.error)
            self._done(active, result.files)

    def _done(self, active: _Active, files: dict[str, str]) -> None:
        errors = list(dict.fromkeys(active.errors))
        if not active.frames and errors:
            self._fail(active.source, errors)
            return
        source = active.source
        del self._active[source.id]
        self._manifest.add(
            DoneLine(
                id=source.id,
                source=source.name,
                output=source.output,
                frames=active.frames,
                errors=errors,
                files=files,
            )
        )
        if errors:
            self._errors[source.id] = errors
        if active.parts > 1:
            self._output.remove(source_folder(source))
        self._complete(source)

    def _fail(self, source: JobSource, errors: list[str]) -> None:
        """Give up a source; leave out its other parts."""
        if self._is_single and not self._stop.is_set():
            raise DataError(errors[0])
        # Its finished parts are needed when the job is continued.
        self._has_failed |= source.id in self._active
        self._active.pop(source.id, None)
        self._tasks = deque(task for task in self._tasks if task.source.id != source.id)
        for error in errors:
            self._manifest.add(FailedLine(id=source.id, source=source.name, error=error))
        self._errors[source.id] = errors
        self._complete(source)

    def _complete(self, source: JobSource) -> None:
        self._unread -= 1
        self._completed += source.size


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
