"""`fada data`: check a data set, or render one."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json, library_output_hidden, log
from fada_deploy.cli.options import (
    DATA_ROOT_OPTION,
    JSON_OPTION,
    SIZE,
    CommandGroup,
    FiniteFloat,
    cluster_options,
    ray_options,
)
from fada_deploy.common.system import usable_cores


@click.group("data", cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check a data set before training, or render one."""


@command.command("check", short_help="Read all files of a data set and report problems.")
@click.argument("name")
@DATA_ROOT_OPTION
@click.option(
    "--split", metavar="NAME", default="train", show_default=True, help="Split of the data set."
)
@click.option(
    "--label-space",
    metavar="NAME|TOML",
    help="Classes to count: the name of a label space or a .toml file. "
    "[default: cityscapes-16 for synthia, otherwise cityscapes-19]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    default=usable_cores,
    show_default="usable cores",
    help="Number of reading threads.",
)
@click.option(
    "--allow-ignored",
    type=FiniteFloat(0, 1),
    metavar="FRACTION",
    default=0.5,
    show_default=True,
    help="Largest accepted fraction of ignored label pixels.",
)
@ray_options
@JSON_OPTION
def check(
    *,
    name: str,
    data_root: Path | None,
    split: str,
    label_space: str | None,
    jobs: int,
    allow_ignored: float,
    as_json: bool,
    **ray: Any,
) -> int:
    """Read all files of a data set and report sizes, classes and problems.

    NAME is a data set (gta5, synthia, cityscapes, …) or the path of a .toml file. The class
    statistics are cached for `fada train`. The exit code is 1 if a file cannot be used, or if
    the labels as a whole are useless, for example because they use another encoding.
    """
    import time

    from fada_deploy.common.label_space import load_label_space
    from fada_deploy.data import open_dataset
    from fada_deploy.data.report import as_text, describe
    from fada_deploy.data.statistics import compute_statistics, save_statistics

    # The defaults are the label spaces of the paper.
    space = load_label_space(
        label_space or ("cityscapes-16" if name == "synthia" else "cityscapes-19")
    )
    usage = "fada data check {name} --data-root {root}"
    dataset = open_dataset(name, data_root, split=split, space=space, usage=usage)
    start = time.perf_counter()
    cluster = cluster_options(ray)
    with library_output_hidden() if cluster else nullcontext():
        statistics = compute_statistics(dataset, frames=True, jobs=jobs, cluster=cluster)
    seconds = time.perf_counter() - start
    path = save_statistics(dataset, statistics)
    report = describe(dataset, statistics, allowed_ignored=allow_ignored)
    if as_json:
        timing = {"seconds": round(seconds, 3), "jobs": None if cluster else jobs}
        emit_json(report | timing | {"statistics_file": None if path is None else str(path)})
    else:
        click.echo(as_text(report))
    log(
        f"read {len(dataset)} frames in {seconds:.1f} s ({len(dataset) / seconds:.1f} frames/s) "
        + ("on the cluster" if cluster else f"with {jobs} threads")
    )
    serious = any(problem["serious"] for problem in report["problems"])
    return 1 if report["unusable_files"] or serious else 0


@command.command("render", short_help="Render street scenes with exact labels as a data set.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("datasets"),
    show_default=True,
    help="Output folder; gta5/, cityscapes/ and clip/ are created in it.",
)
@click.option(
    "--source-scenes",
    type=click.IntRange(0),
    metavar="N",
    default=800,
    show_default=True,
    help="Number of labeled source scenes.",
)
@click.option(
    "--target-scenes",
    type=click.IntRange(0),
    metavar="N",
    default=800,
    show_default=True,
    help="Number of target scenes for training.",
)
@click.option(
    "--val-scenes",
    type=click.IntRange(0),
    metavar="N",
    default=200,
    show_default=True,
    help="Number of target scenes for validation.",
)
@click.option(
    "--video-seconds",
    type=FiniteFloat(0),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="Length of the target video; 0 writes no video.",
)
@click.option("--size", type=SIZE, default="320x192", show_default=True, help="Size of the images.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the rendered towns.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    default=usable_cores,
    show_default="usable cores",
    help="Number of rendering processes.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Allow a folder that is not empty; files of the same name are replaced.",
)
def render(
    *,
    out: Path,
    source_scenes: int,
    target_scenes: int,
    val_scenes: int,
    video_seconds: float,
    size: tuple[int, int],
    seed: int,
    jobs: int,
    force: bool,
) -> None:
    """Render street scenes: a source domain, a target domain and a video, with exact labels.

    The folders have the layouts of GTA5 and Cityscapes, so that `fada train` can read them.
    """
    from fada_deploy.common.errors import DataError, InterruptedRunError, UsageError
    from fada_deploy.synth.clip import check_video_size, write_clip
    from fada_deploy.synth.dataset import write_source, write_target

    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise UsageError(f"--out {out} is not empty; name another folder, or add --force")
    if video_seconds:
        check_video_size(size)
    target = out / "cityscapes"
    try:
        write_source(out / "gta5", source_scenes, jobs=jobs, size_hw=size, seed=seed)
        write_target(target, "train", target_scenes, jobs=jobs, size_hw=size, seed=seed)
        write_target(target, "val", val_scenes, jobs=jobs, size_hw=size, seed=seed)
        if video_seconds:
            write_clip(out / "clip", video_seconds, size_hw=size, seed=seed)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; repeat the command with --force to render all scenes again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); free some space, or name "
            "another folder with --out"
        ) from None
    log(
        f"{out}: wrote {source_scenes} source, {target_scenes} target and {val_scenes} validation "
        f"scenes and {video_seconds:g} s of video"
    )
    if source_scenes and target_scenes:
        log(
            f"next: FADA_DATASETS={shlex.quote(str(out))} fada train --src gta5 --tgt cityscapes "
            "--recipe small --stages source,adversarial"
        )
