"""The same labels as `runtime.upsample`, compiled: extra `fast` (numba).

One walk over the grid's cells: where four corners agree by the margin their class is written, elsewhere the
classes that can still win are interpolated, in float32 and in the reference's order of operations. The
compiler is not allowed to reorder or fuse them. Importing this module compiles, or reads what an earlier process
compiled: `runtime.compiled` does so in the background.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_GRID, _LABELS, _INDEX, _WEIGHT = "float32[:,:,::1]", "uint8[:,::1]", "intp[::1]", "float32[::1]"
_AXIS = f"{_INDEX}, {_INDEX}, {_WEIGHT}, {_WEIGHT}"


@njit(
    "void(float32[:,:,::1], intp, uint8[:], boolean[:], float32[::1], float32[::1], float32)",
    nogil=True, cache=True,
)  # fmt: skip
def _winners(
    logits: NDArray[np.float32],
    row: int,
    classes: NDArray[np.uint8],
    sure: NDArray[np.bool_],
    best: NDArray[np.float32],
    second: NDArray[np.float32],
    margin: np.float32,
) -> None:  # pragma: no cover -- compiled, where coverage cannot look
    """Find a grid row's classes, the lower one on a tie, and whether they lead by more than the margin."""
    num_classes, _, width = logits.shape
    for x in range(width):
        best[x] = logits[0, row, x]
        second[x] = np.float32(-np.inf)
        classes[x] = 0
    for k in range(1, num_classes):
        for x in range(width):
            value = logits[k, row, x]
            ahead = value > best[x]
            beaten = best[x] if ahead else value
            second[x] = max(second[x], beaten)
            classes[x] = k if ahead else classes[x]
            best[x] = value if ahead else best[x]
    for x in range(width):
        sure[x] = best[x] - second[x] > margin


@njit(f"intp({_GRID}, intp, intp, intp, intp, float32, uint8[::1], float32[:,::1])", nogil=True, cache=True)
def _candidates(
    logits: NDArray[np.float32],
    row: int,
    under: int,
    column: int,
    beside: int,
    margin: np.float32,
    candidates: NDArray[np.uint8],
    corners: NDArray[np.float32],
) -> int:  # pragma: no cover -- compiled, where coverage cannot look
    """Find the classes that can still win in a cell, rising, and their four corners; return how many."""
    num_classes = len(candidates)
    floor = np.float32(-np.inf)
    for k in range(num_classes):
        upper = min(logits[k, row, column], logits[k, row, beside])
        lower = min(logits[k, under, column], logits[k, under, beside])
        floor = max(floor, min(upper, lower))
    floor -= margin
    count = 0
    for k in range(num_classes):
        a, b = logits[k, row, column], logits[k, row, beside]
        c, d = logits[k, under, column], logits[k, under, beside]
        if max(max(a, b), max(c, d)) >= floor:
            candidates[count] = k
            corners[0, count], corners[1, count] = a, b
            corners[2, count], corners[3, count] = c, d
            count += 1
    return count


@njit(
    f"void({_LABELS}, intp, intp, intp, float32, float32, {_WEIGHT}, {_WEIGHT}, uint8[::1], float32[:,::1], "
    "float32[:,::1], intp)",
    nogil=True, cache=True,
)  # fmt: skip
def _interpolate(
    labels: NDArray[np.uint8],
    x: int,
    top: int,
    bottom: int,
    left: np.float32,
    right: np.float32,
    y_low: NDArray[np.float32],
    y_high: NDArray[np.float32],
    candidates: NDArray[np.uint8],
    corners: NDArray[np.float32],
    ends: NDArray[np.float32],
    count: int,
) -> None:  # pragma: no cover -- compiled, where coverage cannot look
    """Write one pixel column of a cell; `ends` is room for its upper and lower end."""
    for k in range(count):
        ends[0, k] = corners[0, k] * left + corners[1, k] * right
        ends[1, k] = corners[2, k] * left + corners[3, k] * right
    for y in range(top, bottom):
        leader = ends[0, 0] * y_low[y] + ends[1, 0] * y_high[y]
        chosen = candidates[0]
        for k in range(1, count):
            z = ends[0, k] * y_low[y] + ends[1, k] * y_high[y]
            if z > leader:
                leader, chosen = z, candidates[k]
        labels[y, x] = chosen


# Types are written out, so that nothing compiles again in the middle of a film.
@njit(f"void({_GRID}, {_LABELS}, {_AXIS}, {_AXIS}, float32)", nogil=True, cache=True)
def write_labels(
    logits: NDArray[np.float32],
    labels: NDArray[np.uint8],
    y_first: NDArray[np.intp],
    y_count: NDArray[np.intp],
    y_low: NDArray[np.float32],
    y_high: NDArray[np.float32],
    x_first: NDArray[np.intp],
    x_count: NDArray[np.intp],
    x_low: NDArray[np.float32],
    x_high: NDArray[np.float32],
    margin: np.float32,
) -> None:  # pragma: no cover -- compiled, where coverage cannot look
    """Write the classes (H, W) of logits (K, h, w); the rest are `Taps` of the two axes and the margin."""
    num_classes, height, width = logits.shape
    classes = np.empty((2, width), np.uint8)
    sure = np.empty((2, width), np.bool_)
    best = np.empty(width, np.float32)
    second = np.empty(width, np.float32)
    candidates = np.empty(num_classes, np.uint8)
    corners = np.empty((4, num_classes), np.float32)
    ends = np.empty((2, num_classes), np.float32)
    _winners(logits, 0, classes[0], sure[0], best, second, margin)
    for row in range(height):
        here, below = row % 2, (row + 1) % 2
        under = min(row + 1, height - 1)
        if under > row:
            _winners(logits, under, classes[below], sure[below], best, second, margin)
        else:
            below = here
        if y_count[row] == 0:
            continue
        top, bottom = y_first[row], y_first[row] + y_count[row]
        # One line of whole cells first, copied down; mixed cells are written over it.
        for column in range(width):
            for x in range(x_first[column], x_first[column] + x_count[column]):
                labels[top, x] = classes[here, column]
        for y in range(top + 1, bottom):
            labels[y] = labels[top]
        for column in range(width):
            if x_count[column] == 0:
                continue
            beside = min(column + 1, width - 1)
            winner = classes[here, column]
            if (
                sure[here, column]
                and sure[here, beside]
                and sure[below, column]
                and sure[below, beside]
                and classes[here, beside] == winner
                and classes[below, column] == winner
                and classes[below, beside] == winner
            ):
                continue
            count = _candidates(logits, row, under, column, beside, margin, candidates, corners)
            for x in range(x_first[column], x_first[column] + x_count[column]):
                _interpolate(
                    labels, x, top, bottom, x_low[x], x_high[x], y_low, y_high, candidates, corners, ends, count
                )
