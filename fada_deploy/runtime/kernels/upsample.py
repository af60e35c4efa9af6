"""From logits at the network's resolution straight to labels at the frame's size, exactly and fast.

Upsampling K planes to a full frame and then taking the argmax costs more than a light network does.
Bilinear weights are convex, though: where the four corners of a cell agree on the class by a clear
margin, so does every pixel inside. Only the other cells, the edges of things, are interpolated.

The meaning of "exact" is `dense_labels`: float32, in one written order of operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.kernels.loader import compiled

Logits = NDArray[np.float32]

# A pixel is z = h0·(w0·a + w1·b) + h1·(w0·c + w1·d), every operation rounded to float32. With unit
# roundoff u = 2⁻²⁴ each term passes four roundings (two products, two sums), so the computed z of a
# class differs from the exact Σ wᵢzᵢ, *with the same rounded weights*, by at most
# ((1+u)⁴ − 1)·Σ wᵢ|zᵢ| < 4.01·u·A, where A = max |z|. If class p leads class q by at least `gap` at
# each corner, their exact sums differ by gap·Σ wᵢ ≥ gap·(1 − 2u), as the rounded weights of an axis
# add up to 1 within u/2. So p wins the computed pixel, strictly, where gap·(1 − 2u) > 8.02·u·A.
# We ask for gap > 16·u·A = 2⁻²⁰·A, twice that, which also covers the rounding of the gap itself; fused
# multiply-adds only round less. Products below 2⁻¹²⁶ may be flushed to zero: seven operations a pixel
# and two classes lose less than 2⁻¹²² by that, hence the floor.
# The bound is used twice: a cell whose corners all have p as their winner by that gap is p throughout;
# and in other cells q need not be looked at where its highest corner lies that gap below some p's lowest.
_MARGIN = np.float32(2.0**-20)
_FLOOR = np.float32(2.0**-120)
# Far beyond any network, far from float32's end, so that no sum above overflows.
_LARGEST = np.float32(1e37)
# Mixed cells are sorted by how many classes can still win in them, and work on as many planes.
_CANDIDATES = (2, 3, 5, 9, 255)
# They are taken a few at a time, so that the planes stay in the cache.
_CELLS = 2048


@dataclass(frozen=True)
class Taps:
    """How the pixels of one axis read the grid: two neighbors and their weights.

    `low`, `high` are intp (n_out,), `w_low` + `w_high` = 1 float32 (n_out,). `first`, `count` say
    which pixels have which `low`: cell c holds the pixels first[c] … first[c] + count[c] − 1.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    w_low: NDArray[np.float32]
    w_high: NDArray[np.float32]
    first: NDArray[np.intp]
    count: NDArray[np.intp]


def axis_taps(n_in: int, n_out: int, *, align_corners: bool) -> Taps:
    """Return the taps of one axis; positions are computed in float32 just as PyTorch does.

    align_corners: pixel i lies at i·(n_in − 1)/(n_out − 1); otherwise at (i + ½)·n_in/n_out − ½,
    clamped to the grid.
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
    """Interpolate every pixel of every class and take the largest, the lower class on a tie.

    The reference: slow, and what `labels_from_logits` equals bit for bit. Same arguments and errors.
    """
    _largest_of(logits_khw)
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
    """Return the class of each pixel, (H, W) uint8, of logits (K, h, w) float32 enlarged bilinearly.

    Equal to `dense_labels`, compiled or not. Written into `out` where one is given. No antialiasing when
    shrinking. Raise `ModelError` where a logit is not finite (or beyond ±1e37).
    """
    margin = np.float32(np.maximum(_largest_of(logits_khw) * _MARGIN, _FLOOR))
    _, height, width = logits_khw.shape
    y = axis_taps(height, size_hw[0], align_corners=align_corners)
    x = axis_taps(width, size_hw[1], align_corners=align_corners)
    labels = np.empty(size_hw, np.uint8) if out is None else out
    kernels = compiled.ready
    if kernels is not None and labels.flags.c_contiguous and logits_khw.dtype == np.float32:
        axes = (y.first, y.count, y.w_low, y.w_high, x.first, x.count, x.w_low, x.w_high)
        kernels.write_labels(np.ascontiguousarray(logits_khw), labels, *axes, margin)
    else:
        _sparse_labels(logits_khw, labels, y, x, margin)
    return labels


def _sparse_labels(
    logits_khw: Logits, labels: NDArray[np.uint8], y: Taps, x: Taps, margin: np.float32
) -> None:
    """Write the labels by NumPy."""
    classes, gap = _winner(logits_khw)
    labels[:] = classes[y.low][:, x.low]
    rows, columns = _mixed_cells(classes, gap > margin, y, x)
    for start in range(0, len(rows), _CELLS):
        some = slice(start, start + _CELLS)
        _fill_cells(labels, logits_khw, (rows[some], columns[some]), y, x, margin)


def mixed_fraction(logits_khw: Logits) -> float:
    """Return the share of cells that `labels_from_logits` has to interpolate, 0 … 1."""
    classes, gap = _winner(logits_khw)
    sure = gap > np.maximum(_largest_of(logits_khw) * _MARGIN, _FLOOR)
    return 1.0 - float(_agreeing(classes, sure).mean())


def confidence_from_logits(
    logits_khw: Logits, size_hw: tuple[int, int], *, align_corners: bool
) -> NDArray[np.float32]:
    """Return the softmax probability of the winning class, (H, W) float32 in 1/K … 1.

    It is taken at the network's own resolution and enlarged bilinearly: one plane instead of K.
    Errors as `labels_from_logits`.
    """
    _largest_of(logits_khw)
    probability = 1 / np.exp(logits_khw - logits_khw.max(0)).sum(0, dtype=np.float32)
    y = axis_taps(probability.shape[0], size_hw[0], align_corners=align_corners)
    x = axis_taps(probability.shape[1], size_hw[1], align_corners=align_corners)
    across = probability[:, x.low] * x.w_low + probability[:, x.high] * x.w_high
    return np.asarray(
        across[y.low] * y.w_low[:, None] + across[y.high] * y.w_high[:, None], np.float32
    )


def _largest_of(logits_khw: Logits) -> np.float32:
    """Return max |z|, having refused what cannot be compared."""
    # A NaN passes through max and fails the comparison.
    largest = np.maximum(logits_khw.max(), -logits_khw.min())
    if not largest <= _LARGEST:
        raise ModelError(
            "the network's logits are not finite (or beyond ±1e37), so no class can be told; "
            "export it again in fp32, or look for a diverged training"
        )
    return np.float32(largest)


def _winner(logits_khw: Logits) -> tuple[NDArray[np.uint8], Logits]:
    """Return the class (h, w) uint8, the lower one on a tie, and its lead over the second."""
    best = logits_khw[0].copy()
    second = np.full_like(best, -np.inf)
    classes = np.zeros(best.shape, np.uint8)
    beaten = np.empty_like(best)
    for index, plane in enumerate(logits_khw[1:], 1):
        np.copyto(classes, np.uint8(index), where=plane > best)
        np.minimum(plane, best, out=beaten)
        np.maximum(second, beaten, out=second)
        np.maximum(best, plane, out=best)
    return classes, best - second


def _agreeing(classes: NDArray[np.uint8], sure: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a cell's four corners (clamped at the last row and column) surely share a class."""
    across = sure.copy()
    across[:, :-1] &= sure[:, 1:] & (classes[:, :-1] == classes[:, 1:])
    whole = across.copy()
    whole[:-1] &= across[1:] & (classes[:-1] == classes[1:])
    return whole


