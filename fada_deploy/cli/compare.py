"""`fada compare`: train several methods with the same budget and compare them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli import train
from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import DEVICE_OPTION, JSON_OPTION
from fada_deploy.cli.report import target_frames
from fada_deploy.cli.run_config import make_run_config
from fada_deploy.common.files import numbered_dir
from fada_deploy.common.runs import RUNS, TARGET_FRAMES
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.common.comparison_document import ComparisonDocument, MethodResult

# Options of `fada train` that differ between the runs of a comparison, or belong to one run.
_OF_ONE_RUN = {
    "method", "stages", "seed", "start", "out", "resume", "device", "as_json", "tensorboard",
    "ray", "ray_workers", "ray_cpus", "ray_gpus",
}  # fmt: skip

# Without cyclegan, which would train a translation for every run.
_STYLE = click.Option(
    ["--style"],
    metavar="NAME",
    help="Give half of the source frames the style of target frames: none, statistics (mean and "
    "deviation of the colors) or fourier (amplitude of low frequencies). [default: none]",
)


def _add_training_options(command: click.Command) -> click.Command:
    """Add the options of `fada train` that all runs of a comparison share."""
    shared = [p for p in train.command.params if p.name not in _OF_ONE_RUN]
    command.params[:0] = [_STYLE if p.name == "style" else p for p in shared]
    return command


def _parse_seeds(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise click.BadParameter(f"expected numbers such as 1,2,3, got {value!r}", ctx, param)
    return seeds


@_add_training_options
@click.command("compare")
@click.option(
    "--methods",
    default="source,none,fada,advent,selftrain,fada+selftrain",
    show_default=True,
    metavar="NAME,…",
    help="Methods to compare, or all: the names of `fada train --method`; source (the source "
    "alone, for the whole budget), none (no adversary), selftrain, st, cbst, crst (self-training "
    "in rounds), proda (its first stage), and a method with +selftrain.",
)
@click.option(
    "--seeds", default="1,2,3", show_default=True, callback=_parse_seeds, metavar="N,…",
    help="Seeds with which every method is trained.",
)  # fmt: skip
@click.option(
    "--budget",
    type=click.IntRange(2),
    metavar="STEPS",
    help="Iterations of each run: half on the source, half with the method. [default: those of the "
    "recipe]",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Runs that are trained at the same time. They divide the CPU cores, or are assigned to "
    "the GPUs in turn.",
)  # fmt: skip
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the runs, the page and the JSON document; an interrupted comparison in it is "
    "continued. [default: a new folder runs/compare-NNN]",
)
@DEVICE_OPTION
@JSON_OPTION
def command(
    methods: str,
    seeds: tuple[int, ...],
    budget: int | None,
    jobs: int,
    out: Path | None,
    device: str,
    config_file: Path | None,
    settings: tuple[str, ...],
    cache: float,
    cache_folder: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Train several methods on the same data with the same number of iterations; compare them.

    Each seed trains one source stage. All methods start from it, except source and cycada, which
    train their own. The result is a page with the IoU of every class, and a JSON document.

    \b
    fada compare --src gta5 --tgt cityscapes --methods fada,advent,clan --seeds 1,2,3
    fada compare --recipe deploy --tgt drives.toml --methods all --budget 600 -o comparison
    """
    from fada_deploy.common.errors import FadaError, MissingExtraError, UsageError
    from fada_deploy.common.files import lock
    from fada_deploy.data.cache import open_cache

    require_package("matplotlib", "plot")
    try:
        from fada_deploy.training.comparison import compare
        from fada_deploy.training.comparison_jobs import parse_methods
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.reporting.comparison_page import write_page
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    own = {"seed": "; use --seeds", "method": "; use --methods", "stages": "", "start": ""}
    for key in (text.partition("=")[0].strip() for text in settings):
        if key in own:
            raise UsageError(f"--set {key}: each run of a comparison has its own{own[key]}")
    torch_device = choose_device(device)
    # The stages and the method of each run are set later.
    options |= {"method": None, "stages": "source", "seed": None, "start": None}
    config = make_run_config(config_file, settings, options)
    names = parse_methods(methods, config.backbone)
    # Each run opens it by itself; this only refuses one that cannot be used.
    open_cache(cache, cache_folder)
    arguments = ["--cache", str(cache)] if cache else []
    if cache_folder is not None:
        arguments += ["--cache-folder", str(cache_folder)]
    is_new = out is None or not out.exists()
    out = out or numbered_dir(RUNS, "compare")
    out.mkdir(parents=True, exist_ok=True)
    log(f"comparing {', '.join(names)} in {out}")
    try:
        with lock(out):
            document = compare(
                config, out,
                methods=names, seeds=seeds, budget=budget, jobs=jobs, device=device,
                arguments=arguments,
            )  # fmt: skip
            frames = target_frames(config, out / TARGET_FRAMES)
            page = write_page(document, out, frames=frames, device=torch_device)
    except FadaError:
        # Do not leave an empty folder behind.
        with suppress(OSError):
            if is_new:
                out.rmdir()
        raise
    _print_result(document, page, as_json=as_json)
    return int(any(method.errors for method in document.methods))


def _print_result(document: ComparisonDocument, page: Path, *, as_json: bool) -> None:
    import msgspec

    from fada_deploy.common.tables import format_table
    from fada_deploy.training.reporting.comparison_page import describe_miou, describe_unlabeled

    rows = [
        (
            each.method, describe_miou(each), describe_unlabeled(each),
            *(_miou_of_seed(each, seed) for seed in document.seeds),
        )
        for each in document.methods
        if each.runs
    ]  # fmt: skip
    if rows:
        log(
            format_table(
                ("method", "mIoU %", "label-free %", *(f"seed {s}" for s in document.seeds)), rows
            )
        )
    for each in document.methods:
        for line in each.errors:
            log(f"error: {each.method}, {line}")
    log(f"wrote {page}")
    if as_json:
        emit_json({**msgspec.to_builtins(document), "page": str(page)})


def _miou_of_seed(method: MethodResult, seed: int) -> str:
    """Return the mIoU in percent, "" for a run that is not finished or not scored."""
    scores = [run.miou for run in method.runs if run.seed == seed and run.miou is not None]
    return f"{100 * scores[0]:.1f}" if scores else ""
