"""Compute labels at the frame's size from logits at the network's resolution, exactly and fast.

Upsampling K planes to the full frame and taking the argmax costs more than a light network does.
But bilinear weights are convex: if the four corners of a cell agree on a class by a sufficient
margin, every pixel inside has that class. Only the other cells, at object boundaries, are
interpolated.

The result is identical to `dense_labels`, which defines it: float32 with a fixed order of
operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.kernels.loader import kernel_loader

Logits = NDArray[np.float32]

# A pixel is z = h0·(w0·a + w1·b) + h1·(w0·c + w1·d), every operation rounded to float32. With unit
# roundoff u = 2⁻²⁴ each term passes four roundings (two products, two sums), so the computed z of a
# class differs from the exact Σ wᵢzᵢ, *with the same rounded weights*, by at most
# ((1+u)⁴ − 1)·Σ wᵢ|zᵢ| < 4.01·u·A, where A = max |z|. If class p leads class q by at least `gap` at
# each corner, their exact sums differ by gap·Σ wᵢ ≥ gap·(1 − 2u), as the rounded weights of an axis
# add up to 1 within u/2. So p wins the computed pixel, strictly, where gap·(1 − 2u) > 8.02·u·A.
# We require gap > 16·u·A = 2⁻²⁰·A, twice that, which also covers the rounding of the gap itself;
# fused multiply-adds only round less. Products below 2⁻¹²⁶ may be flushed to zero: over seven
# operations per pixel and two classes this loses less than 2⁻¹²², hence the floor.
# The bound is used twice. A cell whose four corners all have p as winner by that gap has label p
# everywhere. In other cells, class q can be skipped if its highest corner lies that gap below the
# lowest corner of some class p.
_MARGIN = np.float32(2.0**-20)
_FLOOR = np.float32(2.0**-120)
# Far above any real logit and far below the largest float32, so that no sum above overflows.
_LARGEST = np.float32(1e37)
# Mixed cells are grouped by the number of classes that can still win (upper limits of the groups).
_CANDIDATES = (2, 3, 5, 9, 255)
# Cells per chunk, so that the intermediate arrays stay in the CPU cache.
_CELLS = 2048


@dataclass(frozen=True, eq=False)
class Taps:
    """Bilinear interpolation along one axis: two grid neighbors and their weights for each pixel.

    `low`, `high`: neighbor indices, intp (n_out,). `w_low`, `w_high`: weights that sum to 1,
    float32 (n_out,). `first`, `count`, intp (n_in,): grid cell c contains the output pixels
    first[c] … first[c] + count[c] − 1, those with low = c.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    w_low: NDArray[np.float32]
    w_high: NDArray[np.float32]
    first: NDArray[np.intp]
    count: NDArray[np.intp]


