"""The resize of `common.images`, to the same bits and for a third of the time, where that is certain.

Area averaging by a factor that is no whole number is slow in OpenCV. It works in float32, ours in whole numbers.
A quotient with an odd denominator is never half-way between two gray values, but at least half a part away from
there. So both round it to the same one as long as OpenCV's error is smaller than that.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common import images
from fada_deploy.runtime.kernels.loader import Kernels, compiled

_ROUNDING = 2.0**-24
# OpenCV leaves out what is less than a thousandth of a pixel.
_FINEST = 999


class Axis(NamedTuple):
    """How an axis is shrunk: a new pixel takes `weights` (n, taps) of old ones, from `first` (n,) on.

    `parts`: what each new one's weights sum up to. `whole`: old pixels are never shared.
    """

    parts: int
    first: NDArray[np.intp]
    weights: NDArray[np.int64]
    whole: bool


class Plan(NamedTuple):
    """What `area_kernel.average` takes besides the pictures."""

    y_first: NDArray[np.intp]
    y_weights: NDArray[np.uint16]
    x_first: NDArray[np.intp]
    x_weights: NDArray[np.float32]
    share: np.float32


def resize_frame(frame: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return what `common.images.resize_frame` does, sooner where the kernels are ready and the sizes allow."""
    height, width = size_hw
    # Asked of every frame, so that they are loaded for the other stages too.
    kernels = compiled()
    if (
        kernels is not None
        and frame.flags.c_contiguous
        and frame.shape[2:] == (3,)
        and frame.dtype == np.uint8
    ):
        plan = plan_of(frame.shape[:2], (height, width))
        if plan is not None and _opencv_agrees(kernels):
            return _average(frame, (height, width), plan, kernels)
    return images.resize_frame(frame, (height, width))


@lru_cache(maxsize=64)
def plan_of(from_hw: tuple[int, ...], size_hw: tuple[int, int]) -> Plan | None:
    """Return how to average such a frame, None where OpenCV is as fast or the same result not certain."""
    y, x = (_shrunk(*sizes) for sizes in zip(from_hw, size_hw, strict=True))
    if y is None or x is None:
        return None
    # In float32 OpenCV rounds each weight, product and sum: once a tap, once more an axis, and less than once more
    # for what is left of its float64. Values are at most 255.
    roundings = y.weights.shape[1] + x.weights.shape[1] + 3
    parts = y.parts * x.parts
    certain = parts % 2 == 1 and 255 * roundings * _ROUNDING < 0.5 / parts
    # What our sums fit into; and without a fraction OpenCV is fast.
    fits = 255 * y.parts < 2**16 and 255 * parts < 2**24
    if not (certain and fits) or (y.whole and x.whole):
        return None
    return Plan(
        y.first,
        y.weights.astype(np.uint16),
        x.first,
        x.weights.astype(np.float32),
        np.float32(1 / parts),
    )


def _shrunk(old: int, new: int) -> Axis | None:
    """Return how `old` pixels become as many or fewer, None for more and for what OpenCV cuts off."""
    common = math.gcd(old, new)
    # A new pixel is so many parts wide, an old one so many.
    parts, part = old // common, new // common
    if new > old or old < 2 or part > _FINEST:
        return None
    start = np.arange(new, dtype=np.intp) * parts
    first, end = start // part, -(-(start + parts) // part)
    taps = max(2, int((end - first).max()))
    first = np.minimum(first, old - taps)
    edges = (first[:, None] + np.arange(taps)) * part
    weights = np.minimum(edges + part, start[:, None] + parts) - np.maximum(edges, start[:, None])
    return Axis(parts, first, weights.clip(0), part == 1)


def _average(
    frame: NDArray[np.uint8], size_hw: tuple[int, int], plan: Plan, kernels: Kernels
) -> NDArray[np.uint8]:
    into = np.empty((*size_hw, 3), np.uint8)
    kernels.average(frame.reshape(len(frame), -1), into.reshape(len(into), -1), *plan)
    return into


@lru_cache(maxsize=1)
def _opencv_agrees(kernels: Kernels) -> bool:
    """Say whether OpenCV gives the same for noise, as that of another kind of machine may not."""
    noise = np.random.default_rng(0).integers(0, 256, (135, 240, 3), np.uint8)
    plan = plan_of((135, 240), (64, 128))
    assert plan is not None
    return bool(
        (_average(noise, (64, 128), plan, kernels) == images.resize_frame(noise, (64, 128))).all()
    )
