"""CPU time to render a street scene on one core: `python benchmarks/render.py`.

Times are CPU times of this process, so that other processes on the machine do not count. Prints a
table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from random import Random

import cv2

from fada_deploy.common.tables import format_table
from fada_deploy.synth.appearances import APPEARANCES
from fada_deploy.synth.camera_effects import apply_camera_effects
from fada_deploy.synth.scene import place_camera, render_raster
from fada_deploy.synth.shade import shade
from fada_deploy.synth.town import build_town
from fada_deploy.synth.weather import Weather

STEPS = ("town", "raster", "shade", "camera")


def measure(appearance_name: str, seed: int, size_hw: tuple[int, int]) -> list[float]:
    """Render one scene and return the milliseconds of each of `STEPS`."""
    appearance = APPEARANCES[appearance_name]
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
    return [1000 * (end - start) for start, end in pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenes", type=int, default=100, help="scenes per appearance [%(default)s]"
    )
    parser.add_argument("--size", default="320x192", help="WIDTHxHEIGHT [%(default)s]")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    cv2.setNumThreads(1)
    result: dict[str, object] = {
        "benchmark": "render",
        "size": args.size,
        "scenes": args.scenes,
        "threads": 1,
    }
    rows = []
    for name in APPEARANCES:
        measure(name, 0, (height, width))  # warm-up
        times = [measure(name, 1 + i, (height, width)) for i in range(args.scenes)]
        means = [statistics.fmean(column) for column in zip(*times, strict=True)]
        totals = sorted(sum(row) for row in times)
        p95 = totals[min(len(totals) - 1, int(0.95 * len(totals)))]
        rows.append([name, *(f"{ms:.2f}" for ms in (*means, sum(means), p95))])
        result[name] = {
            **dict(zip(STEPS, means, strict=True)),
            "total_ms": sum(means),
            "p95_ms": p95,
        }
    print("CPU ms per scene")
    print(format_table(("appearance", *STEPS, "total", "p95"), rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
