"""`fada report`: write an HTML report of one run, or compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import log
from fada_deploy.cli.options import DEVICE_OPTION
from fada_deploy.common.runs import TARGET_FRAMES, newest_run
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.data.base import FrameDataset
    from fada_deploy.training.config import RunConfig


@click.command("report")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="HTML file to write. [default: RUN/report.html, or report.html for several runs]",
)
@click.option(
    "--frames",
    type=click.IntRange(0),
    metavar="N",
    default=4,
    show_default=True,
    help="Number of target frames to show with the predictions of each stage.",
)
@click.option(
    "--ccd-frames",
    type=click.IntRange(0),
    metavar="N",
    default=20,
    show_default=True,
    help="Number of labeled frames per domain for the Class Center Distance; 0 omits it.",
)
@DEVICE_OPTION
def command(
    runs: tuple[Path, ...], out: Path | None, frames: int, ccd_frames: int, device: str
) -> None:
    """Write an HTML report of RUNS that opens offline. [default: the newest run]

    The report shows scores, loss curves and the predictions of each stage on the same target
    frames. Several runs are compared side by side, on the target frames of the first one.

    \b
    fada report
    fada report runs/gta5-cityscapes-resnet101-001 runs/gta5-cityscapes-resnet101-002
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError

    if out is not None and out.suffix.lower() != ".html":
        raise UsageError(f"--out must end with .html, got {out}")
    require_package("matplotlib", "plot")
    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.reporting.report import REPORT, write_report
        from fada_deploy.training.run_files import load_config
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    torch_device = choose_device(device)
    paths = runs or (newest_run(),)
    out = out or (paths[0] / REPORT if len(paths) == 1 else Path(REPORT))
    dataset = None
    if frames:
        # Training has already extracted the frames of recordings to this folder.
        dataset = target_frames(load_config(paths[0]), paths[0] / TARGET_FRAMES)
    write_report(
        paths, out, frames=dataset, device=torch_device, count=frames, ccd_frames=ccd_frames
    )
    log(f"wrote {out}")


def target_frames(config: RunConfig, folder: Path) -> FrameDataset | None:
    """Open the held-out target frames, or else the training frames; None on an error.

    `folder` has the extracted frames of recordings.
    """
    from fada_deploy.common.errors import FadaError
    from fada_deploy.training.data.datasets import open_target
    from fada_deploy.training.model_setup import open_label_space

    try:
        space = open_label_space(config)
        train_set, held_out = open_target(
            config, folder, space, lambda error: log(f"warning: {error}")
        )
    except FadaError as error:
        log(f"warning: the page will show no target frames: {error}")
        return None
    return held_out or train_set
