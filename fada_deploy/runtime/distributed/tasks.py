"""What the driver of a job sends to its workers, and what they return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.runtime.sources.video_chunks import ChunkReport, VideoChunk
from fada_deploy.runtime.writers.options import SaveOptions

# The result of a part, written after all of its outputs.
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What every worker of a job needs.

    Attributes:
        model: Path of the exported model. If `files` is empty, the workers read it themselves.
        files: Content of the model's files by name, for workers on other machines.
        device, backend, batch, allow_unverified: Arguments of `Segmenter`.
        options: What is written; its `out` is not used.
        output: Where it is written.
        run: Identifies this run of the driver.
    """

    model: Path
    files: dict[str, bytes]
    device: str
    backend: str
    batch: int | None
    allow_unverified: bool
    options: SaveOptions
    output: OutputFolder
    run: str


@dataclass(frozen=True, kw_only=True)
class JobSource:
    """One input of a job.

    Attributes:
        id: Identifies the source, its state and the settings; names its folder of unfinished files.
        name: Path of the file or folder.
        output: Name in output paths.
        items: Images by name, if the source is an image or a folder of images; None for a video.
        size: Bytes of its files, for the progress.
    """

    id: str
    name: str
    output: str
    items: dict[str, Path] | None
    size: int

    @property
    def absolute(self) -> str:
        """The absolute path of the file or folder."""
        return str(Path(self.name).resolve())


@dataclass(frozen=True, kw_only=True)
class PlanTask:
    """Divide a video into chunks of `frames` frames or more; the result is a `PlanResult`.

    The last chunk may have half as many.
    """

    source: JobSource
    frames: int


@dataclass(frozen=True)
class PlanResult:
    """The chunks of a video, none if it cannot be read, and the corner of its legend."""

    chunks: list[VideoChunk]
    corner: str = "auto"


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """Segment a part of a source, or a whole one; the result is a `PartResult`.

    Attributes:
        source: The source; `items` are only the images of this part.
        index: Number of the part, from 0.
        count: Number of parts. The only part of a source is written to its final place.
        chunk: The part of a video, None for a whole video or for images.
        first_index: Number of the first image in its folder.
        corner: Corner of the legend in a chunk; see `SaveOptions`.
    """

    source: JobSource
    index: int = 0
    count: int = 1
    chunk: VideoChunk | None = None
    first_index: int = 0
    corner: str = "auto"


@dataclass(frozen=True, kw_only=True)
class JoinTask:
    """Join the outputs of `count` parts; the result is a `JoinResult`."""

    source: JobSource
    count: int


class PartResult(msgspec.Struct, kw_only=True):
    """What was done with a part.

    Attributes:
        frames: Number of frames that were segmented.
        errors: One line for each frame or file that could not be read.
        seconds: Seconds of work of each stage of the pipeline.
        report: What was decoded of a chunk of a video.
        files: SHA-256 of each output file by its name in the output folder.
        run: Identifies the run of the driver in which this was done; "" unless it is a part of
            several.
        messages: Warnings of the worker.
        fatal: One line, if nothing was written because an output could not be.
    """

    frames: int = 0
    errors: list[str] = []
    seconds: dict[str, float] = {}
    report: ChunkReport | None = None
    files: dict[str, str] = {}
    run: str = ""
    messages: list[str] = []
    fatal: str = ""


@dataclass(frozen=True, kw_only=True)
class JoinResult:
    """What was joined.

    Attributes:
        error: The line about damage of the video, "" if there is none.
        files: SHA-256 of each output file.
        mismatch: Why the parts do not fit together, "" if they were joined.
        fatal: One line, if an output cannot be written.
    """

    error: str = ""
    files: dict[str, str] = field(default_factory=dict)
    mismatch: str = ""
    fatal: str = ""


def part_folder(source: JobSource, index: int) -> str:
    """Return the folder of the outputs of one part, relative to the output folder."""
    return f"{source_folder(source)}/{index:05d}"


def source_folder(source: JobSource) -> str:
    """Return the folder of the unfinished outputs of a source, relative to the output folder."""
    return f"{PARTS}/{source.id}"
