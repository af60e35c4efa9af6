"""What drift sees and what it does not: `python benchmarks/drift.py MODEL.onnx`.

MODEL was trained for and exported with rendered streets (`fada demo`). Drives through towns that it has not seen
are watched as they are and changed, each fifth frame of ten seconds, as `examples/perception_app` does. Prints the
score after the drive, lowest, median and highest, how many drives drift by then, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from fada_deploy import Segmenter
from fada_deploy.runtime.drift import Drift, DriftMonitor
from fada_deploy.synth.clip import FPS, Drive
from fada_deploy.synth.dataset import CLIP, first_seed

SECONDS, EVERY = 10, 5
Change = Callable[[np.ndarray], np.ndarray]
RNG = np.random.default_rng(0)


def scaled(gain: float, offset: float = 0.0) -> Change:
    """Return what multiplies and lifts gray levels."""
    return lambda f: (f * gain + offset).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "as the target is": lambda f: f,
    "darkened to a quarter": scaled(0.25),
    "darkened to a half": scaled(0.5),
    "fog, 65 % of gray 200": scaled(0.35, 130),
    "blurred, σ 4 pixels of 320": lambda f: np.asarray(
        cv2.GaussianBlur(f, (0, 0), 4 * f.shape[1] / 320), np.uint8
    ),
    "noise, σ 30": lambda f: (f + RNG.normal(0, 30, f.shape)).clip(0, 255).astype(np.uint8),
    "lens covered": lambda f: np.full_like(f, 12),
    "image upside down": lambda f: np.ascontiguousarray(f[::-1]),
    "twice as bright, clipped": scaled(2.0),
    "red and blue swapped": lambda f: np.ascontiguousarray(f[..., ::-1]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drives", type=int, default=8)
    args = parser.parse_args()
    scores: dict[str, list[float]] = {name: [] for name in CHANGES}
    drifting = dict.fromkeys(CHANGES, 0)
    last: dict[str, Drift] = {}
    with Segmenter(args.model) as segmenter:
        window = SECONDS * FPS // EVERY
        for seed in range(1, args.drives + 1):
            size = segmenter.metadata.input_size_hw
            drive = Drive.start("target", first_seed(seed, CLIP), size_hw=size, seconds=SECONDS)
            watches = {name: DriftMonitor.for_model(segmenter.metadata, window=window) for name in CHANGES}
            for i, (frame, _) in enumerate(drive.frames(SECONDS * FPS)):
                for name, watch in watches.items() if i % EVERY == 0 else ():
                    last[name] = watch.see(segmenter.predict(CHANGES[name](frame), color="rgb", confidence=True))
            for name, drift in last.items():
                scores[name].append(drift.score)
                drifting[name] += drift.drifting
    for name, all_of in scores.items():
        low, middle, high = min(all_of), median(all_of), max(all_of)
        print(f"{name:<28} {low:5.2f} {middle:5.2f} {high:5.2f}  {drifting[name]} of {len(all_of)}")
    print(
        json.dumps(
            {"benchmark": "drift", "drives": args.drives, "scores": scores, "drifting": drifting}
        )
    )


if __name__ == "__main__":
    main()
