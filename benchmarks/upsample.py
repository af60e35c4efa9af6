"""Exact sparse upsampling, compiled and not, against PyTorch's interpolate + argmax.

`python benchmarks/upsample.py [--model model.onnx --clip drive.mp4]`. Smooth random logits and a network's own,
all timed in turn in one process with as many threads as the process may use.
Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from fada_deploy import Segmenter
from fada_deploy.common.sizes import parse_size
from fada_deploy.runtime.backend_selection import metadata_of
from fada_deploy.runtime.kernels import upsample
from fada_deploy.runtime.kernels.upsample import labels_from_logits, mixed_fraction
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.open import open_sources

CLASSES = 19
# Of the table's columns.
_WIDTHS = (8, 13, 8, 9, 7, 8)


def smooth_logits(grid_hw: tuple[int, int], smoothness: float) -> np.ndarray:
    """Return (K, h, w) float32 whose classes form patches about `smoothness` cells wide."""
    noise = np.random.default_rng(0).normal(size=(*grid_hw, CLASSES)).astype(np.float32)
    planes = [
        cv2.GaussianBlur(np.ascontiguousarray(noise[..., k]), (0, 0), smoothness)
        for k in range(CLASSES)
    ]
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


def logits_of(model: Path, clip: Path, count: int) -> Iterator[np.ndarray]:
    """Yield a network's logits (K, h, w) of a film's frames, evenly spread."""
    (source,) = open_sources([clip])
    every = max(1, (source.count() or count) // count)
    with Segmenter(model) as segmenter:
        for index, frame in enumerate(f for f in source.frames() if isinstance(f, Frame)):
            if index % every == every // 2:
                yield segmenter.logits([frame.rgb])[0]


def measure(
    logits: np.ndarray, size_hw: tuple[int, int], repeats: int, *, corners: bool
) -> dict[str, float]:
    """Time the three on the same logits, one after the other."""
    tensor = torch.from_numpy(logits)[None]
    loader, none = upsample.kernel_loader, SimpleNamespace(ready=None)

    def dense() -> torch.Tensor:
        return F.interpolate(tensor, size=size_hw, mode="bilinear", align_corners=corners).argmax(1)

    def sparse() -> np.ndarray:
        return labels_from_logits(logits, size_hw, align_corners=corners)

    def plain() -> np.ndarray:
        upsample.kernel_loader = none  # type: ignore[assignment]
        try:
            return labels_from_logits(logits, size_hw, align_corners=corners)
        finally:
            upsample.kernel_loader = loader

    differ = int((sparse() != dense()[0].numpy()).sum())
    ours, numpy, theirs = (seconds(job, repeats) for job in (sparse, plain, dense))
    return {
        "mixed": mixed_fraction(logits),
        "compiled_s": ours,
        "numpy_s": numpy,
        "torch_s": theirs,
        "ratio": theirs / ours,
        "differ": differ,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="256x128", help="WIDTHxHEIGHT of the random logits")
    parser.add_argument("--size", default="2048x1024", help="WIDTHxHEIGHT of the labels")
    parser.add_argument("--model", type=Path, help="a network whose logits are measured too")
    parser.add_argument("--clip", type=Path, help="the film that it sees")
    parser.add_argument("--frames", type=int, default=5, help="of the film")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    grid, size = parse_size(args.grid), parse_size(args.size)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not upsample.kernel_loader.wait():
        raise SystemExit("numba is not installed; type: pip install 'fada_deploy[fast]'")
    jobs: Iterator[tuple[str, np.ndarray, bool]] = (
        (f"random {smoothness:g}", smooth_logits(grid, smoothness), True)
        for smoothness in (25.0, 12.0, 6.0, 3.0)
    )
    if args.model and args.clip:
        corners = metadata_of(args.model).align_corners
        real = (("film", z, corners) for z in logits_of(args.model, args.clip, args.frames))
        jobs = chain(jobs, real)
    rows = []
    heads = ("mixed", "compiled ms", "NumPy", "PyTorch", "ratio", "differ")
    print(
        f"{'logits':<10}{'K':>3}{'grid':>9}"
        + "".join(f"{h:>{w}}" for h, w in zip(heads, _WIDTHS, strict=True))
    )
    for name, logits, corners in jobs:
        row = measure(logits, size, args.repeats, corners=corners)
        rows.append({"logits": name, "classes": len(logits), **row})
        grid_wh = f"{logits.shape[2]}x{logits.shape[1]}"
        ms = [f"{1e3 * row[key]:.2f}" for key in ("compiled_s", "numpy_s", "torch_s")]
        cells = (f"{row['mixed']:.1%}", *ms, f"{row['ratio']:.0f}", f"{row['differ']:.0f}")
        row_text = "".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS, strict=True))
        print(f"{name:<10}{len(logits):>3}{grid_wh:>9}{row_text}", flush=True)
    print(json.dumps({"benchmark": "upsample", "size": args.size, "rows": rows}))


if __name__ == "__main__":
    main()
