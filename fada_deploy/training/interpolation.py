"""Bilinear interpolation with align_corners, from the network's resolution to the input's.

`upsample` is used for evaluation, parity checks and export. `Interpolation` computes the same
values a few rows at a time, so that a loss at full resolution never needs the full-resolution
logits. Its layout is (B, rows, columns, channels), because the losses take the softmax over
channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

SizeHW = tuple[int, int]
# Values per chunk of rows: few enough for a core's cache, enough to keep a GPU busy.
_MAX_CHUNK_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}


def upsample(logits: Tensor, size_hw: SizeHW) -> Tensor:
    """Interpolate (B, C, h, w) to (B, C, *size_hw), bilinear with align_corners.

    Half-precision input gives float32 output.
    """
    return F.interpolate(full_precision(logits), size=size_hw, mode="bilinear", align_corners=True)


def full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32 and others unchanged."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class Interpolation:
    """Bilinear interpolation with align_corners from `low_hw` to `high_hw`, and its gradient.

    Each axis is one matrix product: `forward_columns` once, then `forward_rows` for each chunk of
    rows. `like` sets dtype and device of the matrices.
    """

    def __init__(self, low_hw: SizeHW, high_hw: SizeHW, like: Tensor) -> None:
        self._row_matrix = interpolation_matrix(low_hw[0], high_hw[0], like)
        self._column_matrix = interpolation_matrix(low_hw[1], high_hw[1], like)
        self._step = (low_hw[0] - 1) / max(1, high_hw[0] - 1)

    def forward_columns(self, low: Tensor) -> Tensor:
        """Interpolate the columns: (B, C, h, w) → (B, h, W, C)."""
        wide: Tensor = torch.einsum("xw,bchw->bhxc", self._column_matrix, low)
        return wide.contiguous()

    def forward_rows(self, wide: Tensor, rows: slice) -> Tensor:
        """Interpolate the R output rows in `rows`: (B, h, W, C) → (B, R, W, C)."""
        weights, low_rows = self._row_weights(rows)
        high: Tensor = torch.matmul(weights, wide[:, low_rows].flatten(2))
        return high.reshape(len(wide), -1, *wide.shape[2:])

    def backward_rows(self, wide_gradient: Tensor, gradient: Tensor, rows: slice) -> None:
        """Add the gradient (B, R, W, C) of the rows in `rows` to `wide_gradient` (B, h, W, C)."""
        weights, low_rows = self._row_weights(rows)
        target = wide_gradient[:, low_rows]
        target += torch.matmul(weights.T, gradient.flatten(2)).view_as(target)

    def backward_columns(self, wide_gradient: Tensor) -> Tensor:
        """Return the gradient of the input of `forward_columns`: (B, h, W, C) → (B, C, h, w)."""
        low: Tensor = torch.einsum("xw,bhxc->bchw", self._column_matrix, wide_gradient)
        return low

    def _row_weights(self, rows: slice) -> tuple[Tensor, slice]:
        """Return the nonzero block of the row matrix for some output rows, and its input rows."""
        low_rows = slice(int(rows.start * self._step), int((rows.stop - 1) * self._step) + 2)
        return self._row_matrix[rows, low_rows], low_rows


def interpolation_matrix(low: int, high: int, like: Tensor) -> Tensor:
    """Return the (high, low) matrix of linear interpolation with align_corners."""
    positions = torch.arange(high, dtype=torch.float64, device=like.device) * (
        (low - 1) / max(1, high - 1)
    )
    nodes = torch.arange(low, dtype=torch.float64, device=like.device)
    return (1 - (positions[:, None] - nodes).abs()).clamp(min=0).to(like.dtype)


def row_chunks(height: int, values_per_row: int, device: torch.device) -> Iterator[slice]:
    """Yield consecutive slices that cover `height` rows, each small enough for the device."""
    num_rows = max(1, _MAX_CHUNK_VALUES.get(device.type, 1 << 26) // values_per_row)
    for top in range(0, height, num_rows):
        yield slice(top, min(top + num_rows, height))
