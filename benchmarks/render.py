"""How long a street scene takes to render on one core: `python benchmarks/render.py`.

Prints a table and one JSON line. Times are of this process's CPU, so that neighbors on the
machine do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from random import Random

import cv2

from fada_deploy.synth.appearances import APPEARANCES, get_appearance
from fada_deploy.synth.camera_effects import apply_camera_effects
from fada_deploy.synth.scene import place_camera, render_raster
from fada_deploy.synth.shade import shade
from fada_deploy.synth.town import build_town
from fada_deploy.synth.weather import Weather

STEPS = ("town", "draw", "shade", "camera")


def measure(name: str, seed: int, size_hw: tuple[int, int]) -> list[float]:
    """Render one scene and return milliseconds of each of `STEPS`."""
    appearance = get_appearance(name)
    marks = [time.process_time()]
    town = build_town(seed)
    marks.append(time.process_time())
    raster, shadow = render_raster(town, place_camera(town, size_hw, Random(seed * 2)))
    marks.append(time.process_time())
    weather = Weather.sample(appearance, seed)
    image = shade(raster, shadow, appearance, weather, town.sun)
    marks.append(time.process_time())
    apply_camera_effects(image, weather)
    marks.append(time.process_time())
    return [1000 * (b - a) for a, b in pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--size", default="320x192", help="WIDTHxHEIGHT")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    cv2.setNumThreads(1)
    result: dict[str, object] = {
        "benchmark": "render",
        "size": args.size,
        "scenes": args.scenes,
        "threads": 1,
    }
    print(
        f"{'appearance':8}"
        + "".join(f"{s:>9}" for s in STEPS)
        + f"{'total':>9}{'p95':>9}   ms of CPU a scene"
    )
    for name in APPEARANCES:
        measure(name, 0, (height, width))
        rows = [measure(name, 1 + i, (height, width)) for i in range(args.scenes)]
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        totals = sorted(sum(row) for row in rows)
        p95 = totals[min(len(totals) - 1, int(0.95 * len(totals)))]
        print(f"{name:8}" + "".join(f"{m:9.2f}" for m in means) + f"{sum(means):9.2f}{p95:9.2f}")
        result[name] = {
            **dict(zip(STEPS, means, strict=True)),
            "total_ms": sum(means),
            "p95_ms": p95,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
