"""The upsampling of `runtime.kernels.upsample`, compiled by numba (extra `fast`).

One pass over the cells of the logit grid. Where the four corners agree on a class by the margin,
that class is written. Elsewhere the classes that can still win are interpolated in float32, in the
order of operations of the reference; the compiler may not reorder or fuse them (no fastmath).

Importing this module compiles it or loads numba's cache, so `runtime.kernels.loader` imports it in
a background thread.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Inputs may be read-only arrays, as other libraries return them.
_GRID = "Array(float32, 3, 'C', readonly=True)"
_LABELS, _INDEX, _WEIGHT = "uint8[:,::1]", "intp[::1]", "float32[::1]"
_AXIS_WEIGHTS = f"{_WEIGHT}, {_WEIGHT}"
_AXIS = f"{_INDEX}, {_INDEX}, {_AXIS_WEIGHTS}"
# Pixel columns that are processed together.
_COLUMNS = 8


@njit(
    f"void({_GRID}, intp, uint8[:], boolean[:], float32[::1], float32[::1], float32)",
    nogil=True, cache=True,
)  # fmt: skip
def _winners(
    logits: NDArray[np.float32],
    row: int,
    classes: NDArray[np.uint8],
    clear: NDArray[np.bool_],
    best: NDArray[np.float32],
    second: NDArray[np.float32],
    margin: np.float32,
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Write the winning classes of one grid row and whether each leads by more than the margin.

    On a tie the lower class wins.
    """
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
        clear[x] = best[x] - second[x] > margin


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
    right_column: int,
    margin: np.float32,
    candidates: NDArray[np.int32],
    corners: NDArray[np.float32],
) -> int:  # pragma: no cover -- compiled code is invisible to coverage
    """Write the classes that can still win in a cell, in ascending order, and their four corners.

    Return the number of classes.
    """
    num_classes = len(candidates)
    floor = np.float32(-np.inf)
    for k in range(num_classes):
        upper = min(rows[here, k, column], rows[here, k, right_column])
        lower = min(rows[below, k, column], rows[below, k, right_column])
        floor = max(floor, min(upper, lower))
    floor -= margin
    count = 0
    for k in range(num_classes):
        a, b = rows[here, k, column], rows[here, k, right_column]
        c, d = rows[below, k, column], rows[below, k, right_column]
        if max(max(a, b), max(c, d)) >= floor:
            candidates[count] = k
            corners[0, count], corners[1, count] = a, b
            corners[2, count], corners[3, count] = c, d
            count += 1
    return count


@njit(
    f"void({_LABELS}, intp, intp, intp, intp, {_AXIS_WEIGHTS}, {_AXIS_WEIGHTS}, int32[::1], "
    f"float32[:,::1], intp, float32[:,:,::1], {_WEIGHT}, int32[::1])",
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
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Write the pixels of one cell, a few columns at a time.

    `ends`, `leader` and `chosen` are scratch buffers.
    """
    for start in range(left, right, _COLUMNS):
        columns = min(_COLUMNS, right - start)
        for k in range(count):
            for x in range(columns):
                low, high = x_low[start + x], x_high[start + x]
                ends[0, k, x] = corners[0, k] * low + corners[1, k] * high
                ends[1, k, x] = corners[2, k] * low + corners[3, k] * high
        for y in range(top, bottom):
            low, high = y_low[y], y_high[y]
            # A constant number of columns lets the loops unroll; extra columns are not written.
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


@njit(f"void({_LABELS}, uint8[::1], intp, intp, {_INDEX}, {_INDEX})", nogil=True, cache=True)
def _fill_cells(
    labels: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    top: int,
    bottom: int,
    x_first: NDArray[np.intp],
    x_count: NDArray[np.intp],
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Fill a row of cells with their upper left classes: one line, copied down."""
    for column in range(len(classes)):
        for x in range(x_first[column], x_first[column] + x_count[column]):
            labels[top, x] = classes[column]
    for y in range(top + 1, bottom):
        labels[y] = labels[top]


# Explicit signatures prevent a recompilation in the middle of a video.
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
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Write the classes of logits (K, h, w) into `labels` (H, W).

    The remaining arguments are the fields of `Taps` of both axes and the margin.
    """
    num_classes, height, width = logits.shape
    classes = np.empty((2, width), np.uint8)
    clear = np.empty((2, width), np.bool_)
    best = np.empty(width, np.float32)
    second = np.empty(width, np.float32)
    # Copies of the two grid rows that bound the cells. In `logits` the classes are whole planes
    # apart, and their cache lines would evict one another.
    rows = np.empty((2, num_classes, width), np.float32)
    candidates = np.empty(num_classes, np.int32)
    corners = np.empty((4, num_classes), np.float32)
    ends = np.zeros((2, num_classes, _COLUMNS), np.float32)
    leader = np.empty(_COLUMNS, np.float32)
    chosen = np.empty(_COLUMNS, np.int32)
    rows[0] = logits[:, 0]
    _winners(logits, 0, classes[0], clear[0], best, second, margin)
    for row in range(height):
        here, below = row % 2, (row + 1) % 2
        under = min(row + 1, height - 1)
        if under > row:
            for k in range(num_classes):
                for x in range(width):
                    rows[below, k, x] = logits[k, under, x]
            _winners(logits, under, classes[below], clear[below], best, second, margin)
        else:
            below = here
        if y_count[row] == 0:
            continue
        top, bottom = y_first[row], y_first[row] + y_count[row]
        # Then only mixed cells have to be corrected.
        _fill_cells(labels, classes[here], top, bottom, x_first, x_count)
        for column in range(width):
            if x_count[column] == 0:
                continue
            right_column = min(column + 1, width - 1)
            winner = classes[here, column]
            if (
                clear[here, column]
                and clear[here, right_column]
                and clear[below, column]
                and clear[below, right_column]
                and classes[here, right_column] == winner
                and classes[below, column] == winner
                and classes[below, right_column] == winner
            ):
                continue
            count = _candidates(
                rows, here, below, column, right_column, margin, candidates, corners
            )
            left = x_first[column]
            _interpolate(
                labels, top, bottom, left, left + x_count[column], y_low, y_high, x_low, x_high,
                candidates, corners, count, ends, leader, chosen,
            )  # fmt: skip
