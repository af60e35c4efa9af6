"""`fada data`: render data sets."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fada_deploy.cli.options import SIZE, log
from fada_deploy.common.cores import usable_cores


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Render data sets."""


@command.command("render")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("datasets"),
    show_default=True,
    help="Folder to write gta5/, cityscapes/ and clip/ into.",
)
@click.option(
    "--source", type=click.IntRange(0), default=800, show_default=True, help="Source scenes, with labels."
)
@click.option(
    "--target", type=click.IntRange(0), default=800, show_default=True, help="Target scenes to adapt to."
)
@click.option("--val", type=click.IntRange(0), default=200, show_default=True, help="Target scenes to score on.")
@click.option(
    "--clip",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Length of the video; 0 writes none.",
)
@click.option("--size", type=SIZE, default="320x192", show_default=True, help="Size of the pictures.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other seeds give other towns.")
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
    from tqdm import tqdm

    from fada_deploy.common.errors import DataError, UsageError
    from fada_deploy.synth.clip import FPS, check_video_size, write_clip
    from fada_deploy.synth.dataset import write_source, write_target

    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise UsageError(f"{out} exists and is not empty; name another folder with --out, or add --force")
    if clip:
        check_video_size(size)
    total = source + target + val + round(clip * FPS)
    try:
        with tqdm(total=total, desc="render", unit="frame", disable=None) as bar:
            common = {"size_hw": size, "seed": seed, "progress": bar.update}
            write_source(out / "gta5", source, jobs=jobs, **common)
            write_target(out / "cityscapes", "train", target, jobs=jobs, **common)
            write_target(out / "cityscapes", "val", val, jobs=jobs, **common)
            if clip:
                write_clip(out / "clip", clip, **common)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); free space or name another --out"
        ) from None
    log(
        f"{out}: {source} source, {target} target and {val} validation scenes, {clip:g} s of video; "
        f"next: FADA_DATASETS={shlex.quote(str(out))} fada train --src gta5 --tgt cityscapes"
    )
