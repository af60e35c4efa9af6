"""Turn the arguments of `fada infer` into output options, sources and a model."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.cli.console import log, warn_about_unused

if TYPE_CHECKING:
    from fada_deploy.runtime.autotune import Autotuner
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.runtime.sources.base import Source
    from fada_deploy.runtime.writers.finished import FinishedSources
    from fada_deploy.runtime.writers.save import SaveOptions

# Repeated here so that `--help` imports no library; a test compares them with the library.
KINDS = ("overlay", "mask", "mask-video", "color", "color-video", "npz", "json")
LEGEND_POSITIONS = ("auto", "top-left", "top-right", "bottom-left", "bottom-right", "none")
DROP_POLICIES = ("drop-oldest", "drop-newest", "wait")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of `fada infer`, as they are documented in its options."""

    source: tuple[str, ...]
    model: Path | None
    out: str | None
    save: str
    ids: str
    alpha: float
    legend: str
    contours: bool
    side_by_side: bool
    classes: str | None
    x264_preset: str
    video_hardware: str | None
    device: str
    backend: str
    batch: int | None
    show: bool
    watch: bool
    drop_policy: str | None
    deadline_ms: float | None
    reconnect_timeout: float
    allow_unverified: bool
    rebuild: bool
    recursive: bool
    resume: bool
    ray: str | None
    ray_workers: int | None
    ray_cpus: int
    ray_gpus: float
    chunk_frames: int | None
    as_json: bool
    # Parameters that were named on the command line.
    named: frozenset[str] = frozenset()

    @property
    def out_path(self) -> Path | None:
        """The path of --out; None if there is none, or if it is an address."""
        return None if self.out is None or self.is_address else Path(self._local_out)

    @property
    def is_address(self) -> bool:
        """Whether --out is an address such as s3://bucket/folder."""
        return "://" in self._local_out

    @property
    def _local_out(self) -> str:
        return (self.out or "").removeprefix("file://")


