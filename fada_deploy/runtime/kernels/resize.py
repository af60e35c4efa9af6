"""Faster area-averaging resize with the same result, bit for bit, as `common.images.resize_frame`.

OpenCV is slow when the scale factor is not an integer. The compiled kernel takes a third of the
time. OpenCV sums in float32, the kernel in integers. If the denominator of the average is odd, the
exact value is never halfway between two gray levels: it is at least 0.5 / denominator away from
halfway. So both round to the same gray level whenever OpenCV's rounding error is below that
distance, and only then is the kernel used.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common import images
from fada_deploy.runtime.kernels.loader import Kernels, kernel_loader

_UNIT_ROUNDOFF = 2.0**-24
# OpenCV ignores overlaps of less than a thousandth of a pixel.
_MAX_DENOMINATOR = 999


class AxisWeights(NamedTuple):
    """Integer weights that shrink one axis.

    Output pixel i is the weighted sum of the input pixels first[i] … first[i] + taps − 1 with
    `weights` (n, taps), divided by `denominator`. `integer_scale`: no input pixel contributes to
    two output pixels.
    """

    denominator: int
    first: NDArray[np.intp]
    weights: NDArray[np.int64]
    integer_scale: bool


class ResizePlan(NamedTuple):
    """The arguments of `resize_compiled.average` after the images."""

    y_first: NDArray[np.intp]
    y_weights: NDArray[np.uint16]
    x_first: NDArray[np.intp]
    x_weights: NDArray[np.float32]
    reciprocal: np.float32


def resize_frame(frame: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the result of `common.images.resize_frame`, using the kernel if possible."""
    height, width = size_hw
    # Called for every frame, so this also triggers loading for upsampling and drawing.
    kernels = kernel_loader.get()
    if (
        kernels is not None
        and frame.flags.c_contiguous
        and frame.shape[2:] == (3,)
        and frame.dtype == np.uint8
    ):
        plan = resize_plan(frame.shape[:2], (height, width))
        if plan is not None and _opencv_agrees(kernels):
            return _average(frame, (height, width), plan, kernels)
    return images.resize_frame(frame, (height, width))


@lru_cache(maxsize=64)
def resize_plan(from_hw: tuple[int, ...], size_hw: tuple[int, int]) -> ResizePlan | None:
    """Return the weights for a pair of sizes.

    None if OpenCV is as fast, or if the result is not guaranteed to be the same.
    """
    y, x = (_axis_weights(*sizes) for sizes in zip(from_hw, size_hw, strict=True))
    if y is None or x is None:
        return None
    # In float32 OpenCV rounds each weight, product and sum: once per tap, once more per axis, and
    # less than once more for the conversion from float64. Values are at most 255.
    roundings = y.weights.shape[1] + x.weights.shape[1] + 3
    denominator = y.denominator * x.denominator
    exact = denominator % 2 == 1 and 255 * roundings * _UNIT_ROUNDOFF < 0.5 / denominator
    # Column sums are uint16 and totals are exact in float32 up to 2²⁴.
    fits = 255 * y.denominator < 2**16 and 255 * denominator < 2**24
    if not (exact and fits) or (y.integer_scale and x.integer_scale):
        return None
    return ResizePlan(
        y.first,
        y.weights.astype(np.uint16),
        x.first,
        x.weights.astype(np.float32),
        np.float32(1 / denominator),
    )


def _axis_weights(old: int, new: int) -> AxisWeights | None:
    """Return the weights from `old` to `new` pixels.

    None when enlarging, or if OpenCV ignores some of the overlaps.
    """
    divisor = math.gcd(old, new)
    # Measured in common units, an output pixel is `denominator` wide and an input pixel `step`
    # wide.
    denominator, step = old // divisor, new // divisor
    if new > old or old < 2 or step > _MAX_DENOMINATOR:
        return None
    start = np.arange(new, dtype=np.intp) * denominator
    first, end = start // step, -(-(start + denominator) // step)
    taps = max(2, int((end - first).max()))
    first = np.minimum(first, old - taps)
    edges = (first[:, None] + np.arange(taps)) * step
    weights = np.minimum(edges + step, start[:, None] + denominator) - np.maximum(
        edges, start[:, None]
    )
    return AxisWeights(denominator, first, weights.clip(0), step == 1)


def _average(
    frame: NDArray[np.uint8], size_hw: tuple[int, int], plan: ResizePlan, kernels: Kernels
) -> NDArray[np.uint8]:
    output = np.empty((*size_hw, 3), np.uint8)
    kernels.average(frame.reshape(len(frame), -1), output.reshape(len(output), -1), *plan)
    return output


@lru_cache(maxsize=1)
def _opencv_agrees(kernels: Kernels) -> bool:
    """Return whether this build of OpenCV gives the kernel's result for a noise image."""
    noise = np.random.default_rng(0).integers(0, 256, (135, 240, 3), np.uint8)
    plan = resize_plan((135, 240), (64, 128))
    assert plan is not None
    return bool(
        (_average(noise, (64, 128), plan, kernels) == images.resize_frame(noise, (64, 128))).all()
    )
