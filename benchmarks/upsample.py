"""Exact sparse upsampling against PyTorch's interpolate + argmax: `python benchmarks/upsample.py`.

Smooth random logits, both timed in turn in one process with as many threads as the process may use.
Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from fada_deploy.common.sizes import parse_size
from fada_deploy.runtime.upsample import labels_from_logits, mixed_share

CLASSES = 19


def smooth_logits(grid_hw: tuple[int, int], smoothness: float) -> np.ndarray:
    """Return (K, h, w) float32 whose classes form patches about `smoothness` cells wide."""
    noise = np.random.default_rng(0).normal(size=(*grid_hw, CLASSES)).astype(np.float32)
    planes = [cv2.GaussianBlur(np.ascontiguousarray(noise[..., k]), (0, 0), smoothness) for k in range(CLASSES)]
    logits = np.stack(planes)
    return np.ascontiguousarray(10 * logits / logits.std(), np.float32)


def seconds(job: Callable[[], object], repeats: int) -> float:
    job()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="256x128", help="WIDTHxHEIGHT of the logits")
    parser.add_argument("--size", default="2048x1024", help="WIDTHxHEIGHT of the labels")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    grid, size = parse_size(args.grid), parse_size(args.size)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    print(f"{'mixed cells':>12}{'sparse ms':>11}{'PyTorch ms':>12}{'ratio':>7}{'differ':>8}")
    for smoothness in (12.0, 6.0, 3.0, 1.5):
        logits = smooth_logits(grid, smoothness)
        tensor = torch.from_numpy(logits)[None]

        def dense(tensor: torch.Tensor = tensor) -> torch.Tensor:
            return F.interpolate(tensor, size=size, mode="bilinear", align_corners=True).argmax(1)

        def sparse(logits: np.ndarray = logits) -> np.ndarray:
            return labels_from_logits(logits, size, align_corners=True)

        differ = int((sparse() != dense()[0].numpy()).sum())
        ours, theirs = seconds(sparse, args.repeats), seconds(dense, args.repeats)
        row = {
            "mixed": mixed_share(logits),
            "sparse_s": ours,
            "torch_s": theirs,
            "ratio": theirs / ours,
            "differ": differ,
        }
        rows.append(row)
        print(f"{row['mixed']:12.1%}{1e3 * ours:11.1f}{1e3 * theirs:12.1f}{row['ratio']:7.1f}{differ:8d}")
    print(json.dumps({"benchmark": "upsample", "grid": args.grid, "size": args.size, "rows": rows}))


if __name__ == "__main__":
    main()