def save_options(arguments: Arguments) -> SaveOptions:
    """Return the output options; without --out the folder is set later."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.runtime.overlay.style import OverlayStyle
    from fada_deploy.runtime.writers.save import SaveOptions

    kinds: tuple[str, ...] = ()
    if arguments.save != "none":
        kinds = _names(arguments.save)
        if not kinds:
            raise UsageError(
                f"--save {arguments.save!r} names no kind of output; "
                f"choose from {', '.join(KINDS)}, or none"
            )
    elif not arguments.show:
        raise UsageError("--save none needs --show; otherwise there is no output")
    style = OverlayStyle(
        alpha=arguments.alpha,
        legend=arguments.legend,
        contours=arguments.contours,
        side_by_side=arguments.side_by_side,
        classes=_names(arguments.classes or ""),
    )
    if arguments.is_address and arguments.ray is None:
        raise UsageError(f"--out {arguments.out}: an address needs --ray; or name a folder")
    out = arguments.out_path
    file = None
    if out is not None and _is_file_name(out):
        file, out = out, out.parent
    return SaveOptions(
        out=out or Path("runs/infer-NNN"),
        kinds=kinds,
        ids=arguments.ids,
        style=style,
        x264_preset=arguments.x264_preset,
        hardware=arguments.video_hardware,
        file=file,
        tree=Path(arguments.source[0]) if arguments.recursive else None,
    )


def _is_file_name(path: Path) -> bool:
    """Return whether a path is a file, or has the suffix of a known file type and is no folder."""
    return path.is_file() or (
        not path.is_dir() and mimetypes.guess_type(path.name, strict=False)[0] is not None
    )


def _names(text: str) -> tuple[str, ...]:
    """Return the distinct names in a comma-separated list."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def open_input(arguments: Arguments) -> list[Source]:
    """Check the arguments that concern sources, and open the sources."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.runtime.sources.addresses import is_live_address
    from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
    from fada_deploy.runtime.sources.open import open_sources
    from fada_deploy.runtime.sources.stream_reader import LiveOptions
    from fada_deploy.runtime.sources.streams import LiveSource
    from fada_deploy.runtime.viewer import require_display

    deadline_s = None if arguments.deadline_ms is None else arguments.deadline_ms / 1000
    live = LiveOptions(arguments.drop_policy, deadline_s, arguments.reconnect_timeout)
    specs = arguments.source
    if arguments.rebuild and arguments.model is None:
        raise UsageError("--rebuild needs the engine to rebuild; use --model FILE.engine")
    for spec in specs:
        if spec.strip(",") in (*KINDS, "none") and not Path(spec).exists():
            raise UsageError(
                f"{spec}: no such file or folder; for several kinds of output, write no space "
                f"after the comma: --save overlay,{spec.strip(',')}"
            )
    if arguments.recursive and (len(specs) != 1 or not Path(specs[0]).is_dir()):
        found = f"{len(specs)} inputs" if len(specs) != 1 else f"{specs[0]}, which is no folder"
        raise UsageError(f"--recursive takes exactly one folder, got {found}")
    if arguments.watch and arguments.recursive:
        raise UsageError("--watch does not search subfolders; leave out --recursive")
    if arguments.watch and (len(specs) != 1 or is_live_address(specs[0])):
        raise UsageError("--watch takes exactly one folder")
    if arguments.watch and Path(specs[0]).is_file():
        raise UsageError(f"{specs[0]} is a file; --watch needs a folder")
    path = arguments.out_path
    if arguments.resume and not arguments.is_address and (path is None or _is_file_name(path)):
        raise UsageError("--resume needs the folder of the interrupted run; use --out FOLDER")
    if arguments.show:
        require_display()
    if arguments.watch:
        return open_sources([FolderWatcher(specs[0])])
    sources = open_sources(
        [LiveSource(spec, live) if is_live_address(spec) else spec for spec in specs],
        hardware=arguments.video_hardware,
        recursive=arguments.recursive,
    )
    if not arguments.recursive:
        _mention_subfolders(specs)
        return sources
    inputs = [s for s in sources if not _is_output(Path(s.name).resolve(), arguments.out_path)]
    if not inputs:
        raise UsageError(f"{specs[0]}: all of its files are outputs of `fada infer`")
    if count := len(sources) - len(inputs):
        log(
            f"{specs[0]}: {count} file{'s' * (count > 1)} or folder{'s' * (count > 1)} left out, "
            "because outputs of `fada infer` are written there"
        )
    return inputs


def _mention_subfolders(specs: Sequence[str]) -> None:
    """Log the number of subfolders that are not searched; errors are those of the sources."""
    from fada_deploy.common.errors import DataError
    from fada_deploy.runtime.sources.open import subfolders

    alone = " with this folder alone" if len(specs) > 1 else ""
    for spec in specs:
        # Path.is_dir raises if the folder above cannot be read.
        if not os.path.isdir(spec):
            continue
        with suppress(DataError):
            if count := subfolders(Path(spec)):
                log(
                    f"{spec}: {count} subfolder{'s' * (count > 1)} not searched; "
                    f"to include them use --recursive{alone}"
                )


def _is_output(path: Path, out: Path | None) -> bool:
    """Return whether a file or folder is an output of this or an earlier run."""
    if out is not None:
        return any(path.is_relative_to((out / kind).resolve()) for kind in KINDS)
    runs = Path("runs").resolve()
    parts = path.relative_to(runs).parts if path.is_relative_to(runs) else ()
    return bool(parts) and parts[0].startswith("infer-")


# Options that only some outputs or sources use.
_OVERLAY_OPTIONS = ("alpha", "legend", "contours", "side_by_side", "classes")
_LIVE_OPTIONS = ("drop_policy", "deadline_ms", "reconnect_timeout")


def warn_about_ignored_options(
    arguments: Arguments, kinds: Sequence[str], sources: Iterable[Source]
) -> None:
    """Print a warning for each named option that has no effect on these outputs and sources."""
    from fada_deploy.common.runs import exported_model
    from fada_deploy.runtime.backends.engine_file import ENGINE_SUFFIXES
    from fada_deploy.runtime.sources.streams import LiveSource

    unused: dict[str, str] = {}
    if "overlay" not in kinds and not arguments.show:
        unused |= dict.fromkeys(_OVERLAY_OPTIONS, "no overlay is drawn")
    if not {"mask", "mask-video"} & set(kinds):
        unused["ids"] = "it needs --save mask or mask-video"
    if not any(isinstance(source, LiveSource) for source in sources):
        unused |= dict.fromkeys(_LIVE_OPTIONS, "no source is a stream, a camera or standard input")
    if any(source.is_live for source in sources):
        unused["resume"] = "live sources have no end"
    elif not kinds:
        unused["resume"] = "nothing is saved"
    if arguments.ray is None:
        unused["chunk_frames"] = "it needs --ray"
    has_video = any(source.is_video for source in sources)
    if not has_video or not {"overlay", "color-video"} & set(kinds):
        unused["x264_preset"] = "no video of overlays or colors is written"
    elif arguments.video_hardware:
        unused["x264_preset"] = "the video hardware encodes"
    if not has_video:
        unused["video_hardware"] = "no source is a video"
    if arguments.model is not None:
        model = exported_model(arguments.model)
        if model.suffix not in ENGINE_SUFFIXES:
            unused["rebuild"] = unused["allow_unverified"] = f"{model} is not an engine"
    warn_about_unused(unused, arguments.named)


def open_finished(
    arguments: Arguments, segmenter: Segmenter, output: SaveOptions, sources: Sequence[Source]
) -> FinishedSources | None:
    """Return the sources that `--resume` leaves out; None if the run cannot be resumed."""
    from fada_deploy.runtime.writers.finished import FinishedSources

    if output.file is not None or not output.kinds or any(s.is_live for s in sources):
        return None
    finished = FinishedSources(segmenter, output, sources, resume=arguments.resume)
    if names := finished.names(sources):
        log(f"{len(names)} of {len(sources)} sources were finished before")
    return finished


def open_model(arguments: Arguments, frames: int) -> tuple[Segmenter, list[str]]:
    """Open the model; return it, and one line per newer model that cannot run here.

    `frames` is the expected number of frames.
    """
    from fada_deploy.cli.newest_model import open_newest
    from fada_deploy.common.runs import exported_model, warn_if_outdated
    from fada_deploy.common.system import throughput_parallelism
    from fada_deploy.runtime.segmenter import Segmenter

    # One request at a time has the lowest latency, several in parallel the highest throughput.
    parallel = 1 if frames <= 1 else throughput_parallelism()
    options: dict[str, Any] = {
        "device": arguments.device,
        "backend": arguments.backend,
        "batch": arguments.batch,
        "parallel": parallel,
        "allow_unverified": arguments.allow_unverified,
    }
    skipped: list[str] = []
    if arguments.model is None:
        segmenter, skipped = open_newest(**options)
        warn_if_outdated(segmenter.path, segmenter.metadata.provenance)
        return segmenter, skipped
    model = exported_model(arguments.model)
    if arguments.rebuild:
        from fada_deploy.export.engines import rebuild_if_stale

        rebuild_if_stale(model, arguments.device)
    segmenter = Segmenter(model, **options)
    warn_if_outdated(segmenter.path, segmenter.metadata.provenance)
    return segmenter, skipped


def expected_frames(sources: list[Source]) -> int:
    """Return the number of frames in files, 0 for live sources.

    A video of unknown length counts as one that is long enough for autotuning.
    """
    from fada_deploy.runtime.autotune import MIN_BATCHES
    from fada_deploy.runtime.writers.inference import total_frames

    if any(source.is_live for source in sources):
        return 0
    return total_frames(sources, if_unknown=MIN_BATCHES) or 0


def start_autotuner(arguments: Arguments, segmenter: Segmenter, frames: int) -> Autotuner | None:
    """Measure the other backends during the run, if the input is long enough."""
    from fada_deploy.runtime.autotune import MIN_BATCHES, Autotuner, backends_to_measure

    if arguments.backend != "auto":
        return None
    if frames < MIN_BATCHES * segmenter.batch:
        return None
    others = backends_to_measure(segmenter.path, segmenter.backend)
    if not others:
        return None
    autotuner = Autotuner(segmenter.path, segmenter.backend, others)
    segmenter.backend = autotuner
    return autotuner
