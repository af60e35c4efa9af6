"""Segment sources and write the results as files.

The output folder has one subfolder per kind of output: `overlay/drive.mp4`,
`mask/drive/000000.png`, `json/drive.json`. A single image gives `mask/photo.png`, a folder of
images `mask/folder/photo.png`. Every file is written under a temporary name and renamed when it is
complete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from fada_deploy.common.errors import DataError, UnwritableFrameError, UsageError
from fada_deploy.common.files import final_path
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.pipeline import Timings, run_pipeline
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Source, SourceEnd
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.writers.arrays import npz_arrays
from fada_deploy.runtime.writers.images import color_images, mask_images, overlay_images
from fada_deploy.runtime.writers.json_document import json_document
from fada_deploy.runtime.writers.options import IDS, KINDS, SaveOptions
from fada_deploy.runtime.writers.output import DrawnResult, Output, WriteResult, output_names
from fada_deploy.runtime.writers.videos import color_video, mask_video, overlay_video

__all__ = [
    "IDS", "KINDS", "OUTPUTS", "SaveOptions", "check_outputs", "output_names", "save_results",
]  # fmt: skip

Item = Result | DataError | SourceEnd


def _overlay(output: Output) -> AbstractContextManager[WriteResult]:
    return overlay_video(output) if output.source.is_video else overlay_images(output)


# Kind of output → opens its files for one source; the block yields what writes one result.
OUTPUTS: dict[str, Callable[[Output], AbstractContextManager[WriteResult]]] = {
    "overlay": _overlay,
    "mask": mask_images,
    "mask-video": mask_video,
    "color": color_images,
    "color-video": color_video,
    "npz": npz_arrays,
    "json": json_document,
}


def save_results(
    segmenter: Segmenter,
    sources: Sequence[Source],
    options: SaveOptions,
    *,
    timings: Timings | None = None,
    stop: threading.Event | None = None,
    skipped: set[str] | None = None,
) -> Generator[Item, None, None]:
    """Segment all sources and write output files; yield each `Result` once it is written.

    Also yields a `DataError` for each frame or file that cannot be read or encoded, and a
    `SourceEnd` when the files of a source are complete. If the generator is closed or interrupted,
    finished files remain and unfinished ones are removed, except for recordings of live sources
    that can be played.

    Args:
        segmenter: The model.
        sources: What to segment; see `open_sources`.
        options: What to write.
        timings: Collects the time spent in each stage.
        stop: When it is set, no further frame of a file is read; see `run_pipeline`. The files of
            the current source are completed with the frames that were read.
        skipped: Names of sources that are not read; they keep their names in output paths. Names of
            sources whose files cannot be written are added.

    Raises:
        UsageError: The options do not fit the sources, or a source would be overwritten.
        DataError: A file of the only source cannot be written. With several sources, the error is
            yielded, the source is left, and the others go on.
    """
    check_outputs(sources, options)
    clock = timings or Timings()
    skipped = set() if skipped is None else skipped
    renderer = OverlayRenderer(options.style, segmenter.space, options.corner)
    return run_pipeline(
        sources,
        segmenter.backend,
        batch=segmenter.batch,
        confidence="npz" in options.kinds and segmenter.metadata.head == "logits",
        timings=clock,
        stop=stop,
        skipped=skipped,
        further_stages={
            "draw": lambda items: _draw(items, renderer, options, clock),
            "write": lambda items: _write(items, sources, options, clock, skipped),
        },
    )


def check_outputs(sources: Sequence[Source], options: SaveOptions) -> None:
    """Raise `UsageError` if the options do not fit the sources."""
    if options.file is not None:
        _check_single_file(sources, options, options.file)
    for source in sources:
        for kind in options.kinds:
            folder = (options.out / kind).resolve()
            if options.file is None and Path(source.name).resolve().parent == folder:
                raise UsageError(
                    f"{source.name}: the {kind} output would be written to the folder of the "
                    "source; choose another folder with --out"
                )
            if kind.endswith("-video") and not source.is_video and source.count() != 0:
                raise UsageError(
                    f"{source.name}: {kind} needs a video; "
                    f"for images use --save {kind.removesuffix('-video')}"
                )


def _check_single_file(sources: Sequence[Source], options: SaveOptions, file: Path) -> None:
    if len(sources) != 1 or len(options.kinds) != 1:
        raise UsageError(
            f"{file}: one output file needs one source and one kind of output, got "
            f"{_count(len(sources), 'source')} and {_count(len(options.kinds), 'kind')}; "
            "name a folder with --out"
        )
    (source,), (kind,) = sources, options.kinds
    if kind in ("npz", "json"):
        raise UsageError(f"{file}: cannot hold {kind}; name a folder with --out")
    is_video = source.is_video and kind in ("overlay", "color-video", "mask-video")
    plural = {"overlay": "overlays", "mask": "masks", "color": "color maps"}.get(kind, kind)
    if is_video and file.suffix.lower() != ".mp4":
        raise UsageError(
            f"{file}: the {kind} of {source.name} is a video, not an image; "
            "use a name ending in .mp4"
        )
    if not is_video and file.suffix.lower() == ".mp4":
        raise UsageError(
            f"{file}: the {plural} of {source.name} are images, not a video; "
            "name a folder with --out"
        )
    if not is_video and (source.is_video or source.is_live or Path(source.name).is_dir()):
        raise UsageError(
            f"{file}: the {plural} of {source.name} are several images; name a folder with --out"
        )
    if kind in ("mask", "color") and file.suffix.lower() != ".png":
        raise UsageError(f"{file}: {kind} images are written as PNG; use a name ending in .png")
    if Path(source.name).resolve() == file.resolve():
        raise UsageError(f"{file}: is the source itself; choose another name with --out")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _draw(
    items: Iterable[Item], renderer: OverlayRenderer, options: SaveOptions, timings: Timings
) -> Generator[DrawnResult | DataError | SourceEnd, None, None]:
    for item in items:
        if not isinstance(item, Result) or "overlay" not in options.kinds:
            if isinstance(item, SourceEnd):
                renderer.forget(item.source.name)
            yield DrawnResult(item, None) if isinstance(item, Result) else item
            continue
        with timings.measure("draw"):
            overlay = renderer.draw_for_video(item)
        yield DrawnResult(item, overlay)


def _write(
    items: Iterable[DrawnResult | DataError | SourceEnd],
    sources: Sequence[Source],
    options: SaveOptions,
    timings: Timings,
    skipped: set[str],
) -> Generator[Item, None, None]:
    """Write the results of each source.

    A source that cannot be written yields one error, its name is added to `skipped`, and the others
    go on. The error of a single source is raised.
    """
    names = output_names(sources, options.tree)
    by_name = {source.name: source for source in sources}
    opened: dict[str, _SourceFiles] = {}
    # If this generator ends early, unfinished files are removed, and recordings are kept.
    with _closing(opened):
        for item in items:
            if isinstance(item, DataError):
                yield item
                continue
            is_result = isinstance(item, DrawnResult)
            name = item.result.source if isinstance(item, DrawnResult) else item.source.name
            if is_result and name in skipped:
                continue
            try:
                with timings.measure("write"), _write_errors(options.out):
                    if isinstance(item, DrawnResult):
                        if name not in opened:
                            output = Output(by_name[name], names[name], item, options)
                            opened[name] = _SourceFiles(output)
                        opened[name].write(item)
                    elif name in opened:
                        opened.pop(name).complete(is_interrupted=item.is_interrupted)
            except UnwritableFrameError as error:
                # The other frames can be written.
                yield error
                continue
            except DataError as error:
                if len(sources) == 1:
                    raise
                skipped.add(name)
                if name in opened:
                    opened.pop(name).discard(error)
                if isinstance(source := by_name[name], LiveSource):
                    # Otherwise it would be read, and segmented, for ever.
                    source.stop()
                yield error
                if is_result:
                    continue
            yield item.result if isinstance(item, DrawnResult) else item


@contextmanager
def _closing(opened: Mapping[str, _SourceFiles]) -> Iterator[None]:
    """Close the files that are still open at the end of the block; an error discards them."""
    with ExitStack() as stack:
        try:
            yield
        finally:
            for files in opened.values():
                stack.push(files)


class _SourceFiles(ExitStack):
    """The open output files of one source; they are opened by the first result."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._writers: list[WriteResult] | None = None

    def write(self, drawn: DrawnResult) -> None:
        """Write a result to all files."""
        if self._writers is None:
            kinds = self._output.options.kinds
            self._writers = [self.enter_context(OUTPUTS[kind](self._output)) for kind in kinds]
        errors = []
        for write in self._writers:
            try:
                write(drawn)
            except UnwritableFrameError as error:
                # Another kind of output may be able to store the frame.
                errors.append(error)
        if errors:
            raise errors[0]

    def complete(self, *, is_interrupted: bool) -> None:
        """Finish the files and give them their names."""
        self._output.is_interrupted = is_interrupted
        self.close()

    def discard(self, error: Exception) -> None:
        """Remove the unfinished files after an error."""
        # Closing an encoder on a full disk fails again; the first error is the one to report.
        with suppress(Exception):
            self.__exit__(type(error), error, error.__traceback__)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn errors of the file system into `DataError`."""
    try:
        yield
    except OSError as error:
        file = final_path(Path(str(error.filename2 or error.filename or out).removeprefix("file:")))
        raise DataError(f"{file}: cannot be written ({error.strerror or error})") from None
