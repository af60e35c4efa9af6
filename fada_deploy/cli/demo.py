"""`fada demo`: adapt a network to a real video with the commands that a user types."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import click

from fada_deploy.cli.console import log
from fada_deploy.cli.options import DEVICE_OPTION
from fada_deploy.common.system import require_package
from fada_deploy.common.tables import format_table

# A real video without labels, and a training that takes minutes on two CPU cores.
VIDEO = Path(__file__).parents[1] / "samples" / "street.mp4"
ITERATIONS = 30
BATCH = 3
RENDERED_SCENES = 300
_SHEET_FRAMES = 3


@click.command("demo")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for the overlay videos and the contact sheet. [default: demo-NNN]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the training.",
)
@DEVICE_OPTION
def command(out: Path | None, seed: int, device: str) -> None:
    """Adapt the built-in model to a real video, and compare it before and after.

    Segments a short highway video with the built-in model. Then adapts the model to that video,
    without labels of it: it learns from rendered scenes with labels and from the frames of the
    video. Exports the result and segments the video again. Takes minutes on two CPU cores. Writes
    two overlay videos and a contact sheet. The run is written to runs/demo-NNN.
    """
    for package in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require_package(package, "demo")
    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.files import numbered_dir
    from fada_deploy.common.runs import BUILTIN, RUNS
    from fada_deploy.training.device import choose_device

    # Check the options now, since the training starts later.
    choose_device(device)
    if out is None:
        out = numbered_dir(Path(), "demo")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not empty; remove it, or name another folder")
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    run, video = numbered_dir(RUNS, "demo"), out / VIDEO.name
    shutil.copyfile(VIDEO, video)
    _run_command("infer", video, "--model", BUILTIN, "--out", out / "before")
    _run_command(
        "adapt", BUILTIN, "--tgt", video, "--iterations", ITERATIONS,
        "--set", f"rendered_scenes={RENDERED_SCENES}", "--set", f"selftrain.batch={BATCH}",
        "--seed", seed, "--device", device, "--out", run,
    )  # fmt: skip
    _run_command("export", run)
    _run_command("infer", video, "--model", run, "--out", out / "after")
    sheet = out / "contact-sheet.png"
    _write_contact_sheet(run, sheet)
    overlays = [out / name / "overlay" / video.name for name in ("before", "after")]
    _print_summary(run, overlays, sheet, time.monotonic() - start)


def _run_command(*arguments: object) -> None:
    """Run a `fada` command in this process, after printing it as a user would type it."""
    from fada_deploy.cli import cli
    from fada_deploy.common.errors import FadaError, InterruptedRunError

    words = [str(a) for a in arguments]
    log(f"\n$ {shlex.join(['fada', *words])}")
    status = cli.main(words, prog_name="fada", standalone_mode=False)
    if status == InterruptedRunError.exit_code:
        raise InterruptedRunError(f"interrupted in `fada {words[0]}`")
    if status:
        raise FadaError(f"the demo stopped, because `fada {words[0]}` exited with code {status}")


def _write_contact_sheet(run: Path, path: Path) -> None:
    """Write frames of the video beside the labels of the networks before and after adaptation."""
    import cv2
    import numpy as np

    from fada_deploy.common.images import read_rgb, write_png
    from fada_deploy.common.runs import BUILTIN, TARGET_FRAMES
    from fada_deploy.data.base import evenly_spaced
    from fada_deploy.runtime.overlay.blend import overlay
    from fada_deploy.runtime.segmenter import Segmenter

    # The frames that the training has sampled from the video.
    frames = sorted((run / TARGET_FRAMES).glob("*/[!.]*.png"))
    shown = evenly_spaced(len(frames), _SHEET_FRAMES)
    rows = []
    with Segmenter(BUILTIN) as before, Segmenter(run) as after:
        for frame in (read_rgb(frames[i]) for i in shown):
            labels = [s.labels([frame], color="rgb")[0] for s in (before, after)]
            overlays = [overlay(frame, each, after.space.palette, 0.6) for each in labels]
            rows.append(np.hstack([frame, *overlays]))
    header = np.full((28, rows[0].shape[1], 3), 255, np.uint8)
    titles = ("video frame", "built-in model", "adapted to this video")
    for column, title in enumerate(titles):
        origin = (8 + column * rows[0].shape[1] // len(titles), 20)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(header, title, origin, font, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    write_png(path, np.vstack([header, *rows]))


def _print_summary(run: Path, overlays: list[Path], sheet: Path, seconds: float) -> None:
    log("\nThe video has no labels, so there is no mIoU; docs/results has scores on real data.\n")
    paths = [
        ("before and after, side by side", sheet),
        ("overlay video before", overlays[0]),
        ("overlay video after", overlays[1]),
        ("run", run),
    ]
    log(format_table((), [(name, str(path)) for name, path in paths], align="ll"))
    log(f"finished in {seconds / 60:.1f} minutes; next, on your own video:")
    log("  fada adapt builtin --tgt drive.mp4          # or a folder of videos")
    log("  fada export && fada infer drive.mp4")
