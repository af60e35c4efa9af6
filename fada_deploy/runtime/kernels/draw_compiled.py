"""YUV drawing and label counting, compiled by numba (extra `fast`).

Label maps consist of large areas of one class. Blocks with a single class take a fast path that
does not look up the color of each pixel.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LINE, _PLANE = "uint8[::1]", "uint8[:,::1]"
# Inputs may be read-only arrays.
_LINE_READ, _PLANE_READ = (f"Array(uint8, {n}, 'C', readonly=True)" for n in (1, 2))
# Pixels per block, when drawing and when counting.
_BLOCK = 32
_COUNT_BLOCK = 64


@njit("uint8(uint8, float32, float32)", nogil=True, cache=True, inline="always")
def _over(
    under: np.uint8, beta: np.float32, color: np.float32
) -> np.uint8:  # pragma: no cover -- compiled code is invisible to coverage
    return np.uint8(np.int32(np.rint(np.float32(under) * beta + color)))


@njit(
    f"void({_LINE_READ}, {_LINE_READ}, {_PLANE_READ}, float32[:,::1], float32, {_LINE_READ}, "
    f"{_LINE_READ}, {_LINE}, {_LINE}, {_LINE_READ}, {_LINE}, {_LINE_READ}, {_LINE}, intp, intp)",
    nogil=True, cache=True,
)  # fmt: skip
def _blend_pixels(
    upper: NDArray[np.uint8],
    lower: NDArray[np.uint8],
    tables: NDArray[np.uint8],
    colors: NDArray[np.float32],
    alpha: np.float32,
    y_a: NDArray[np.uint8],
    y_b: NDArray[np.uint8],
    y_c: NDArray[np.uint8],
    y_d: NDArray[np.uint8],
    u_a: NDArray[np.uint8],
    u_c: NDArray[np.uint8],
    v_a: NDArray[np.uint8],
    v_c: NDArray[np.uint8],
    left: int,
    right: int,
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Blend two lines of pixels from column `left` to `right`, one 2×2 block at a time."""
    beta = np.float32(1) - alpha
    for x in range(left, right, 2):
        a, b, c, d = upper[x], upper[x + 1], lower[x], lower[x + 1]
        y_c[x] = _over(y_a[x], beta, colors[0, a])
        y_c[x + 1] = _over(y_a[x + 1], beta, colors[0, b])
        y_d[x] = _over(y_b[x], beta, colors[0, c])
        y_d[x + 1] = _over(y_b[x + 1], beta, colors[0, d])
        at = x // 2
        u = (np.int32(tables[1, a]) + tables[1, b] + tables[1, c] + tables[1, d] + 2) >> 2
        v = (np.int32(tables[2, a]) + tables[2, b] + tables[2, c] + tables[2, d] + 2) >> 2
        u_c[at] = _over(u_a[at], beta, np.float32(u) * alpha)
        v_c[at] = _over(v_a[at], beta, np.float32(v) * alpha)


@njit(
    f"void({_PLANE_READ}, {_PLANE_READ}, float32, {', '.join([_PLANE_READ] * 3 + [_PLANE] * 3)})",
    nogil=True, cache=True,
)  # fmt: skip
def blend(
    labels: NDArray[np.uint8],
    tables: NDArray[np.uint8],
    alpha: np.float32,
    y_under: NDArray[np.uint8],
    u_under: NDArray[np.uint8],
    v_under: NDArray[np.uint8],
    y_drawn: NDArray[np.uint8],
    u_drawn: NDArray[np.uint8],
    v_drawn: NDArray[np.uint8],
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Blend the colors of labels (H, W) with a yuv420p frame; H and W are even.

    `tables` (3, 256) maps labels to Y′, Cb and Cr. The planes include the padding of their lines,
    so they are at least W or W / 2 wide. A chroma pixel gets the mean color of its four luma
    pixels.
    """
    height, width = labels.shape
    beta = np.float32(1) - alpha
    colors = tables.astype(np.float32) * alpha
    for row in range(0, height, 2):
        upper, lower = labels[row], labels[row + 1]
        y_a, y_b, y_c, y_d = y_under[row], y_under[row + 1], y_drawn[row], y_drawn[row + 1]
        u_a, u_c, v_a, v_c = (
            u_under[row // 2],
            u_drawn[row // 2],
            v_under[row // 2],
            v_drawn[row // 2],
        )
        both = (upper, lower, tables, colors, alpha, y_a, y_b, y_c, y_d, u_a, u_c, v_a, v_c)
        # A `while` loop: with a stepped `range` LLVM cannot tell that indices are not negative,
        # and does not vectorize.
        left = 0
        while left + _BLOCK <= width:
            first = upper[left]
            other = np.uint8(0)
            for k in range(_BLOCK):
                other |= (upper[left + k] ^ first) | (lower[left + k] ^ first)
            if other == 0:
                color = colors[0, first]
                for k in range(_BLOCK):
                    y_c[left + k] = _over(y_a[left + k], beta, color)
                    y_d[left + k] = _over(y_b[left + k], beta, color)
                u_color, v_color = colors[1, first], colors[2, first]
                at = left // 2
                for k in range(_BLOCK // 2):
                    u_c[at + k] = _over(u_a[at + k], beta, u_color)
                    v_c[at + k] = _over(v_a[at + k], beta, v_color)
            else:
                _blend_pixels(*both, left, left + _BLOCK)
            left += _BLOCK
        _blend_pixels(*both, left, width)


@njit(f"void({_LINE_READ}, int64[::1])", nogil=True, cache=True)
def count(
    labels: NDArray[np.uint8], counts: NDArray[np.int64]
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Add the number of occurrences of each label 0 … 255 to `counts` (256,)."""
    blocks_end = labels.size // _COUNT_BLOCK * _COUNT_BLOCK
    for start in range(0, blocks_end, _COUNT_BLOCK):
        first = labels[start]
        other = np.uint8(0)
        for i in range(start, start + _COUNT_BLOCK):
            other |= labels[i] ^ first
        if other == 0:
            counts[first] += _COUNT_BLOCK
        else:
            for i in range(start, start + _COUNT_BLOCK):
                counts[labels[i]] += 1
    for i in range(blocks_end, labels.size):
        counts[labels[i]] += 1
