"""`fada data`: check data sets, render data sets."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import SIZE
from fada_deploy.common.system import usable_cores


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check a data set before training on it, or render one."""


@command.command("check")
@click.argument("name")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where it lies [$FADA_DATASETS/NAME or datasets/NAME].",
)
@click.option("--split", default="train", show_default=True)
@click.option(
    "--label-space",
    help="Classes to count: a name or a .toml file [cityscapes-19; cityscapes-16 for synthia].",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=usable_cores,
    show_default="usable cores",
    help="Threads to read with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def check(
    *, name: str, root: Path | None, split: str, label_space: str | None, jobs: int, as_json: bool
) -> int:
    """Read every file of NAME, a data set or the path of a .toml file; say what it holds and what is bad.

    Pairs, sizes, each class's pixels and files, and each file that cannot be used, with the reason;
    without labels the frames alone. `fada train` takes the class statistics from here. Exits with 1
    when a file is bad.
    """
    import sys
    import time

    from tqdm import tqdm

    from fada_deploy.common.label_space import load_label_space
    from fada_deploy.data import open_dataset
    from fada_deploy.data.report import as_text, describe
    from fada_deploy.data.statistics import compute_statistics, save_statistics

    # What the paper's settings train on each.
    space = load_label_space(
        label_space or ("cityscapes-16" if name == "synthia" else "cityscapes-19")
    )
    dataset = open_dataset(name, root, split=split, space=space)
    began = time.perf_counter()
    with tqdm(total=len(dataset), desc="check", unit="file", disable=None, file=sys.stderr) as bar:
        statistics = compute_statistics(dataset, frames=True, jobs=jobs, progress=bar.update)
    seconds = time.perf_counter() - began
    kept = save_statistics(dataset, statistics, log)
    report = describe(dataset, statistics)
    if as_json:
        emit_json(report | {"seconds": round(seconds, 3), "jobs": jobs, "kept": kept and str(kept)})
    else:
        click.echo(as_text(report))
    log(f"read in {seconds:.1f} s, {len(dataset) / seconds:.1f} files/s with {jobs} threads")
    return 1 if report["bad"] else 0


@command.command("render")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("datasets"),
    show_default=True,
    help="Folder to write gta5/, cityscapes/ and clip/ into.",
)
@click.option(
    "--source",
    type=click.IntRange(0),
    default=800,
    show_default=True,
    help="Source scenes, with labels.",
)
@click.option(
    "--target",
    type=click.IntRange(0),
    default=800,
    show_default=True,
    help="Target scenes to adapt to.",
)
@click.option(
    "--val",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Target scenes to score on.",
)
@click.option(
    "--clip",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Length of the video; 0 writes none.",
)
@click.option(
    "--size", type=SIZE, default="320x192", show_default=True, help="Size of the pictures."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Other seeds give other towns.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=usable_cores,
    show_default="usable cores",
    help="Processes to render with.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write into a folder that is not empty; files of the same name are replaced, others stay.",
)
def render(
    *,
    out: Path,
    source: int,
    target: int,
    val: int,
    clip: float,
    size: tuple[int, int],
    seed: int,
    jobs: int,
    force: bool,
) -> None:
    """Render a source, a target and a clip: streets with exact labels.

    They are laid out as GTA5 and Cityscapes are, so that `fada train` finds them.
    """
    from fada_deploy.common.errors import DataError, UsageError
    from fada_deploy.synth.clip import check_video_size, write_clip
    from fada_deploy.synth.dataset import write_source, write_target

    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise UsageError(
            f"{out} exists and is not empty; name another folder with --out, or add --force"
        )
    if clip:
        check_video_size(size)
    try:
        write_source(out / "gta5", source, jobs=jobs, size_hw=size, seed=seed)
        write_target(out / "cityscapes", "train", target, jobs=jobs, size_hw=size, seed=seed)
        write_target(out / "cityscapes", "val", val, jobs=jobs, size_hw=size, seed=seed)
        if clip:
            write_clip(out / "clip", clip, size_hw=size, seed=seed)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); free space or name another --out"
        ) from None
    log(
        f"{out}: {source} source, {target} target and {val} validation scenes, {clip:g} s of video; "
        f"next: FADA_DATASETS={shlex.quote(str(out))} fada train --src gta5 --tgt cityscapes --preset small"
    )
