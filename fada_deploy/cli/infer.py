"""`fada infer`: label videos, pictures and folders with the newest export."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log

if TYPE_CHECKING:
    from fada_deploy.runtime.autotune import Autotuner
    from fada_deploy.runtime.pipeline import Timings
    from fada_deploy.runtime.result import Result
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.runtime.sources.base import Source
    from fada_deploy.runtime.writers.save import SaveOptions

_KINDS = ("overlay", "mask", "mask-video", "color", "color-video", "npz", "json")


class _Kinds(click.ParamType[tuple[str, ...]]):
    """Kinds of output, separated by commas; none for none."""

    name = "KIND,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if value == "none":
            return ()
        kinds = tuple(dict.fromkeys(k.strip() for k in value.split(",") if k.strip()))
        unknown = [k for k in kinds if k not in _KINDS]
        if unknown or not kinds:
            self.fail(
                f"cannot save {value!r}; choose from {', '.join(_KINDS)}, or none", param, ctx
            )
        return kinds


@dataclass
class _Tally:
    frames: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@click.command("infer")
@click.argument("source", nargs=-1, required=True)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Exported file, or a run [the newest under runs/].",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output folder [default: runs/infer-NNN]."
)
@click.option(
    "--save",
    type=_Kinds(),
    default="overlay",
    show_default=True,
    help=f"What to save: {', '.join(_KINDS)}, or none.",
)
@click.option(
    "--ids",
    type=click.Choice(["trainId", "labelId"]),
    default="trainId",
    show_default=True,
    help="Ids in masks.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Opacity of the colors.",
)
@click.option(
    "--legend/--no-legend",
    default=True,
    show_default=True,
    help="Class names and shares in the overlay.",
)
@click.option("--contours", is_flag=True, help="Draw a line between classes in the overlay.")
@click.option("--beside", is_flag=True, help="Show the frame as it came beside its overlay.")
@click.option(
    "--classes", help="Color these alone in the overlay, comma-separated: road,car [all]."
)
@click.option(
    "--preset",
    default="ultrafast",
    show_default=True,
    help="x264's: slower ones make smaller films (veryfast).",
)
@click.option(
    "--video-hardware",
    type=click.Choice(["cuda"]),
    help="Decode and encode films there [on the CPU].",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Frames a step [default: the file's own, else 1]."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")
@click.option(
    "--backend", default="auto", show_default=True, help="auto, onnxruntime, openvino or tensorrt."
)
@click.option(
    "--show", is_flag=True, help="Show the overlay in a window; q ends it, and live sources."
)
@click.option(
    "--watch", is_flag=True, help="SOURCE is a folder that grows: label its pictures as they come."
)
@click.option(
    "--policy",
    help="Of live sources, what the network is too slow for: drop-oldest, drop-newest or wait [wait for a pipe].",
)
@click.option(
    "--deadline-ms", type=float, help="Of live sources, drop frames that waited for longer."
)
@click.option(
    "--reconnect-s",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Give a silent source up after.",
)
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Run an engine that was never compared with the network.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Build an engine that does not fit this machine anew, of its .onnx.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
def command(
    source: tuple[str, ...],
    model: Path | None,
    out: Path | None,
    save: tuple[str, ...],
    ids: str,
    alpha: float,
    legend: bool,
    contours: bool,
    beside: bool,
    classes: str | None,
    preset: str,
    video_hardware: str | None,
    batch: int | None,
    device: str,
    backend: str,
    show: bool,
    watch: bool,
    policy: str | None,
    deadline_ms: float | None,
    reconnect_s: float,
    allow_unverified: bool,
    rebuild: bool,
    as_json: bool,
) -> int:
    """Label videos, images, folders, globs and live sources.

    \b
    fada infer drive.mp4
    fada infer 'frames/*.png' --save overlay,mask --ids labelId
    fada infer a.mp4 b.mp4 photos/ --out labeled --model model.onnx
    fada infer rtsp://camera/stream --deadline-ms 100
    fada infer 0 1 --show --save none
    fada infer incoming/ --watch --save mask
    ffmpeg … -f mpegts - | fada infer -

    Live are rtsp://, http://, a camera's number, - for a pipe, and a watched folder; Ctrl-C ends them, and their
    films are whole. Several streams or cameras are read at the same time, each into a film of its own.
    Exits with 1 if some frames could not be read; the others are done.
    """
    from fada_deploy.common.errors import DataError, UsageError
    from fada_deploy.common.files import numbered_dir
    from fada_deploy.common.runs import exported_model
    from fada_deploy.common.system import throughput_parallelism
    from fada_deploy.export.engines import rebuild_if_stale
    from fada_deploy.runtime.autotune import MIN_BATCHES
    from fada_deploy.runtime.overlay.style import OverlayStyle
    from fada_deploy.runtime.pipeline import Timings
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
    from fada_deploy.runtime.sources.open import open_sources, subfolders
    from fada_deploy.runtime.sources.streams import LiveOptions, LiveSource, is_live_address
    from fada_deploy.runtime.viewer import require_display
    from fada_deploy.runtime.writers.save import SaveOptions

    chosen = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    look = OverlayStyle(
        alpha,
        legend="auto" if legend else "none",
        contours=contours,
        side_by_side=beside,
        classes=chosen,
    )
    # Wrong wishes are said before anything is opened; its folder is made when all else is well.
    saving = SaveOptions(out or Path(), save, ids, look, preset, video_hardware)
    live = LiveOptions(policy, None if deadline_ms is None else deadline_ms / 1000, reconnect_s)
    if watch and (len(source) != 1 or is_live_address(source[0])):
        raise UsageError("--watch takes one folder, and nothing beside it")
    if not save and not show:
        raise UsageError("--save none without --show would leave nothing; give one of them")
    if show:
        require_display()
    if watch:
        sources = open_sources([FolderWatcher(source[0])])
    else:
        sources = open_sources(
            [LiveSource(each, live) if is_live_address(each) else each for each in source],
            hardware=video_hardware,
        )
    for folder in map(Path, source):
        if folder.is_dir() and (below := subfolders(folder)):
            log(
                f"note: {folder}: {below} folder{'s' * (below > 1)} in it not looked into; '{folder}/**/*' is all"
            )
    if rebuild and model is None:
        raise UsageError("--rebuild takes the engine that it is for; give --model FILE.engine")
    if model is not None:
        model = exported_model(model)
        if rebuild:
            rebuild_if_stale(model, device, log)
    for each in sources:
        if isinstance(each, LiveSource):
            each.on_trouble = log
    # One answer as soon as can be where somebody waits for it, many as soon as can be where all lie ready.
    live_ones = any(s.is_live for s in sources)
    # Of a film that does not say how long it is, as if it were long.
    expected = 0 if live_ones else sum(s.count() or MIN_BATCHES for s in sources)
    parallel = 1 if expected <= 1 else throughput_parallelism()
    with Segmenter(
        model,
        device=device,
        backend=backend,
        batch=batch,
        parallel=parallel,
        allow_unverified=allow_unverified,
    ) as segmenter:
        race = (
            _race(segmenter)
            if backend == "auto" and expected >= MIN_BATCHES * segmenter.batch
            else None
        )
        for line in segmenter.skipped:
            log(f"skipped {line}")
        log(f"model {segmenter.path}: {_described(segmenter)}")
        if out is None:
            saving = replace(saving, out=numbered_dir(Path("runs"), "infer"))
        timings, stopped = Timings(), threading.Event()
        stays = not live_ones and not any(each.is_video for each in sources)
        try:
            with (
                _stopping(sources, stopped) as stop,
                _window(show, stop, saving, segmenter, stays=stays) as seen,
            ):
                tally = _label(segmenter, sources, saving, timings, seen, live=live_ones)
        finally:
            _remove_if_empty(saving.out, made_here=out is None)
        if not tally.frames and (tally.failed or not stopped.is_set()):
            for line in tally.failed[1:] if not live_ones else ():
                log(f"failed: {line}")
            raise DataError(
                tally.failed[0]
                if tally.failed
                else f"{', '.join(s.name for s in sources)}: holds no frame"
            )
        summary = _summary(segmenter, sources, saving, tally, timings) | _counted(sources)
    if as_json:
        emit_json(summary)
    _say(summary, told=live_ones)
    if race is not None and race.fastest:
        took = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in race.seconds.items())
        then = (
            f"from now on --backend auto takes {race.fastest}"
            if race.kept
            else "the cache cannot be written"
        )
        log(f"measured beside it, ms a batch: {took}; {then}")
    return 1 if tally.failed else 0


def _race(segmenter: Segmenter) -> Autotuner | None:
    """Measure the other engines for the file beside the first film, where that was not done yet."""
    from fada_deploy.runtime.autotune import Autotuner, backends_to_measure

    rivals = backends_to_measure(segmenter.path, segmenter.backend)
    if not rivals:
        return None
    segmenter.backend = race = Autotuner(segmenter.path, segmenter.backend, rivals)
    return race


def _described(segmenter: Segmenter) -> str:
    metadata, backend = segmenter.metadata, segmenter.backend
    height, width = metadata.input_size_hw
    return (
        f"{metadata.label_space.num_classes} classes at {width}x{height}, {metadata.precision}, "
        f"{backend.name} on {backend.device}"
    )


@contextmanager
def _window(
    show: bool, stop: Callable[[], None], saving: SaveOptions, segmenter: Segmenter, *, stays: bool
) -> Iterator[Callable[[Result], None]]:
    """Yield what shows a result; a person who closes the window calls `stop`.

    A window that `stays` is there with the last picture until it is closed.
    """
    if not show:
        yield lambda result: None
        return
    from fada_deploy.runtime.overlay.renderer import OverlayRenderer
    from fada_deploy.runtime.viewer import Window

    drawing = OverlayRenderer(saving.look, segmenter.space)
    with Window("fada infer", on_close=stop) as window:
        last: Result | None = None

        def seen(result: Result) -> None:
            nonlocal last
            last = result
            if window.due:
                window.show(drawing.draw(result))

        yield seen
        if stays and last is not None and not (window.closed or window.failure):
            window.show(drawing.draw(last))
            log("all are labeled; q or Esc in the window ends this")
            with suppress(KeyboardInterrupt):
                window.wait()
    if window.failure:
        log(window.failure)


def _label(
    segmenter: Segmenter,
    sources: list[Source],
    saving: SaveOptions,
    timings: Timings,
    seen: Callable[[Result], None],
    *,
    live: bool,
) -> _Tally:
    """Run the pipeline to its end under a progress bar; say what fails in `live` sources at once."""
    from contextlib import closing

    from tqdm import tqdm

    from fada_deploy.common.errors import DataError
    from fada_deploy.runtime.result import Result
    from fada_deploy.runtime.writers.save import save_results

    counts = [s.count() for s in sources]
    total = None if None in counts else sum(c for c in counts if c)
    tally = _Tally()
    start = time.perf_counter()
    # disable=None: silent when stderr is no terminal.
    with (
        closing(save_results(segmenter, sources, saving, timings=timings)) as items,
        tqdm(total=total, unit="frame", disable=None, dynamic_ncols=True) as bar,
    ):
        for item in items:
            if isinstance(item, Result):
                tally.frames += 1
                bar.update()
                seen(item)
            elif isinstance(item, DataError):
                tally.failed.append(str(item))
                if live:
                    # Its end may be a week away.
                    log(f"failed: {item}")
    tally.seconds = time.perf_counter() - start
    return tally


@contextmanager
def _stopping(sources: list[Source], stopped: threading.Event) -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C or SIGTERM end live sources, so that their films are finished; the next stops at once.

    Yield what ends them without one; either sets `stopped`.
    """
    live: list[Any] = [source for source in sources if source.is_live]

    def stop() -> None:
        stopped.set()
        for source in live:
            source.stop()

    if not live or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.default_int_handler)
        log("\nfinishing; once more stops now, and what is not whole is lost")
        stop()

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, interrupted)
    log(
        f"{', '.join(source.name for source in live)}: until the end or Ctrl-C; what is labeled by then is whole"
    )
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _counted(sources: list[Source]) -> dict[str, Any]:
    """Return what live sources dropped and how often they were opened again."""
    from fada_deploy.runtime.sources.streams import LiveSource

    live = [source for source in sources if isinstance(source, LiveSource)]
    if not live:
        return {}
    counted = ("dropped", "late", "damaged", "reconnects")
    return {
        "live": {source.name: {what: getattr(source, what) for what in counted} for source in live}
    }


