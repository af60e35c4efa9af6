"""`fada adapt`: continue from an adapted network on a new target."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import (
    DEVICE_OPTION,
    EGO_MASK_OPTION,
    JSON_OPTION,
    RUN_OPTION,
    TGT_ROOT_OPTION,
    FiniteFloat,
    cache_options,
)
from fada_deploy.cli.training_output import print_result, resumable, write_run_report


@click.command("adapt")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--tgt",
    required=True,
    metavar="NAME|TOML|PATH",
    help="New unlabeled target: a data set, a .toml file, a video, or a folder of recordings.",
)
@TGT_ROOT_OPTION
@EGO_MASK_OPTION
@click.option(
    "--source-free",
    is_flag=True,
    help="Learn from the new target alone, for a machine without the source data.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    metavar="N",
    help="Number of training iterations. [default: that of the stage selftrain of the model]",
)
@click.option(
    "--start-weight",
    type=FiniteFloat(0, 1),
    metavar="FRACTION",
    help="The result is a weighted average of MODEL and the trained network; this is the weight of "
    "MODEL. A higher weight preserves more accuracy on the old target. [default: 0.5]",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Seed. [default: that of the model]"
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, for example selftrain.lr=1e-4; may be repeated.",
)
@cache_options
@DEVICE_OPTION
@RUN_OPTION
@JSON_OPTION
def command(
    model: Path,
    tgt: str,
    source_free: bool,
    iterations: int | None,
    start_weight: float | None,
    settings: tuple[str, ...],
    cache: float,
    cache_folder: Path | None,
    device: str,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Adapt a trained network to a new target, for example another city or dusk.

    MODEL is builtin, a run, a stage of a run, or a weights file. Its network continues with the
    stage selftrain on the frames of --tgt, with the sources and settings that it was trained with.
    The result is a new run; MODEL does not change. The same command with --out RUN continues an
    interrupted run.

    \b
    fada adapt builtin --tgt drive.mp4
    fada adapt runs/rendered-drives-efficientnet-lite0-001 --tgt dusk/
    fada adapt model.safetensors --tgt dusk.mp4 --source-free

    Afterwards both networks are compared on the new target and, except for builtin, on the old one,
    by their mIoU where there are labels, and otherwise by the fraction of equal labels.
    """
    from dataclasses import asdict

    from fada_deploy.common.errors import InterruptedRunError, MissingExtraError
    from fada_deploy.data.cache import open_cache

    try:
        from fada_deploy.training.adapt import (
            adaptation_config,
            adaptation_folder,
            compare_targets,
            comparison_table,
        )
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.run import train
        from fada_deploy.training.settings import CLI_REMEDY
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    where = choose_device(device)
    config = adaptation_config(
        model, tgt=tgt, source_free=source_free, iterations=iterations,
        start_weight=start_weight, options=options, settings=settings, remedy=CLI_REMEDY,
    )  # fmt: skip
    frames = open_cache(cache, cache_folder)
    run = adaptation_folder(config, out)
    try:
        with resumable(run, where, less_memory="--set selftrain.accumulate=2"):
            result = train(config, run, device=where, cache=frames)
            comparisons = compare_targets(run, config, where)
    except InterruptedRunError:
        raise InterruptedRunError(
            f"stopped; to continue, repeat the command with --out {shlex.quote(str(run))}"
        ) from None
    write_run_report(result, where)
    log(comparison_table(comparisons))
    if as_json:
        emit_json(
            {
                "run": str(run),
                "scores": result.scores,
                "targets": [asdict(c) for c in comparisons],
                "bad_files": list(result.bad_files),
            }
        )
    return print_result(result, as_json=False)
