"""`fada demo`: run the full pipeline on rendered streets with the commands that a user types."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import log
from fada_deploy.cli.options import DEVICE_OPTION, SIZE
from fada_deploy.common.system import require_package
from fada_deploy.common.tables import format_table

# Options of `fada data render`.
RENDER_OPTIONS: dict[str, float] = {
    "--source-scenes": 400,
    "--target-scenes": 400,
    "--val-scenes": 100,
    "--video-seconds": 6,
}
_SHEET_FRAMES = 4
_STAGE_NAMES = {
    "source": "source only (stage 1)",
    "adversarial": "adversarial adaptation (stage 2)",
    "distill": "self-distillation (stage 3)",
}


@click.command("demo")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for the data set, the overlay video and the contact sheet. [default: demo-NNN]",
)
@click.option(
    "--size",
    type=SIZE,
    default="320x192",
    show_default=True,
    help="Size of the images and of the network's input.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the rendered towns and of the training.",
)
@DEVICE_OPTION
def command(out: Path | None, size: tuple[int, int], seed: int, device: str) -> None:
    """Run the full pipeline on rendered street scenes.

    Renders synthetic scenes in two styles, a labeled source domain and a target domain. Adapts a
    small network, exports it and segments a video. Takes minutes on two CPU cores. Prints the mIoU
    of each stage and writes an overlay video and a contact sheet. The run is written to
    runs/demo-NNN.
    """
    for package in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require_package(package, "demo")
    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.files import numbered_dir
    from fada_deploy.common.runs import RUNS
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.models.segmentation import check_size
    from fada_deploy.training.recipes import RECIPES

    # Check the options now, since the training starts minutes later.
    choose_device(device)
    check_size(RECIPES["small"]["backbone"], size)
    if out is None:
        out = numbered_dir(Path(), "demo")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not empty; remove it, or name another folder")
    start = time.monotonic()
    data, run, size_text = out / "data", numbered_dir(RUNS, "demo"), f"{size[1]}x{size[0]}"
    roots = ["--src-root", data / "gta5", "--tgt-root", data / "cityscapes"]
    video = data / "clip" / "clip.mp4"
    counts = [word for option in RENDER_OPTIONS.items() for word in option]
    _run_command("data", "render", "--out", data, *counts, "--size", size_text, "--seed", seed)
    _run_command(
        "train", "--src", "gta5", "--tgt", "cityscapes", *roots,
        "--recipe", "small", "--size", size_text, "--seed", seed, "--device", device, "--out", run,
    )  # fmt: skip
    _run_command("export", run)
    _run_command("infer", video, "--model", run / "export" / "model.onnx", "--out", out)
    sheet = out / "contact-sheet.png"
    _write_contact_sheet(run, data / "cityscapes", sheet)
    _print_summary(run, out / "overlay" / video.name, sheet, video, time.monotonic() - start)


def _run_command(*arguments: object) -> None:
    """Run a `fada` command in this process, after printing it as a user would type it."""
    from fada_deploy.cli import cli
    from fada_deploy.common.errors import FadaError

    words = [str(a) for a in arguments]
    log(f"\n$ {shlex.join(['fada', *words])}")
    status = cli.main(words, prog_name="fada", standalone_mode=False)
    if status:
        raise FadaError(f"the demo stopped, because `fada {words[0]}` exited with code {status}")


def _write_contact_sheet(run: Path, cityscapes: Path, path: Path) -> None:
    """Write validation frames beside their predictions before and after adaptation, and labels."""
    import cv2
    import numpy as np

    from fada_deploy.common.images import write_png
    from fada_deploy.common.runs import WEIGHTS
    from fada_deploy.data import open_dataset
    from fada_deploy.runtime.overlay.blend import overlay
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.predict import Predictor
    from fada_deploy.training.weights.checkpoints import load_model

    source_only = Predictor(load_model(run / "source" / WEIGHTS)[0], choose_device("cpu"))
    with Segmenter(run / "export" / "model.onnx") as adapted:
        frames = open_dataset("cityscapes", cityscapes, split="val", space=adapted.space)
        rows = []
        for i in np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int).tolist():
            frame, truth = frames.pair(i)
            before, after = source_only.labels([frame])[0], adapted.labels([frame], color="rgb")[0]
            overlays = [
                overlay(frame, labels, adapted.space.palette, 0.6)
                for labels in (before, after, truth)
            ]
            rows.append(np.hstack([frame, *overlays]))
    header = np.full((28, rows[0].shape[1], 3), 255, np.uint8)
    titles = ("target frame", "source only", "adapted (exported model)", "ground truth")
    for column, title in enumerate(titles):
        origin = (8 + column * frame.shape[1], 20)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(header, title, origin, font, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    write_png(path, np.vstack([header, *rows]))


def _print_summary(run: Path, overlay: Path, sheet: Path, video: Path, seconds: float) -> None:
    from fada_deploy.common.runs import PAPER_STAGES

    scores: dict[str, Any] = {
        s: json.loads((run / s / "scores.json").read_text("utf-8")) for s in PAPER_STAGES
    }
    source = scores["source"]
    rows = []
    for stage, score in scores.items():
        gain = "" if stage == "source" else f"{100 * (score['miou'] - source['miou']):+.1f}"
        rows.append((_STAGE_NAMES[stage], f"{100 * score['miou']:.1f}", gain))
    log(f"\nmIoU (%) on {source['frames']} frames of unseen target streets at {source['input']}")
    log(format_table((), rows, indent="  "))
    log("  (docs/results compares the methods with equal training time on three towns)\n")
    paths = [("overlay video", overlay), ("contact sheet", sheet), ("run", run)]
    log(format_table((), [(name, str(path)) for name, path in paths], align="ll"))
    log(f"finished in {seconds / 60:.1f} minutes; next, on your own data:")
    log("  fada train --src gta5 --src-root GTA5 --tgt drives/    # drives/: a folder of videos")
    log(f"  fada export && fada infer {shlex.quote(str(video))} --save overlay,mask,json")