def _mixed_cells(
    classes: NDArray[np.uint8], sure: NDArray[np.bool_], y: Taps, x: Taps
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the cells to interpolate, those with the most pixel rows first."""
    mixed = ~_agreeing(classes, sure)
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
    """Interpolate all pixels of some cells, which come sorted by falling number of pixel rows."""
    rows, columns = cells
    below = np.minimum(rows + 1, logits_khw.shape[1] - 1)
    beside = np.minimum(columns + 1, logits_khw.shape[2] - 1)
    corners = np.stack(
        [
            logits_khw[:, v, u]
            for v, u in ((rows, columns), (rows, beside), (below, columns), (below, beside))
        ]
    )
    possible = corners.max(0) >= corners.min(0).max(0) - margin
    count = possible.sum(0)
    order = np.argsort(~possible, axis=0, kind="stable")
    least = 0
    for most in _CANDIDATES:
        group = np.flatnonzero((count > least) & (count <= most))
        least = most
        if len(group):
            # Cells with fewer candidates repeat their last one, which changes no maximum.
            places = np.minimum(np.arange(count[group].max())[:, None], count[group] - 1)
            chosen = order[places, group]
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
    """Write the labels of n cells with C rising candidate `classes` (C, n) and their `corners` (4, C, n).

    One pixel column of all cells at once, (C, rows, n). A cell with fewer pixel rows than the tallest
    does its last one again.
    """
    rows, columns = cells
    height = np.arange(y.count[rows].max())[:, None]
    py = y.first[rows] + np.minimum(height, y.count[rows] - 1)
    y_low, y_high = y.w_low[py], y.w_high[py]
    ids = classes.astype(np.uint8)
    for dx in range(x.count[columns].max()):
        kept = x.count[columns] > dx
        # A slice where all are kept, as most often, spares copies.
        some = slice(None) if kept.all() else np.flatnonzero(kept)
        px = x.first[columns[some]] + dx
        w_low, w_high = x.w_low[px], x.w_high[px]
        upper_left, upper_right, lower_left, lower_right = corners[:, :, some]
        upper = (upper_left * w_low + upper_right * w_high)[:, None]
        lower = (lower_left * w_low + lower_right * w_high)[:, None]
        z = np.asarray(upper * y_low[:, some] + lower * y_high[:, some], np.float32)
        labels[py[:, some], px] = _winner_of(z, ids[:, None, some])


def _winner_of(z: Logits, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class with the largest z, the first on a tie: (C, rows, n), (C, 1, n) → (rows, n)."""
    # np.argmax along a strided axis is several times slower than this.
    best = z[0]
    winner = np.broadcast_to(classes[0], best.shape).copy()
    for candidate, plane in zip(classes[1:], z[1:], strict=True):
        np.copyto(winner, candidate, where=plane > best)
        best = np.maximum(best, plane)
    return winner
