"""`fada bench`: measure the speed of models on this machine, model-only and end-to-end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import DEVICE_OPTION, JSON_OPTION, FiniteFloat
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fada_deploy.runtime.benchmark import BenchmarkResult
    from fada_deploy.runtime.sources.base import Source

_PLOT_SUFFIXES = (".pdf", ".png", ".svg")
_STAGES = ("decode", "resize", "network", "upsample", "draw", "write", "others")


@click.command("bench")
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "more_models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Same as MODELS; may be repeated.",
)
@click.option(
    "--backend",
    default="all",
    show_default=True,
    metavar="NAME",
    help="Backend to measure; all: every backend that can run the file.",
)
@DEVICE_OPTION
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1),
    help="Frames per batch. [default: the fixed batch size of the model, or 1]",
)
@click.option(
    "--parallel",
    metavar="N",
    type=click.IntRange(1),
    help="Batches that run at the same time. [default: 1; with --video as many as "
    "`fada infer` uses]",
)
@click.option("--video", metavar="FILE", help="Video file for the end-to-end measurement.")
@click.option(
    "--frames",
    metavar="N",
    type=click.IntRange(1),
    help="Number of frames of the end-to-end measurement; needs --video. [default: all]",
)
@click.option(
    "--seconds",
    metavar="SECONDS",
    type=FiniteFloat(0.1),
    default=3.0,
    show_default=True,
    help="Duration of the model-only measurement.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Plot the throughput (.png, .svg or .pdf)."
)
@click.option(
    "--remember",
    is_flag=True,
    help="Remember the fastest backend of each model, so that --backend auto uses it.",
)
@JSON_OPTION
def command(
    models: tuple[Path, ...],
    more_models: tuple[Path, ...],
    backend: str,
    device: str,
    batch: int | None,
    parallel: int | None,
    video: str | None,
    frames: int | None,
    seconds: float,
    plot: Path | None,
    remember: bool,
    as_json: bool,
) -> None:
    """Measure the speed of MODELS on this machine. [default: the newest export]

    \b
    fada bench
    fada bench model.onnx model.int8-cpu.onnx --video drive.mp4 --plot speed.png

    Model-only is inference alone, on a batch in memory. End-to-end is the whole pipeline: decode,
    resize, inference, upsample, draw and encode an overlay video, which is then discarded.
    """
    from fada_deploy.common.system import throughput_parallelism
    from fada_deploy.runtime.benchmark import benchmark

    if plot is not None:
        _check_plot(plot)
    if frames is not None and video is None:
        log("warning: --frames has no effect without --video")
    jobs = _jobs((*models, *more_models), backend, device)
    source = None if video is None else _open_video(video)
    results = []
    for path, name in jobs:
        log(f"measuring {path} with {name}")
        results.append(
            benchmark(
                path,
                backend=name,
                device=device,
                batch=batch,
                parallel=parallel or (1 if source is None else throughput_parallelism()),
                video=source,
                frames=frames,
                seconds=seconds,
            )
        )
    if as_json:
        emit_json([result.to_dict() for result in results])
    else:
        click.echo(format_results(results))
    if remember:
        _remember(results)
    if plot is not None:
        from fada_deploy.plots import plot_speed

        plot_speed(results, plot)
        log(f"plot: {plot}")


def _check_plot(plot: Path) -> None:
    from fada_deploy.common.errors import UsageError

    if plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise UsageError(f"--plot must end with {', '.join(_PLOT_SUFFIXES)}, got {plot}")
    require_package("matplotlib", "plot")


def _jobs(models: Sequence[Path], backend: str, device: str) -> list[tuple[Path, str]]:
    """Return the pairs of model and backend to measure; raise an error if there are none."""
    from fada_deploy.common.errors import ModelError, UsageError
    from fada_deploy.common.runs import exported_model, newest_models
    from fada_deploy.runtime.backend_selection import runnable_backends, runnable_models
    from fada_deploy.runtime.backends import BACKENDS

    if backend not in ("all", *BACKENDS):
        raise UsageError(f"--backend must be one of all, {', '.join(BACKENDS)}, got {backend!r}")
    paths = [exported_model(path) for path in models] or runnable_models(newest_models())[:1]
    if not paths:
        raise ModelError("no exported model under runs/; run `fada export` first, or name a model")
    jobs = [
        (path, name)
        for path in paths
        for name in (runnable_backends(path, device) if backend == "all" else [backend])
    ]
    if not jobs:
        raise UsageError(
            f"no installed backend can run {', '.join(map(str, paths))}; "
            "see `fada export --list` for what to install"
        )
    return jobs


def _open_video(video: str) -> Source:
    from fada_deploy.common.errors import UsageError
    from fada_deploy.runtime.sources.open import open_sources

    source, *others = open_sources([video])
    if others or not source.is_video or source.is_live:
        raise UsageError(f"--video must be one video file, got {video}")
    return source


def _remember(results: Sequence[BenchmarkResult]) -> None:
    """Remember the fastest backend of each ONNX file on the CPU.

    Engines have only one backend, and on a GPU ONNX files have one.
    """
    from fada_deploy.runtime.backends.onnx_file import read_metadata
    from fada_deploy.runtime.backends.preference import remember_fastest

    for model in dict.fromkeys(r.model for r in results if r.model.endswith(".onnx")):
        on_cpu = [r for r in results if r.model == model and r.device == "cpu"]
        if len({r.backend for r in on_cpu}) < 2:
            log(
                f"warning: --remember has no effect on {model}: fewer than two backends were "
                "measured on the CPU"
            )
            continue
        fastest = max(on_cpu, key=lambda result: result.model_only.fps)
        cache = remember_fastest(read_metadata(Path(model)), fastest.backend)
        log(f"{model}: --backend auto now uses {fastest.backend} (remembered in {cache})")


def format_results(results: Sequence[BenchmarkResult]) -> str:
    """Return the table of model-only results and, if measured, of end-to-end results."""
    text = _model_only_table(results)
    if any(result.end_to_end is not None for result in results):
        text += f"\n\n{_end_to_end_table(results)}"
    return text


def _model_only_table(results: Sequence[BenchmarkResult]) -> str:
    from fada_deploy.common.tables import format_table

    header = (
        *("model-only", "precision", "input", "parallel", "batch"),
        *("p50 ms", "p95 ms", "p99 ms", "frames/s", "CPU ms/frame", "warm-up ms"),
    )
    rows = []
    for result in results:
        timing = result.model_only
        rows.append(
            (
                _title(result),
                result.precision,
                result.input,
                str(timing.parallel),
                str(timing.batch),
                *(f"{ms:.1f}" for ms in (timing.ms.p50, timing.ms.p95, timing.ms.p99)),
                f"{timing.fps:.1f}",
                f"{timing.cpu_ms:.1f}",
                f"{result.warm_up_ms:.0f}",
            )
        )
    return format_table(header, rows, align="lllrrrrrrrr")


def _end_to_end_table(results: Sequence[BenchmarkResult]) -> str:
    from fada_deploy.common.tables import format_table

    rows = []
    for result in results:
        timing = result.end_to_end
        if timing is None:
            continue
        median = {name: percentiles.p50 for name, percentiles in timing.ms.items()}
        speed = (f"{timing.fps:.1f}", f"{result.ratio:.2f}")
        total = f"{timing.cpu_ms:.1f}"
        rows.append((_title(result), *speed, "p50", "", *_stage_cells(median)))
        rows.append(("", "", "", "CPU", total, *_stage_cells(timing.stage_cpu_ms)))
    header = ("end-to-end", "frames/s", "of model-only", "ms/frame", "total", *_STAGES)
    note = (
        "of model-only: end-to-end throughput divided by model-only throughput.\n"
        "CPU: CPU time of the threads of each stage. others: CPU time of the threads of codecs and "
        "backends."
    )
    return f"{format_table(header, rows, align='lrrl' + 'r' * (1 + len(_STAGES)))}\n\n{note}"


def _title(result: BenchmarkResult) -> str:
    return f"{Path(result.model).name}, {result.backend}"


def _stage_cells(ms: dict[str, float]) -> list[str]:
    return [f"{ms[stage]:.1f}" if stage in ms else "" for stage in _STAGES]
