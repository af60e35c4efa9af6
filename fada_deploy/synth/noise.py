"""Reproducible random patterns: a tileable noise texture and hashes of integers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# float32 at run time; type checkers lose the width in mixed arithmetic.
F32 = NDArray[np.floating[Any]]
TILE = 256


@lru_cache(maxsize=1)
def texture() -> F32:
    """Return tileable noise (256, 256) with mean 0, deviation 1 and structure at all scales."""
    rng = np.random.default_rng(5)
    total = np.zeros((TILE, TILE), np.float32)
    for size in (4, 8, 16, 32, 64, 128, 256):
        grid = rng.standard_normal((size, size)).astype(np.float32)
        wrapped = np.pad(grid, 2, mode="wrap")
        step = TILE // size
        large = cv2.resize(wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += large[2 * step : 2 * step + TILE, 2 * step : 2 * step + TILE] * np.float32(
            size**-0.5
        )
    total = (total - total.mean()) / total.std()
    total.flags.writeable = False
    return np.asarray(total)


def sample(s: F32, t: F32, period: float) -> F32:
    """Sample the noise texture at coordinates in meters; it repeats every `period` meters."""
    scale = np.float32(TILE / period)
    i = np.floor(t * scale).astype(np.int32) & (TILE - 1)
    j = np.floor(s * scale).astype(np.int32) & (TILE - 1)
    return np.asarray(texture().ravel()[i * TILE + j])


def hash_int(*keys: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Hash integers into 0…65535, element by element."""
    total: NDArray[np.int64] = np.asarray(0x2545F491, np.int64)
    with np.errstate(over="ignore"):
        for k, key in enumerate(keys):
            total = (total ^ (np.asarray(key, np.int64) * (0x9E3779B1 + 2 * k))) * np.int64(
                0x85EBCA6B
            ) & 0x7FFFFFFFFFFF
            total = total ^ (total >> 15)
    return np.asarray((total >> 7) & 0xFFFF)


def hash_fraction(*keys: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Hash integers into [0, 1), element by element."""
    return np.asarray(hash_int(*keys) / 65536.0)


def pulse(x: F32, duty: F32 | float, width: F32) -> F32:
    """Return the fraction of the interval `width` around x in which frac(x) < duty.

    This is a box-filtered square wave: stripes without moiré.
    """
    interval = np.maximum(width, np.float32(1e-3))

    def area(at: F32) -> F32:
        periods = np.floor(at)
        return np.asarray(periods * duty + np.minimum(at - periods, duty), np.float32)

    return np.asarray((area(x + interval / 2) - area(x - interval / 2)) / interval, np.float32)
