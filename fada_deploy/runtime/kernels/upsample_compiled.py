"""The same labels as `runtime.kernels.upsample`, compiled: extra `fast` (numba).

One walk over the grid's cells: where four corners agree by the margin their class is written, elsewhere the
classes that can still win are interpolated, in float32 and in the reference's order of operations. The
compiler is not allowed to reorder or fuse them. Importing this module compiles, or reads what an earlier process
compiled: `runtime.kernels.loader` does so in the background.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# What is only read may be an array that cannot be written, as callers have them of other libraries.
_GRID = "Array(float32, 3, 'C', readonly=True)"
_LABELS, _INDEX, _WEIGHT = "uint8[:,::1]", "intp[::1]", "float32[::1]"
_AXIS_WEIGHTS = f"{_WEIGHT}, {_WEIGHT}"
_AXIS = f"{_INDEX}, {_INDEX}, {_AXIS_WEIGHTS}"
# Pixel columns that are worked on together.
_COLUMNS = 8


@njit(
    f"void({_GRID}, intp, uint8[:], boolean[:], float32[::1], float32[::1], float32)",
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


@njit(
    "intp(float32[:,:,::1], intp, intp, intp, intp, float32, int32[::1], float32[:,::1])",
    nogil=True,
    cache=True,
)
def _candidates(
    rows: NDArray[np.float32],
    here: int,
    below: int,
    column: int,
    beside: int,
    margin: np.float32,
    candidates: NDArray[np.int32],
    corners: NDArray[np.float32],
) -> int:  # pragma: no cover -- compiled, where coverage cannot look
    """Find the classes that can still win in a cell, rising, and their four corners; return how many."""
    num_classes = len(candidates)
    floor = np.float32(-np.inf)
    for k in range(num_classes):
        upper = min(rows[here, k, column], rows[here, k, beside])
        lower = min(rows[below, k, column], rows[below, k, beside])
        floor = max(floor, min(upper, lower))
    floor -= margin
    count = 0
    for k in range(num_classes):
        a, b = rows[here, k, column], rows[here, k, beside]
        c, d = rows[below, k, column], rows[below, k, beside]
        if max(max(a, b), max(c, d)) >= floor:
            candidates[count] = k
            corners[0, count], corners[1, count] = a, b
            corners[2, count], corners[3, count] = c, d
            count += 1
    return count


@njit(
    f"void({_LABELS}, intp, intp, intp, intp, {_AXIS_WEIGHTS}, {_AXIS_WEIGHTS}, int32[::1], float32[:,::1], intp, "
    f"float32[:,:,::1], {_WEIGHT}, int32[::1])",
    nogil=True, cache=True,
)  # fmt: skip
def _interpolate(
    labels: NDArray[np.uint8],
    top: int,
    bottom: int,
    left: int,
    right: int,
    y_low: NDArray[np.float32],
    y_high: NDArray[np.float32],
    x_low: NDArray[np.float32],
    x_high: NDArray[np.float32],
    candidates: NDArray[np.int32],
    corners: NDArray[np.float32],
    count: int,
    ends: NDArray[np.float32],
    leader: NDArray[np.float32],
    chosen: NDArray[np.int32],
) -> None:  # pragma: no cover -- compiled, where coverage cannot look
    """Write the pixels of a cell, some columns at a time; `ends`, `leader` and `chosen` are room to work in."""
    for start in range(left, right, _COLUMNS):
        columns = min(_COLUMNS, right - start)
        for k in range(count):
            for x in range(columns):
                low, high = x_low[start + x], x_high[start + x]
                ends[0, k, x] = corners[0, k] * low + corners[1, k] * high
                ends[1, k, x] = corners[2, k] * low + corners[3, k] * high
        for y in range(top, bottom):
            low, high = y_low[y], y_high[y]
            # Always as many columns, so that the loops unroll; those beyond the cell are not written.
            for x in range(_COLUMNS):
                leader[x] = ends[0, 0, x] * low + ends[1, 0, x] * high
                chosen[x] = candidates[0]
            for k in range(1, count):
                for x in range(_COLUMNS):
                    z = ends[0, k, x] * low + ends[1, k, x] * high
                    ahead = z > leader[x]
                    leader[x] = z if ahead else leader[x]
                    chosen[x] = candidates[k] if ahead else chosen[x]
            for x in range(columns):
                labels[y, start + x] = np.uint8(chosen[x])


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
    # The grid's rows above and below the cells, close together: planes apart they push one another from the cache.
    rows = np.empty((2, num_classes, width), np.float32)
    candidates = np.empty(num_classes, np.int32)
    corners = np.empty((4, num_classes), np.float32)
    ends = np.zeros((2, num_classes, _COLUMNS), np.float32)
    leader = np.empty(_COLUMNS, np.float32)
    chosen = np.empty(_COLUMNS, np.int32)
    rows[0] = logits[:, 0]
    _winners(logits, 0, classes[0], sure[0], best, second, margin)
    for row in range(height):
        here, below = row % 2, (row + 1) % 2
        under = min(row + 1, height - 1)
        if under > row:
            for k in range(num_classes):
                for x in range(width):
                    rows[below, k, x] = logits[k, under, x]
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
            count = _candidates(rows, here, below, column, beside, margin, candidates, corners)
            left = x_first[column]
            _interpolate(
                labels, top, bottom, left, left + x_count[column], y_low, y_high, x_low, x_high,
                candidates, corners, count, ends, leader, chosen,
            )  # fmt: skip
