"""CPU cost of a training sample: `python benchmarks/loading.py`.

Renders frames at the size of GTA5, 1914×1052, and loads samples like the recipe `paper`: decode
frame and labels, resize to 1280×720, color jitter. For comparison the same frames are decoded from
files already resized to 1280×720, as PNG and as JPEG. Prints the milliseconds of one core per step,
samples per second with several threads, the same with all frames in a cache, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from fada_deploy.common.images import read_rgb, resize_frame, resize_labels
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.system import usable_cores
from fada_deploy.common.tables import format_table
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.cache import MemoryCache
from fada_deploy.synth.dataset import write_source
from fada_deploy.training.data.samples import SourceSamples
from fada_deploy.training.data.transforms import apply_jitter, draw_jitter

SIZE = (720, 1280)
JITTER = (0.5, 0.5, 0.5, 0.2)
# The steps that make up a sample.
SAMPLE_STEPS = ("decode frame", "decode labels", "resize both", "jitter")


def cpu_ms(step: Callable[[int], object], frames: int, repeats: int) -> float:
    """Return the median CPU time of one call in milliseconds."""
    times = []
    for i in range(frames * repeats):
        start = time.thread_time()
        step(i % frames)
        times.append(1e3 * (time.thread_time() - start))
    return median(times)


def calls_per_second(step: Callable[[int], object], threads: int, calls: int) -> float:
    """Return the calls per second with this number of threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(step, range(calls)))
        return calls / (time.perf_counter() - start)


def write_resized(folder: Path, frames: list[np.ndarray]) -> dict[str, list[Path]]:
    """Write the resized frames as PNG and as JPEG; return the paths by suffix."""
    paths: dict[str, list[Path]] = {}
    for suffix, options in ((".png", []), (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])):
        paths[suffix] = [folder / f"{i}{suffix}" for i in range(len(frames))]
        for path, frame in zip(paths[suffix], frames, strict=True):
            cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    return paths


def make_steps(frames: FrameDataset, folder: Path) -> dict[str, Callable[[int], object]]:
    """Return the steps to measure by name."""
    pairs = [frames.pair(i) for i in range(len(frames))]
    resized = [resize_frame(frame, SIZE) for frame, _ in pairs]
    files = write_resized(folder, resized)
    return {
        "decode frame": frames.image,
        "decode labels": frames.labels,
        "resize both": lambda i: (
            resize_frame(pairs[i][0], SIZE),
            resize_labels(pairs[i][1], SIZE),
        ),
        "jitter": lambda i: apply_jitter(resized[i], draw_jitter(JITTER, np.random.default_rng(i))),
        "decode resized PNG": lambda i: read_rgb(files[".png"][i]),
        "decode resized JPEG": lambda i: read_rgb(files[".jpg"][i]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=4, help="frames to render [%(default)s]")
    parser.add_argument("--repeats", type=int, default=8, help="calls per frame [%(default)s]")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="[%(default)s]")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder, args.frames, size_hw=(1052, 1914))
        frames = open_dataset("gta5", folder, split="train", space=CITYSCAPES_19)
        steps = make_steps(frames, folder)
        cost = {name: cpu_ms(step, args.frames, args.repeats) for name, step in steps.items()}
        samples = SourceSamples(frames, SIZE, JITTER)

        def load(i: int) -> object:
            return samples(i % args.frames, np.random.default_rng(i))

        calls = args.frames * args.repeats
        rates = {n: calls_per_second(load, n, calls) for n in sorted({1, args.threads})}
        # In turn, because the speed of a virtual machine varies.
        cached_samples = replace(samples, frames=replace(frames, cache=MemoryCache(2**33)))

        def load_cached(i: int) -> object:
            return cached_samples(i % args.frames, np.random.default_rng(i))

        calls_per_second(load_cached, 1, args.frames)
        ratios = [
            calls_per_second(load_cached, args.threads, calls)
            / calls_per_second(load, args.threads, calls)
            for _ in range(5)
        ]
    total = sum(cost[name] for name in SAMPLE_STEPS)
    rows = [[name, f"{ms:.1f}"] for name, ms in [*cost.items(), ("sample", total)]]
    print(format_table(("step", "CPU ms"), rows))
    for kind in ("PNG", "JPEG"):
        saved = cost["decode frame"] + cost["resize both"] - cost[f"decode resized {kind}"]
        print(f"resized {kind} files would save {saved:.1f} ms per sample, {saved / total:.0%}")
    for threads, rate in rates.items():
        print(f"{rate:.1f} samples per second with {threads} threads")
    print(f"with --cache {median(ratios):.2f} times as many ({args.threads} threads)")
    document = {
        "benchmark": "loading",
        "ms": cost,
        "sample_ms": total,
        "samples_per_second": rates,
        "cached_ratios": ratios,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