def _remove_if_empty(out: Path, *, made_here: bool) -> None:
    if made_here and out.is_dir() and not any(path.is_file() for path in out.rglob("*")):
        shutil.rmtree(out)


def _summary(
    segmenter: Segmenter,
    sources: list[Source],
    saving: SaveOptions,
    tally: _Tally,
    timings: Timings,
) -> dict[str, Any]:
    from fada_deploy.runtime.pipeline import STAGES
    from fada_deploy.runtime.writers.save import output_names

    height, width = segmenter.metadata.input_size_hw
    return {
        "model": str(segmenter.path),
        "skipped_models": list(segmenter.skipped),
        "backend": segmenter.backend.name,
        "device": segmenter.backend.device,
        "input_size": {"width": width, "height": height},
        "out": str(saving.out),
        "saved": {kind: str(saving.out / kind) for kind in saving.kinds if tally.frames},
        "names": dict(output_names(sources)),
        "frames": tally.frames,
        "failed": tally.failed,
        "seconds": round(tally.seconds, 3),
        "fps": round(tally.frames / tally.seconds, 2),
        "ms_per_frame": {
            name: round(1000 * timings.seconds[name] / max(1, tally.frames), 2)
            for name in STAGES
            if name in timings.seconds
        },
    }


def _say(summary: dict[str, Any], *, told: bool) -> None:
    for line in summary["failed"] if not told else ():
        log(f"failed: {line}")
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in summary["ms_per_frame"].items())
    log(
        f"{summary['frames']} frames in {summary['seconds']:.1f} s, {summary['fps']:.1f} fps; ms a frame: {stages}"
    )
    for name, live in summary.get("live", {}).items():
        log(f"{name}: {', '.join(f'{what} {number}' for what, number in live.items())}")
    if summary["failed"]:
        log(f"{len(summary['failed'])} failed, see above; the others are done")
    for name, key in summary["names"].items():
        # Where two share a name, which is which.
        if key not in (Path(name).name, Path(name).stem):
            log(f"{name} is {key} there")
    for path in summary["saved"].values():
        log(f"saved {path}")