def axis_taps(n_in: int, n_out: int, *, align_corners: bool) -> Taps:
    """Return the taps that resize an axis from `n_in` to `n_out`; float32 positions as in PyTorch.

    With align_corners, pixel i lies at i·(n_in − 1)/(n_out − 1), otherwise at
    (i + ½)·n_in/n_out − ½, clamped to the grid.
    """
    pixels = np.arange(n_out, dtype=np.float32)
    if align_corners:
        scale = np.float32((n_in - 1) / max(n_out - 1, 1))
        position = pixels * scale
    else:
        scale = np.float32(n_in) / np.float32(n_out)
        position = np.maximum((pixels + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.minimum(position.astype(np.intp), n_in - 1)
    w_high = np.minimum(position - low.astype(np.float32), np.float32(1))
    cells = np.arange(n_in)
    first = np.searchsorted(low, cells, "left")
    count = np.searchsorted(low, cells, "right") - first
    return Taps(low, np.minimum(low + 1, n_in - 1), np.float32(1) - w_high, w_high, first, count)


def dense_labels(
    logits_khw: Logits, size_hw: tuple[int, int], *, align_corners: bool
) -> NDArray[np.uint8]:
    """Interpolate every class at every pixel and return the argmax, the lower class on a tie.

    Slow reference implementation of `labels_from_logits`, with the same arguments and errors.
    """
    _largest_magnitude(logits_khw)
    _, height, width = logits_khw.shape
    y = axis_taps(height, size_hw[0], align_corners=align_corners)
    x = axis_taps(width, size_hw[1], align_corners=align_corners)
    best = np.full(size_hw, -np.inf, np.float32)
    labels = np.zeros(size_hw, np.uint8)
    for index, plane in enumerate(logits_khw):
        across = plane[:, x.low] * x.w_low + plane[:, x.high] * x.w_high
        z = across[y.low] * y.w_low[:, None] + across[y.high] * y.w_high[:, None]
        labels[z > best] = index
        np.maximum(best, z, out=best)
    return labels


def labels_from_logits(
    logits_khw: Logits,
    size_hw: tuple[int, int],
    *,
    align_corners: bool,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the argmax (H, W) uint8 of logits (K, h, w) float32 after bilinear resizing.

    Identical to `dense_labels`, compiled or not. The result is written into `out` if given. There
    is no antialiasing when shrinking. Raise `ModelError` if a logit is not finite or exceeds ±1e37.
    """
    margin = np.float32(np.maximum(_largest_magnitude(logits_khw) * _MARGIN, _FLOOR))
    _, height, width = logits_khw.shape
    y = axis_taps(height, size_hw[0], align_corners=align_corners)
    x = axis_taps(width, size_hw[1], align_corners=align_corners)
    labels = np.empty(size_hw, np.uint8) if out is None else out
    kernels = kernel_loader.ready
    if kernels is not None and labels.flags.c_contiguous and logits_khw.dtype == np.float32:
        axes = (y.first, y.count, y.w_low, y.w_high, x.first, x.count, x.w_low, x.w_high)
        kernels.write_labels(np.ascontiguousarray(logits_khw), labels, *axes, margin)
    else:
        _sparse_labels(logits_khw, labels, y, x, margin)
    return labels


def _sparse_labels(
    logits_khw: Logits, labels: NDArray[np.uint8], y: Taps, x: Taps, margin: np.float32
) -> None:
    """Write the labels using NumPy only."""
    classes, gap = _winner(logits_khw)
    labels[:] = classes[y.low][:, x.low]
    rows, columns = _mixed_cells(classes, gap > margin, y, x)
    for start in range(0, len(rows), _CELLS):
        chunk = slice(start, start + _CELLS)
        _fill_cells(labels, logits_khw, (rows[chunk], columns[chunk]), y, x, margin)


def mixed_fraction(logits_khw: Logits) -> float:
    """Return the fraction (0 … 1) of grid cells that `labels_from_logits` has to interpolate."""
    classes, gap = _winner(logits_khw)
    clear = gap > np.maximum(_largest_magnitude(logits_khw) * _MARGIN, _FLOOR)
    return 1.0 - float(_uniform_cells(classes, clear).mean())


def confidence_from_logits(
    logits_khw: Logits, size_hw: tuple[int, int], *, align_corners: bool
) -> NDArray[np.float32]:
    """Return the softmax probability of the winning class, (H, W) float32 in 1/K … 1.

    The probability is computed at the network's resolution and resized bilinearly, which takes one
    plane instead of K. Same errors as `labels_from_logits`.
    """
    _largest_magnitude(logits_khw)
    probability = 1 / np.exp(logits_khw - logits_khw.max(0)).sum(0, dtype=np.float32)
    y = axis_taps(probability.shape[0], size_hw[0], align_corners=align_corners)
    x = axis_taps(probability.shape[1], size_hw[1], align_corners=align_corners)
    across = probability[:, x.low] * x.w_low + probability[:, x.high] * x.w_high
    return np.asarray(
        across[y.low] * y.w_low[:, None] + across[y.high] * y.w_high[:, None], np.float32
    )


def _largest_magnitude(logits_khw: Logits) -> np.float32:
    """Return max |z|; raise `ModelError` if it is not finite or too large."""
    # max propagates NaN, and a comparison with NaN is false.
    largest = np.maximum(logits_khw.max(), -logits_khw.min())
    if not largest <= _LARGEST:
        raise ModelError(
            "the network's logits are not finite (or exceed ±1e37); "
            "export the model again in fp32, or check whether the training diverged"
        )
    return np.float32(largest)


def _winner(logits_khw: Logits) -> tuple[NDArray[np.uint8], Logits]:
    """Return the argmax (h, w) uint8, the lower class on a tie, and its lead over the second."""
    best = logits_khw[0].copy()
    second = np.full_like(best, -np.inf)
    classes = np.zeros(best.shape, np.uint8)
    smaller = np.empty_like(best)
    for index, plane in enumerate(logits_khw[1:], 1):
        np.copyto(classes, np.uint8(index), where=plane > best)
        np.minimum(plane, best, out=smaller)
        np.maximum(second, smaller, out=second)
        np.maximum(best, plane, out=best)
    return classes, best - second


def _uniform_cells(classes: NDArray[np.uint8], clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells (h, w) whose four corners have the same class, each with a clear lead.

    Corners beyond the last row and column are clamped.
    """
    across = clear.copy()
    across[:, :-1] &= clear[:, 1:] & (classes[:, :-1] == classes[:, 1:])
    uniform = across.copy()
    uniform[:-1] &= across[1:] & (classes[:-1] == classes[1:])
    return uniform


def _mixed_cells(
    classes: NDArray[np.uint8], clear: NDArray[np.bool_], y: Taps, x: Taps
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns of the cells to interpolate, sorted by descending pixel rows."""
    mixed = ~_uniform_cells(classes, clear)
    mixed[y.count == 0] = False
    mixed[:, x.count == 0] = False
    rows, columns = np.nonzero(mixed)
    order = np.argsort(-y.count[rows], kind="stable")
    return rows[order], columns[order]


def _fill_cells(
    labels: NDArray[np.uint8],
    logits_khw: Logits,
    cells: tuple[NDArray[np.intp], NDArray[np.intp]],
    y: Taps,
    x: Taps,
    margin: np.float32,
) -> None:
    """Interpolate all pixels of some cells, sorted by descending number of pixel rows."""
    rows, columns = cells
    below = np.minimum(rows + 1, logits_khw.shape[1] - 1)
    right = np.minimum(columns + 1, logits_khw.shape[2] - 1)
    corners = np.stack(
        [
            logits_khw[:, v, u]
            for v, u in ((rows, columns), (rows, right), (below, columns), (below, right))
        ]
    )
    possible = corners.max(0) >= corners.min(0).max(0) - margin
    count = possible.sum(0)
    order = np.argsort(~possible, axis=0, kind="stable")
    lower_limit = 0
    for upper_limit in _CANDIDATES:
        group = np.flatnonzero((count > lower_limit) & (count <= upper_limit))
        lower_limit = upper_limit
        if len(group):
            # Cells with fewer candidates repeat their last one, which does not change the maximum.
            ranks = np.minimum(np.arange(count[group].max())[:, None], count[group] - 1)
            chosen = order[ranks, group]
            _interpolate(
                labels, corners[:, chosen, group], chosen, (rows[group], columns[group]), y, x
            )


def _interpolate(
    labels: NDArray[np.uint8],
    corners: NDArray[np.float32],
    classes: NDArray[np.intp],
    cells: tuple[NDArray[np.intp], NDArray[np.intp]],
    y: Taps,
    x: Taps,
) -> None:
    """Write the labels of n cells.

    `classes` (C, n) are the candidates in ascending order, `corners` (4, C, n) their logits. One
    pixel column of all cells is computed at a time, (C, rows, n). A cell with fewer pixel rows than
    the tallest computes its last row again.
    """
    rows, columns = cells
    height = np.arange(y.count[rows].max())[:, None]
    py = y.first[rows] + np.minimum(height, y.count[rows] - 1)
    y_low, y_high = y.w_low[py], y.w_high[py]
    ids = classes.astype(np.uint8)
    for dx in range(x.count[columns].max()):
        has_column = x.count[columns] > dx
        # Usually all cells are this wide, and a slice avoids copies.
        cell = slice(None) if has_column.all() else np.flatnonzero(has_column)
        px = x.first[columns[cell]] + dx
        w_low, w_high = x.w_low[px], x.w_high[px]
        upper_left, upper_right, lower_left, lower_right = corners[:, :, cell]
        upper = (upper_left * w_low + upper_right * w_high)[:, None]
        lower = (lower_left * w_low + lower_right * w_high)[:, None]
        z = np.asarray(upper * y_low[:, cell] + lower * y_high[:, cell], np.float32)
        labels[py[:, cell], px] = _argmax(z, ids[:, None, cell])


def _argmax(z: Logits, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class of the largest z (C, rows, n), the first on a tie, as (rows, n) uint8."""
    # np.argmax along a strided axis is several times slower.
    best = z[0]
    winner = np.broadcast_to(classes[0], best.shape).copy()
    for candidate, plane in zip(classes[1:], z[1:], strict=True):
        np.copyto(winner, candidate, where=plane > best)
        best = np.maximum(best, plane)
    return winner
