"""`fada demo`: adapt a network to a real video with the commands that a user types."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import click

from fada_deploy.cli.console import log
from fada_deploy.cli.options import DEVICE_OPTION, SIZE
from fada_deploy.common.system import require_package
from fada_deploy.common.tables import format_table

# A real video without labels, and settings of `fada train` that take minutes on two CPU cores.
VIDEO = Path(__file__).parents[1] / "samples" / "street.mp4"
RENDERED_SCENES = 400
SETTINGS = (
    "source.iterations=150",
    "source.max_iterations=170",
    "source.warmup=20",
    "selftrain.iterations=100",
    "selftrain.max_iterations=110",
    "selftrain.warmup=10",
)
_SHEET_FRAMES = 3


@click.command("demo")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for the overlay videos and the contact sheet. [default: demo-NNN]",
)
@click.option(
    "--size",
    type=SIZE,
    default="320x192",
    show_default=True,
    help="Size of the rendered scenes and of the network's input.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the training.",
)
@DEVICE_OPTION
def command(out: Path | None, size: tuple[int, int], seed: int, device: str) -> None:
    """Adapt a network to a real video, from rendered scenes to the overlay.

    Segments a short highway video with the built-in model. Then trains a network on rendered
    scenes, adapts it to that video without labels, exports it, and segments the video with it.
    Takes minutes on two CPU cores. Writes overlay videos and a contact sheet that compares the
    networks. The run is written to runs/demo-NNN.
    """
    for package in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require_package(package, "demo")
    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.files import numbered_dir
    from fada_deploy.common.runs import BUILTIN, RUNS
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.models.segmentation import check_size
    from fada_deploy.training.recipes import RECIPES

    # Check the options now, since the training starts later.
    choose_device(device)
    check_size(RECIPES["deploy"]["backbone"], size)
    if out is None:
        out = numbered_dir(Path(), "demo")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not empty; remove it, or name another folder")
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    run, size_text, video = numbered_dir(RUNS, "demo"), f"{size[1]}x{size[0]}", out / VIDEO.name
    shutil.copyfile(VIDEO, video)
    _run_command("infer", video, "--model", BUILTIN, "--out", out / "builtin")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    _run_command(
        "train", "--recipe", "deploy", "--src", "rendered", "--rendered-scenes", RENDERED_SCENES,
        "--tgt", video, "--label-space", "driving-11", "--size", size_text, *settings,
        "--seed", seed, "--device", device, "--out", run,
    )  # fmt: skip
    _run_command("export", run)
    _run_command("infer", video, "--model", run, "--out", out / "adapted")
    sheet = out / "contact-sheet.png"
    _write_contact_sheet(run, sheet)
    overlays = [out / name / "overlay" / video.name for name in ("builtin", "adapted")]
    _print_summary(run, overlays, sheet, time.monotonic() - start)


def _run_command(*arguments: object) -> None:
    """Run a `fada` command in this process, after printing it as a user would type it."""
    from fada_deploy.cli import cli
    from fada_deploy.common.errors import FadaError

    words = [str(a) for a in arguments]
    log(f"\n$ {shlex.join(['fada', *words])}")
    status = cli.main(words, prog_name="fada", standalone_mode=False)
    if status:
        raise FadaError(f"the demo stopped, because `fada {words[0]}` exited with code {status}")


def _write_contact_sheet(run: Path, path: Path) -> None:
    """Write frames of the video beside the labels of the networks before and after adaptation."""
    import cv2
    import numpy as np

    from fada_deploy.common.images import read_rgb, write_png
    from fada_deploy.common.runs import BUILTIN, WEIGHTS
    from fada_deploy.runtime.overlay.blend import overlay
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.predict import Predictor
    from fada_deploy.training.weights.checkpoints import load_model

    # The frames that the training has sampled from the video.
    frames = sorted((run / "target_frames").glob("*/[!.]*.png"))
    shown = np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int).tolist()
    source_only = Predictor(load_model(run / "source" / WEIGHTS)[0], choose_device("cpu"))
    rows = []
    with Segmenter(run) as adapted, Segmenter(BUILTIN) as builtin:
        for frame in (read_rgb(frames[i]) for i in shown):
            labels = [source_only.labels([frame])[0]]
            labels += [s.labels([frame], color="rgb")[0] for s in (adapted, builtin)]
            overlays = [overlay(frame, each, adapted.space.palette, 0.6) for each in labels]
            rows.append(np.hstack([frame, *overlays]))
    header = np.full((28, rows[0].shape[1], 3), 255, np.uint8)
    stage = adapted.metadata.provenance["stage"]
    titles = ("video frame", "source only", f"exported model ({stage})", "built-in model")
    for column, title in enumerate(titles):
        origin = (8 + column * rows[0].shape[1] // len(titles), 20)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(header, title, origin, font, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    write_png(path, np.vstack([header, *rows]))


def _print_summary(run: Path, overlays: list[Path], sheet: Path, seconds: float) -> None:
    log(
        "\nThe video has no labels, so there is no mIoU; docs/results has scores on real streets.\n"
    )
    paths = [
        ("contact sheet", sheet),
        ("overlay video, built-in model", overlays[0]),
        ("overlay video, adapted network", overlays[1]),
        ("run", run),
    ]
    log(format_table((), [(name, str(path)) for name, path in paths], align="ll"))
    log(f"finished in {seconds / 60:.1f} minutes; next, on your own data:")
    log("  fada train --recipe deploy --tgt drives/    # drives/: a folder of videos")
    log("  fada export && fada infer drives/")
