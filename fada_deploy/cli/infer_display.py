"""What `fada infer` shows: a window with overlays, and the summary of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fada_deploy.cli.console import log

if TYPE_CHECKING:
    from fada_deploy.common.metadata import ModelMetadata
    from fada_deploy.runtime.result import Result
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.runtime.sources.base import Source
    from fada_deploy.runtime.writers.inference import InferenceSummary
    from fada_deploy.runtime.writers.save import SaveOptions


def describe(segmenter: OpenedModel) -> str:
    """Return one line about an opened model: classes, input size, precision, backend, device."""
    metadata, backend = segmenter.metadata, segmenter.backend
    height, width = metadata.input_size_hw
    return (
        f"{metadata.label_space.num_classes} classes at {width}x{height}, {metadata.precision}, "
        f"{backend.name} on {backend.device}"
    )


@contextmanager
def overlay_window(
    enabled: bool,
    on_close: Callable[[], None],
    options: SaveOptions,
    segmenter: Segmenter,
    sources: Sequence[Source],
    is_stopped: Callable[[], bool],
) -> Iterator[Callable[[Result], None] | None]:
    """Open a window and yield the function that shows a result; yield None if not enabled.

    `on_close` is called when the user closes the window. If all sources are still images, the
    window stays open with the last one until the user closes it, unless the run was stopped.
    """
    if not enabled:
        yield None
        return
    from fada_deploy.runtime.overlay.renderer import OverlayRenderer
    from fada_deploy.runtime.viewer import Viewer

    renderer = OverlayRenderer(options.style, segmenter.space)
    last: Result | None = None
    live = {source.name for source in sources if source.is_live}
    with Viewer("fada infer", on_close=on_close) as viewer:

        def show(result: Result) -> None:
            nonlocal last
            if last is not None and last.source != result.source and last.source not in live:
                renderer.forget(last.source)
            last = result
            if viewer.is_ready:
                viewer.show(renderer.draw(result))

        yield show
        only_images = not any(source.is_live or source.is_video for source in sources)
        is_open = not (viewer.closed or viewer.failure or is_stopped())
        if only_images and last is not None and is_open:
            viewer.show(renderer.draw(last))
            log("all images are done; press q or Esc in the window to quit")
            with suppress(KeyboardInterrupt):
                viewer.wait()
    if viewer.failure:
        log(f"warning: {viewer.failure}")


class OpenedModel(Protocol):
    """The attributes of a `Segmenter` that are shown; on a cluster there is none here."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> ModelMetadata: ...
    @property
    def backend(self) -> NamedBackend: ...


class NamedBackend(Protocol):
    """Which backend runs a model, and on what."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...


def to_document(
    summary: InferenceSummary,
    segmenter: OpenedModel,
    skipped: Sequence[str],
    sources: Sequence[Source],
    options: SaveOptions,
) -> dict[str, Any]:
    """Return the JSON document of `--json`."""
    from fada_deploy.runtime.writers.save import output_names

    height, width = segmenter.metadata.input_size_hw
    document: dict[str, Any] = {
        "model": str(segmenter.path),
        "skipped_models": list(skipped),
        "backend": segmenter.backend.name,
        "device": segmenter.backend.device,
        "input_size": {"width": width, "height": height},
        "out": str(options.file or options.out),
        "saved": {
            kind: str(options.file or options.out / kind)
            for kind in options.kinds
            if summary.frames
        },
        "names": dict(output_names(sources, options.tree)),
        "frames": summary.frames,
        "finished_before": summary.finished_before,
        "failed": summary.errors,
        "seconds": round(summary.seconds, 3),
        "fps": round(summary.fps, 2),
        "ms_per_frame": {name: round(ms, 2) for name, ms in summary.ms_per_frame.items()},
    }
    if summary.interrupted is not None or summary.unread:
        source, frames = summary.interrupted or (None, 0)
        document["interrupted"] = {
            "source": source,
            "frames": frames,
            "unread_sources": summary.unread,
        }
    return document | ({"live": summary.live} if summary.live else {})


def print_summary(document: Mapping[str, Any], *, is_live: bool) -> None:
    """Print a run's errors, speed and output files; errors of live sources were already printed."""
    failed = document["failed"]
    for line in failed if not is_live else ():
        log(f"failed: {line}")
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in document["ms_per_frame"].items())
    frames = document["frames"]
    if not frames and document["finished_before"] and not failed:
        log("nothing was left to do")
    else:
        log(
            f"{frames} frame{'s' * (frames != 1)} in {document['seconds']:.1f} s "
            f"({document['fps']:.1f} fps); ms per frame: {stages}"
        )
    for name, counters in document.get("live", {}).items():
        log(f"{name}: {', '.join(f'{counter} {n}' for counter, n in counters.items())}")
    if failed:
        is_complete = not is_live and "interrupted" not in document
        others = "; all other frames were processed" if is_complete else ""
        log(f"{len(failed)} error{'s' * (len(failed) != 1)} (listed above){others}")
    for source, name in document["names"].items():
        if name not in (Path(source).name, Path(source).stem):
            log(f"{source} was saved as {name}")
    for path in map(Path, document["saved"].values()):
        files = [path] if path.is_file() else _first_files(path)
        if files:
            log(f"saved {files[0] if len(files) == 1 else path}")


def _first_files(folder: Path) -> list[Path]:
    """Return up to two files of a folder."""
    return list(islice((path for path in folder.rglob("*") if path.is_file()), 2))
