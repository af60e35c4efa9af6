"""Sparse upsampling, compiled and in NumPy, against interpolate + argmax in PyTorch.

`python benchmarks/upsample.py [--model model.onnx --video drive.mp4]` converts smooth random
logits, and with `--model` the logits of a network, to labels. The implementations alternate in one
process, with as many threads as the process may use. Prints a table and one JSON line.
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

from fada_deploy import Segmenter, open_sources
from fada_deploy.common.sizes import parse_size
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.backend_selection import metadata_of
from fada_deploy.runtime.kernels import upsample
from fada_deploy.runtime.kernels.upsample import labels_from_logits, mixed_fraction
from fada_deploy.runtime.sources.base import Frame

CLASSES = 19
HEADER = (
    "logits",
    "K",
    "grid",
    "mixed",
    "compiled ms",
    "NumPy ms",
    "PyTorch ms",
    "speedup",
    "differ",
)
# Name, logits (K, h, w), align_corners.
Case = tuple[str, np.ndarray, bool]


def smooth_logits(grid_hw: tuple[int, int], smoothness: float) -> np.ndarray:
    """Return (K, h, w) float32 whose classes form patches about `smoothness` cells wide."""
    noise = np.random.default_rng(0).normal(size=(*grid_hw, CLASSES)).astype(np.float32)
    planes = [
        cv2.GaussianBlur(np.ascontiguousarray(noise[..., k]), (0, 0), smoothness)
        for k in range(CLASSES)
    ]
    logits = np.stack(planes)
    return np.ascontiguousarray(10 * logits / logits.std(), np.float32)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median duration of a call after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def logits_of_video(model: Path, video: Path, count: int) -> Iterator[np.ndarray]:
    """Yield the logits (K, h, w) of `count` frames, evenly spaced in the video."""
    (source,) = open_sources([video])
    every = max(1, (source.count() or count) // count)
    with Segmenter(model) as segmenter:
        frames = (item for item in source.frames() if isinstance(item, Frame))
        for index, frame in enumerate(frames):
            if index % every == every // 2:
                yield segmenter.logits([frame.rgb], color="rgb")[0]


def measure(
    logits: np.ndarray, size_hw: tuple[int, int], repeats: int, *, align_corners: bool
) -> dict[str, float]:
    """Time the three implementations on the same logits."""
    tensor = torch.from_numpy(logits)[None]
    loader, no_kernels = upsample.kernel_loader, SimpleNamespace(ready=None)

    def run_torch() -> torch.Tensor:
        dense = F.interpolate(tensor, size=size_hw, mode="bilinear", align_corners=align_corners)
        return dense.argmax(1)

    def run_compiled() -> np.ndarray:
        return labels_from_logits(logits, size_hw, align_corners=align_corners)

    def run_numpy() -> np.ndarray:
        upsample.kernel_loader = no_kernels  # type: ignore[assignment]
        try:
            return labels_from_logits(logits, size_hw, align_corners=align_corners)
        finally:
            upsample.kernel_loader = loader

    differ = int((run_compiled() != run_torch()[0].numpy()).sum())
    compiled_s, numpy_s, torch_s = (
        median_seconds(function, repeats) for function in (run_compiled, run_numpy, run_torch)
    )
    return {
        "mixed": mixed_fraction(logits),
        "compiled_s": compiled_s,
        "numpy_s": numpy_s,
        "torch_s": torch_s,
        "ratio": torch_s / compiled_s,
        "differ": differ,
    }


def make_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield random logits of four smoothnesses, then those of the model."""
    random: Iterator[Case] = (
        (f"random {smoothness:g}", smooth_logits(parse_size(args.grid), smoothness), True)
        for smoothness in (25.0, 12.0, 6.0, 3.0)
    )
    if args.model is None or args.video is None:
        return random
    align_corners = metadata_of(args.model).align_corners
    frames = logits_of_video(args.model, args.video, args.frames)
    return chain(random, (("video", logits, align_corners) for logits in frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--grid", default="256x128", help="WIDTHxHEIGHT of the random logits [%(default)s]"
    )
    parser.add_argument(
        "--size", default="2048x1024", help="WIDTHxHEIGHT of the labels [%(default)s]"
    )
    parser.add_argument("--model", type=Path, help="ONNX file whose logits are measured too")
    parser.add_argument("--video", type=Path, help="video that the model gets")
    parser.add_argument("--frames", type=int, default=5, help="frames of the video [%(default)s]")
    parser.add_argument("--repeats", type=int, default=7, help="calls to time [%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not upsample.kernel_loader.wait():
        raise SystemExit("numba is not installed; install it with: pip install numba")
    rows, table = [], []
    for name, logits, align_corners in make_cases(args):
        row = measure(logits, parse_size(args.size), args.repeats, align_corners=align_corners)
        rows.append({"logits": name, "classes": len(logits), **row})
        ms = [f"{1e3 * row[key]:.2f}" for key in ("compiled_s", "numpy_s", "torch_s")]
        grid = f"{logits.shape[2]}x{logits.shape[1]}"
        cells = (f"{row['mixed']:.1%}", *ms, f"{row['ratio']:.0f}", f"{row['differ']:.0f}")
        table.append([name, str(len(logits)), grid, *cells])
    print(format_table(HEADER, table))
    print(json.dumps({"benchmark": "upsample", "size": args.size, "rows": rows}))


if __name__ == "__main__":
    main()
