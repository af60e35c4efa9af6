"""Exact sparse upsampling, compiled and not, against PyTorch's interpolate + argmax.

`python benchmarks/upsample.py`. Smooth random logits, all timed in turn in one process with as many
threads as the process may use.
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
from fada_deploy.runtime import upsample
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
    if not upsample.kernel.wait():
        raise SystemExit("numba is not installed; type: pip install 'fada_deploy[fast]'")
    compiled, none = upsample.kernel, lambda: None
    print(f"{'mixed cells':>12}{'compiled ms':>13}{'NumPy ms':>10}{'PyTorch ms':>12}{'ratio':>7}{'differ':>8}")
    for smoothness in (25.0, 12.0, 6.0, 3.0):
        logits = smooth_logits(grid, smoothness)
        tensor = torch.from_numpy(logits)[None]

        def dense(tensor: torch.Tensor = tensor) -> torch.Tensor:
            return F.interpolate(tensor, size=size, mode="bilinear", align_corners=True).argmax(1)

        def sparse(logits: np.ndarray = logits) -> np.ndarray:
            upsample.kernel = compiled
            return labels_from_logits(logits, size, align_corners=True)

        def plain(logits: np.ndarray = logits) -> np.ndarray:
            upsample.kernel = none  # type: ignore[assignment]
            return labels_from_logits(logits, size, align_corners=True)

        differ = int((sparse() != dense()[0].numpy()).sum())
        ours, numpy, theirs = (seconds(job, args.repeats) for job in (sparse, plain, dense))
        row = {
            "mixed": mixed_share(logits),
            "compiled_s": ours,
            "numpy_s": numpy,
            "torch_s": theirs,
            "ratio": theirs / ours,
            "differ": differ,
        }
        rows.append(row)
        print(
            f"{row['mixed']:12.1%}{1e3 * ours:13.2f}{1e3 * numpy:10.1f}{1e3 * theirs:12.1f}{row['ratio']:7.0f}"
            f"{differ:8d}"
        )
    print(json.dumps({"benchmark": "upsample", "grid": args.grid, "size": args.size, "rows": rows}))


if __name__ == "__main__":
    main()
