"""`fada demo`: the whole road on rendered streets, by the very commands a user types."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import log
from fada_deploy.cli.options import SIZE

# What it renders: scenes, and seconds of video.
SCENES = {"source": 400, "target": 400, "val": 100, "clip": 6}
_SHEET_FRAMES = 4
_STAGE_NAMES = {
    "source": "source only (stage 1)",
    "adversarial": "FADA (stage 2)",
    "distill": "FADA, self-distilled (stage 3)",
}


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), help="For all it makes but the run [demo-NNN]."
)
@click.option("--size", type=SIZE, default="320x192", show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Another town, another training.",
)
@click.option("--device", default="auto", show_default=True)
def command(out: Path | None, size: tuple[int, int], seed: int, device: str) -> None:
    """Render streets in two looks, adapt from one to the other, export, label a clip.

    Takes minutes on two cores and ends with scores, an overlay video and a contact sheet.
    """
    from importlib.util import find_spec

    from fada_deploy.common.errors import MissingExtraError, UsageError
    from fada_deploy.common.files import numbered_dir
    from fada_deploy.common.runs import RUNS

    for package in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "demo")
    from fada_deploy.training.config import PRESETS
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.models.segmentation import check_size

    choose_device(device)
    check_size(PRESETS["small"]["backbone"], size)
    if out is None:
        out = numbered_dir(Path(), "demo")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} exists and is not empty; remove it or name another folder with --out"
        )
    began = time.monotonic()
    data, run, text = out / "data", numbered_dir(RUNS, "demo"), f"{size[1]}x{size[0]}"
    roots = ["--src-root", data / "gta5", "--tgt-root", data / "cityscapes"]
    clip = data / "clip" / "clip.mp4"
    counts = [word for name, count in SCENES.items() for word in (f"--{name}", count)]
    _step("data", "render", "--out", data, *counts, "--size", text, "--seed", seed)
    _step(
        "train", "--src", "gta5", "--tgt", "cityscapes", *roots,
        "--preset", "small", "--size", text, "--seed", seed, "--device", device, "--out", run,
    )  # fmt: skip
    _step("export", run)
    _step("infer", clip, "--model", run / "export" / "model.onnx", "--out", out)
    sheet = out / "contact-sheet.png"
    _contact_sheet(run, data / "cityscapes", sheet)
    _close(run, out / "overlay" / clip.name, sheet, clip, time.monotonic() - began)


def _step(*arguments: object) -> None:
    """Run one `fada` command in this process, and show it as a user would type it."""
    from fada_deploy.cli import cli
    from fada_deploy.common.errors import FadaError

    words = [str(a) for a in arguments]
    log(f"\n$ {shlex.join(['fada', *words])}")
    status = cli.main(words, prog_name="fada", standalone_mode=False)
    if status:
        raise FadaError(f"the demo stopped, since `fada {words[0]}` exited with {status}")


def _contact_sheet(run: Path, cityscapes: Path, path: Path) -> None:
    """Write validation frames beside what source-only and adapted networks see, and the truth."""
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

    before = Predictor(load_model(run / "source" / WEIGHTS)[0], choose_device("cpu"))
    with Segmenter(run / "export" / "model.onnx") as segmenter:
        frames = open_dataset("cityscapes", cityscapes, split="val", space=segmenter.space)
        rows = []
        for i in np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int).tolist():
            frame, truth = frames.pair(i)
            maps = [before.labels([frame])[0], segmenter.labels([frame], color="rgb")[0], truth]
            rows.append(
                np.hstack([frame, *(overlay(frame, m, segmenter.space.palette, 0.6) for m in maps)])
            )
    head = np.full((28, rows[0].shape[1], 3), 255, np.uint8)
    for column, title in enumerate(
        ("target frame", "source only", "adapted (exported file)", "ground truth")
    ):
        at = (8 + column * frame.shape[1], 20)
        cv2.putText(head, title, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    write_png(path, np.vstack([head, *rows]))


def _close(run: Path, overlay: Path, sheet: Path, clip: Path, seconds: float) -> None:
    from fada_deploy.common.runs import STAGES

    scores: dict[str, Any] = {
        s: json.loads((run / s / "scores.json").read_text("utf-8")) for s in STAGES
    }
    first = scores["source"]["miou"]
    frames, width_height = scores["source"]["frames"], scores["source"]["input"]
    log(f"\nmIoU on {frames} labeled frames of streets it never saw, input {width_height}")
    for stage, score in scores.items():
        gain = "" if stage == "source" else f"  {100 * (score['miou'] - first):+5.1f}"
        log(f"  {_STAGE_NAMES[stage]:<32}{100 * score['miou']:5.1f}{gain}")
    log("  (docs/results.md compares at equal training, over three towns)")
    log(f"\noverlay video   {overlay}\ncontact sheet   {sheet}\nrun             {run}")
    log(f"all of it took {seconds / 60:.1f} minutes. Next, on your own data:")
    log(
        "  fada train --src gta5 --tgt drives/ --src-root GTA5     # drives/: a folder of your videos"
    )
    log(f"  fada export && fada infer {clip} --save overlay,mask,json")
