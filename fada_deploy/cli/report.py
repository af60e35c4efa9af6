"""`fada report`: one page about a run, or runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from fada_deploy.cli.console import log
from fada_deploy.common.runs import newest_run
from fada_deploy.common.system import require_package


@click.command("report")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page to write [RUN/report.html; report.html].",
)
@click.option(
    "--frames", type=click.IntRange(0), default=4, show_default=True, help="Target frames to show."
)
@click.option(
    "--ccd-frames",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Labeled frames of each domain for class center distances; 0 leaves them out.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(
    runs: tuple[Path, ...], out: Path | None, frames: int, ccd_frames: int, device: str
) -> None:
    """Write a page about RUNS that opens offline [the newest run].

    Scores, curves, and the same target frames after each stage; several runs are set side by side, on
    the frames of the first.
    """
    from fada_deploy.common.errors import FadaError, MissingExtraError

    require_package("matplotlib", "plot")
    try:
        from fada_deploy.training.data.datasets import open_target
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.reporting.report import REPORT, write_report
        from fada_deploy.training.run import load_config
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    from fada_deploy.common.label_space import load_label_space

    where = choose_device(device)
    paths = runs or (newest_run(),)
    out = out or (paths[0] / REPORT if len(paths) == 1 else Path(REPORT))
    config = load_config(paths[0])
    dataset = None
    if frames:
        try:
            space = load_label_space(config.label_space)
            # Frames of recordings lie there since training.
            kept = paths[0] / "target_frames"
            train_set, held_out = open_target(
                config, kept, space, log, lambda error: log(str(error))
            )
            dataset = held_out or train_set
        except FadaError as error:
            log(f"without pictures of the target: {error}")
    write_report(paths, out, frames=dataset, device=where, count=frames, ccd_frames=ccd_frames)
    log(f"report: {out}")
