"""`fada bench`: how fast models run on this machine, the bare network and the whole road beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.runtime.benchmark import BenchmarkResult


@click.command("bench")
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--backend",
    default="all",
    show_default=True,
    help="One of them; all: each that can run the file.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch", type=click.IntRange(1), help="Frames at once [the file's own, else 1].")
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Requests at once [1; with --source, as fada infer does].",
)
@click.option("--source", help="Video for the whole road: decode, network, overlay, H.264.")
@click.option("--frames", type=click.IntRange(1), help="Of it so many frames [all].")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=3.0,
    show_default=True,
    help="On the bare network.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it (.png, .svg or .pdf).")
@click.option(
    "--choose",
    is_flag=True,
    help="Let --backend auto take the fastest for such a model from now on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    models: tuple[Path, ...],
    backend: str,
    device: str,
    batch: int | None,
    parallel: int | None,
    source: str | None,
    frames: int | None,
    seconds: float,
    plot: Path | None,
    choose: bool,
    as_json: bool,
) -> None:
    """Measure MODELS on this machine [the newest export], every backend that can run them.

    \b
    fada bench
    fada bench model.onnx model.int8-cpu.onnx --source drive.mp4 --plot speed.png

    The bare network runs a batch that lies ready; the road reads the video, and writes an overlay film that is
    thrown away. Memory is the process's, after all that ran before.
    """
    from tqdm import tqdm

    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.runs import exported_model, newest_models
    from fada_deploy.common.system import throughput_parallelism
    from fada_deploy.runtime.backend_selection import runnable_backends, runnable_models
    from fada_deploy.runtime.backends import BACKENDS
    from fada_deploy.runtime.benchmark import measure
    from fada_deploy.runtime.sources.open import open_sources

    if plot is not None:
        if plot.suffix.lower() not in (".pdf", ".png", ".svg"):
            raise UsageError(f"--plot {plot}: writes .png, .svg or .pdf")
        require_package("matplotlib", "plot")
    if backend not in ("all", *BACKENDS):
        raise UsageError(f"no backend {backend!r}; there are all, {', '.join(BACKENDS)}")
    paths = [exported_model(path) for path in models] or runnable_models(newest_models())[:1]
    if not paths:
        raise UsageError("no model under runs/: type `fada export` first, or name one")
    film = None
    if source is not None:
        (film, *others) = open_sources([source])
        if others or not film.is_video or film.is_live:
            raise UsageError(f"--source {source}: takes one video file")
    jobs = [
        (p, b) for p in paths for b in (runnable_backends(p) if backend == "all" else [backend])
    ]
    if not jobs:
        raise UsageError(
            f"nothing installed here runs {', '.join(map(str, paths))}; see fada export --list"
        )
    found = []
    for path, name in jobs:
        log(f"measuring {path} on {name}")
        total = None if film is None else min(filter(None, (frames, film.count())), default=None)
        with tqdm(
            total=total, unit="frame", disable=None if film else True, file=sys.stderr
        ) as bar:
            found.append(
                measure(
                    path, backend=name, device=device, batch=batch,
                    parallel=parallel or (1 if film is None else throughput_parallelism()),
                    source=film, frames=frames, seconds=seconds, progress=bar.update,
                )
            )  # fmt: skip
    if as_json:
        emit_json([each.to_dict() for each in found])
    else:
        click.echo(table(found))
    if choose:
        _choose(found)
    if plot is not None:
        from fada_deploy.plots import plot_speed

        plot_speed(found, plot)
        log(f"plot: {plot}")


def _choose(found: list[BenchmarkResult]) -> None:
    """Record each file's fastest backend; engines have one alone."""
    from fada_deploy.runtime.backends.onnx_file import read_metadata
    from fada_deploy.runtime.backends.preference import remember_fastest

    for model in dict.fromkeys(each.model for each in found if each.model.endswith(".onnx")):
        best = max(
            (each for each in found if each.model == model), key=lambda each: each.model_only.fps
        )
        kept = remember_fastest(read_metadata(Path(model)), best.backend)
        log(f"{model}: --backend auto takes {best.backend} from now on ({kept})")


def table(found: list[BenchmarkResult]) -> str:
    """Return what was measured for people: a line a model and backend, and the road's stages below."""
    names = [f"{Path(each.model).name}, {each.backend}" for each in found]
    width = max(26, *map(len, names))
    head = f"{'':<{width}}  precision  input      at once  p50 ms    p95    p99     fps  CPU ms  warm-up ms"
    lines = [head]
    for name, each in zip(names, found, strict=True):
        bare = each.model_only
        lines.append(
            f"{name:<{width}}  {each.precision:<9}  {each.input:<9} "
            f"{f'{bare.parallel}x{bare.batch}':>8}  {bare.ms.p50:6.1f} {bare.ms.p95:6.1f} "
            f"{bare.ms.p99:6.1f} {bare.fps:7.1f} {bare.cpu_ms:7.1f} {each.warm_up_ms:11.0f}"
        )
    roads = [
        (name, each) for name, each in zip(names, found, strict=True) if each.end_to_end is not None
    ]
    if roads:
        stages = ("decode", "resize", "network", "upsample", "draw", "write", "others")
        head = f"{'the whole road, ms a frame':<{width}}     fps  of bare      " + "".join(
            f"{s:>9}" for s in stages
        )
        lines += ["", head]
    for name, each in roads:
        assert each.end_to_end is not None and each.ratio is not None
        ms, cpu = {s: v.p50 for s, v in each.end_to_end.ms.items()}, each.end_to_end.stage_cpu_ms
        speed = f"{each.end_to_end.fps:7.1f}  {each.ratio:7.2f}"
        lines.append(f"{name:<{width}} {speed}  p50 " + "".join(_cell(ms.get(s)) for s in stages))
        total = f"{each.end_to_end.cpu_ms:7.1f} in all "
        lines.append(f"{'':<{width}} {total}  CPU " + "".join(_cell(cpu.get(s)) for s in stages))
    if roads:
        lines += [
            "",
            "of bare: of the network's frames alone; CPU: its thread's time; others: codecs' and engines' threads",
        ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.1f}':>9}"
