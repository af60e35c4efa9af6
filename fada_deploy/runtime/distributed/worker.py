"""What one worker of a job does: plan, segment and join. It does not depend on Ray."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fada_deploy.common.documents import decode_json, encode_json
from fada_deploy.common.errors import DataError, one_line
from fada_deploy.common.files import sha256
from fada_deploy.common.runs import MANIFEST
from fada_deploy.common.system import throughput_parallelism
from fada_deploy.runtime.distributed.join import combined_hashes, join
from fada_deploy.runtime.distributed.tasks import (
    RESULT,
    JoinResult,
    JoinTask,
    PartResult,
    PartTask,
    PlanResult,
    PlanTask,
    WorkerSetup,
    part_folder,
)
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.pipeline import Timings
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame, Source
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.sources.video_chunks import VideoChunkSource, plan_chunks
from fada_deploy.runtime.sources.videos import VideoSource
from fada_deploy.runtime.writers.output import output_names
from fada_deploy.runtime.writers.save import save_results


class InferenceWorker:
    """Runs the tasks of a job. The model is opened once."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        if setup.output.read(MANIFEST) is None:
            raise DataError(
                f"{setup.output}: a worker does not see this folder; name one on a file system "
                "that all machines share, or an address such as s3://bucket/folder"
            )
        with tempfile.TemporaryDirectory(prefix="fada-model-") as folder:
            for name, data in setup.files.items():
                Path(folder, name).write_bytes(data)
            # An opened model does not need its files any more.
            self._segmenter = Segmenter(
                Path(folder, setup.model.name) if setup.files else setup.model,
                device=setup.device,
                backend=setup.backend,
                batch=setup.batch,
                parallel=throughput_parallelism(),
                allow_unverified=setup.allow_unverified,
            )

    def describe(self) -> dict[str, Any]:
        """Return which backend runs the model, and on what."""
        backend = self._segmenter.backend
        return {"backend": backend.name, "device": backend.device}

    def __call__(
        self, task: PlanTask | PartTask | JoinTask
    ) -> PlanResult | PartResult | JoinResult:
        """Run a task. Bad input is reported in the result."""
        match task:
            case PlanTask():
                return self._plan(task)
            case PartTask():
                try:
                    return self._segment(task)
                except (DataError, OSError) as error:
                    return PartResult(fatal=_line(error))
            case JoinTask():
                try:
                    return join(task, self._setup.output, self._setup.options)
                except (DataError, OSError) as error:
                    return JoinResult(fatal=_line(error))

    def _plan(self, task: PlanTask) -> PlanResult:
        path, style = Path(task.source.name), self._setup.options.style
        try:
            chunks = plan_chunks(path, task.frames)
        except DataError:
            # It is reported when the video is read.
            return PlanResult([])
        if len(chunks) < 2 or style.legend != "auto" or "overlay" not in self._setup.options.kinds:
            return PlanResult(chunks)
        # All chunks have the corner that the first frame of the video decides.
        with closing(VideoSource(path).frames()) as frames:
            first = next(frames, None)
        if not isinstance(first, Frame):
            return PlanResult(chunks)
        result = self._segmenter.predict(first.rgb, color="rgb")
        return PlanResult(
            chunks, OverlayRenderer(style, self._segmenter.space).legend_corner(result)
        )

    def _segment(self, task: PartTask) -> PartResult:
        output, folder = self._setup.output, part_folder(task.source, task.index)
        if task.count > 1 and (data := output.read(f"{folder}/{RESULT}")) is not None:
            # An earlier run did this, or a worker that was lost before it could say so.
            return decode_json(data, PartResult)
        source = _open(task)
        options = replace(self._setup.options, tree=None, file=None)
        if task.chunk is not None:
            options = replace(options, as_part=True, corner=task.corner)
        with _messages() as messages, output.temporary() as temporary:
            result = self._run(source, replace(options, out=temporary))
            self._publish(task, source, temporary, result)
            result.messages = messages
            if isinstance(source, VideoChunkSource):
                result.report = source.report
        if task.count > 1:
            result.run = self._setup.run
            output.write(f"{folder}/{RESULT}", encode_json(result))
        else:
            result.files = combined_hashes(result.files, task.source.output)
        return result

    def _run(self, source: Source, options: Any) -> PartResult:
        timings, result = Timings(), PartResult(errors=[])
        with closing(save_results(self._segmenter, [source], options, timings=timings)) as items:
            for item in items:
                if isinstance(item, Result):
                    result.frames += 1
                elif isinstance(item, DataError):
                    result.errors.append(str(item))
        result.seconds = timings.seconds
        return result

    def _publish(self, task: PartTask, source: Source, folder: Path, result: PartResult) -> None:
        """Move the outputs to the output folder; add their hashes to the result."""
        own_name = output_names([source])[source.name]
        files: dict[str, str] = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            kind, rest = file.relative_to(folder).as_posix().split("/", 1)
            final = f"{kind}/{task.source.output}{rest.removeprefix(own_name)}"
            # The images of a folder have names of their own. The number of a video's frame is only
            # known when all earlier parts are done, and documents and videos are joined.
            is_final = task.count == 1 or (task.chunk is None and kind != "json")
            name = final if is_final else f"{part_folder(task.source, task.index)}/{final}"
            files[final] = sha256(file)
            self._setup.output.put(file, name)
        result.files = files


def _line(error: DataError | OSError) -> str:
    if isinstance(error, DataError):
        return str(error)
    return f"{error.filename or 'the output folder'}: {error.strerror or one_line(error)}"


def _open(task: PartTask) -> Source:
    name = Path(task.source.name)
    if task.source.items is not None:
        return ImageSource(task.source.name, task.source.items, task.first_index)
    return VideoSource(name) if task.chunk is None else VideoChunkSource(name, task.chunk)


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the warnings that this package logs, which nobody would read on another machine."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("fada_deploy"), Collector(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
