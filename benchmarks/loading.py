"""What a training sample costs before the device sees it: `python benchmarks/loading.py`.

Renders a few frames at GTA5's own size, 1914×1052, and takes samples as the paper's preset does: decode
frame and labels, resize to 1280×720, jitter. Beside it the same frames packed (kept at 1280×720, as
PNG and as JPEG), which is what a `fada data pack` would save. Prints milliseconds of one core by part,
samples a second with threads, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from fada_deploy.common.images import read_rgb, resize_frame, resize_labels
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.system import usable_cores
from fada_deploy.data import open_dataset
from fada_deploy.synth.dataset import write_source
from fada_deploy.training.data.samples import SourceSamples
from fada_deploy.training.data.transforms import color_jitter

SIZE = (720, 1280)
JITTER = (0.5, 0.5, 0.5, 0.2)


def milliseconds(work: Callable[[int], object], frames: int, repeats: int) -> float:
    """Return the median CPU time of one call, in ms."""
    times = []
    for i in range(frames * repeats):
        start = time.thread_time()
        work(i % frames)
        times.append(1e3 * (time.thread_time() - start))
    return median(times)


def per_second(work: Callable[[int], object], threads: int, calls: int) -> float:
    """Return calls a second with so many threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(calls)))
        return calls / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_source(Path(folder), args.frames, size_hw=(1052, 1914))
        frames = open_dataset("gta5", Path(folder), split="train", space=CITYSCAPES_19)
        load = SourceSamples(frames, SIZE, JITTER)
        pictures = [frames.pair(i) for i in range(args.frames)]
        packed = {}
        for kind, options in ((".png", []), (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])):
            for i, (picture, _) in enumerate(pictures):
                path = Path(folder) / f"{i}{kind}"
                cv2.imwrite(
                    str(path), cv2.cvtColor(resize_frame(picture, SIZE), cv2.COLOR_RGB2BGR), options
                )
            packed[kind] = [Path(folder) / f"{i}{kind}" for i in range(args.frames)]
        resized = [resize_frame(picture, SIZE) for picture, _ in pictures]
        parts: dict[str, Callable[[int], object]] = {
            "decode frame": frames.image,
            "decode labels": frames.labels,
            "resize both": lambda i: (
                resize_frame(pictures[i][0], SIZE),
                resize_labels(pictures[i][1], SIZE),
            ),
            "jitter": lambda i: color_jitter(resized[i], JITTER, np.random.default_rng(i)),
            "decode packed PNG": lambda i: read_rgb(packed[".png"][i]),
            "decode packed JPEG": lambda i: read_rgb(packed[".jpg"][i]),
        }
        cost = {name: milliseconds(work, args.frames, args.repeats) for name, work in parts.items()}
        calls = args.frames * args.repeats

        def sample(i: int) -> object:
            return load(i % args.frames, np.random.default_rng(i))

        rate = {n: per_second(sample, n, calls) for n in sorted({1, args.threads})}
    whole = sum(cost[name] for name in ("decode frame", "decode labels", "resize both", "jitter"))
    for name, value in cost.items():
        print(f"{name:<20} {value:7.1f} ms")
    print(f"{'a sample':<20} {whole:7.1f} ms")
    for kind in ("PNG", "JPEG"):
        saved = cost["decode frame"] + cost["resize both"] - cost[f"decode packed {kind}"]
        print(f"packing as {kind} would save {saved:.1f} ms of it, {100 * saved / whole:.0f} %")
    for threads, value in rate.items():
        print(f"{value:7.1f} samples a second with {threads} threads")
    print(
        json.dumps(
            {"benchmark": "loading", "ms": cost, "sample_ms": whole, "samples_per_second": rate}
        )
    )


if __name__ == "__main__":
    main()
