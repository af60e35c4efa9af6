"""Which changes of the input the drift score detects: `python benchmarks/drift.py MODEL.onnx`.

MODEL must be trained and exported on rendered streets (`fada data render`, and `fada train` with
the recipe small); other models drift on unchanged drives. The benchmark renders drives through
unseen towns, changes their frames (darkness, fog, blur, …) and feeds every fifth frame of
ten seconds to a drift monitor, as `examples/perception_app` does. Prints the lowest, median and
highest score after a drive, the number of drives reported as drifting, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from fada_deploy import DriftMonitor, Segmenter
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.drift import Drift
from fada_deploy.synth.clip import FPS, Drive
from fada_deploy.synth.dataset import CLIP, first_seed

SECONDS, EVERY = 10, 5
Change = Callable[[np.ndarray], np.ndarray]
RNG = np.random.default_rng(0)


def scaled(gain: float, offset: float = 0.0) -> Change:
    """Return a function that multiplies gray levels by `gain` and adds `offset`."""
    return lambda f: (f * gain + offset).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "unchanged": lambda f: f,
    "darkened to a quarter": scaled(0.25),
    "darkened to a half": scaled(0.5),
    "fog, 65 % of gray 200": scaled(0.35, 130),
    "blurred, σ 4 pixels of 320": lambda f: np.asarray(
        cv2.GaussianBlur(f, (0, 0), 4 * f.shape[1] / 320), np.uint8
    ),
    "noise, σ 30": lambda f: (f + RNG.normal(0, 30, f.shape)).clip(0, 255).astype(np.uint8),
    "lens covered": lambda f: np.full_like(f, 12),
    "upside down": lambda f: np.ascontiguousarray(f[::-1]),
    "twice as bright, clipped": scaled(2.0),
    "red and blue swapped": lambda f: np.ascontiguousarray(f[..., ::-1]),
}


def drift_of_drive(segmenter: Segmenter, seed: int) -> dict[str, Drift]:
    """Return the drift after one rendered drive, by change."""
    size_hw = segmenter.metadata.input_size_hw
    drive = Drive.start("target", first_seed(seed, CLIP), size_hw=size_hw, seconds=SECONDS)
    window = SECONDS * FPS // EVERY
    monitors = {name: DriftMonitor.for_model(segmenter.metadata, window=window) for name in CHANGES}
    drifts: dict[str, Drift] = {}
    for i, (frame, _) in enumerate(drive.frames(SECONDS * FPS)):
        if i % EVERY == 0:
            for name, monitor in monitors.items():
                result = segmenter.predict(CHANGES[name](frame), color="rgb", confidence=True)
                drifts[name] = monitor.update(result)
    return drifts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drives", type=int, default=8, help="number of drives [%(default)s]")
    args = parser.parse_args()
    with Segmenter(args.model) as segmenter:
        drives = [drift_of_drive(segmenter, seed) for seed in range(1, args.drives + 1)]
    scores = {name: [drifts[name].score for drifts in drives] for name in CHANGES}
    drifting = {name: sum(drifts[name].drifting for drifts in drives) for name in CHANGES}
    rows = [
        [name, *(f"{f(values):.2f}" for f in (min, median, max)), f"{drifting[name]}/{len(values)}"]
        for name, values in scores.items()
    ]
    print(format_table(("change", "lowest", "median", "highest", "drifting"), rows))
    print(
        json.dumps(
            {"benchmark": "drift", "drives": args.drives, "scores": scores, "drifting": drifting}
        )
    )


if __name__ == "__main__":
    main()
