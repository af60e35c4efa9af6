"""From the network's resolution to the input's, by align_corners, and gradients back again.

`upsample` is the one that networks are scored, proven and exported with. `Interpolation` does the
same a few rows at a time, so that a loss can be taken at full resolution without ever holding the
full-resolution logits; its layout is (B, rows, columns, channels), since softmax runs over channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

SizeHW = tuple[int, int]
# Values at once: what fits a core's cache, or keeps a GPU busy.
_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}


def upsample(logits: Tensor, size_hw: SizeHW) -> Tensor:
    """Interpolate (B, C, h, w) to (B, C, *size_hw) bilinearly with align_corners, as published.

    Half-precision logits come out as float32.
    """
    return F.interpolate(full_precision(logits), size=size_hw, mode="bilinear", align_corners=True)


def full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others as they are: losses are taken in full precision."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class Interpolation:
    """Bilinear interpolation with align_corners from (h, w) to (H, W), by rows, and its transpose.

    Either axis is a matrix with two entries a row; products of matrices are what processors do best.
    """

    def __init__(self, low_hw: SizeHW, high_hw: SizeHW, like: Tensor) -> None:
        self._down = interpolation_matrix(low_hw[0], high_hw[0], like)
        self._across = interpolation_matrix(low_hw[1], high_hw[1], like)
        self._step = (low_hw[0] - 1) / max(1, high_hw[0] - 1)

    def widen(self, low: Tensor) -> Tensor:
        """Interpolate the columns: (B, C, h, w) → (B, h, W, C)."""
        wide: Tensor = torch.einsum("xw,bchw->bhxc", self._across, low)
        return wide.contiguous()

    def rows(self, wide: Tensor, chosen: slice) -> Tensor:
        """Interpolate some of the rows: (B, h, W, C) → (B, R, W, C)."""
        weights, near = self._near(chosen)
        rows: Tensor = torch.matmul(weights, wide[:, near].flatten(2))
        return rows.reshape(len(wide), -1, *wide.shape[2:])

    def add_rows(self, wide: Tensor, gradient: Tensor, chosen: slice) -> None:
        """Add the transpose of `rows` of a gradient (B, R, W, C) to `wide`."""
        weights, near = self._near(chosen)
        wide[:, near] += torch.matmul(weights.T, gradient.flatten(2)).view_as(wide[:, near])

    def narrow(self, wide: Tensor) -> Tensor:
        """Return the transpose of `widen`: (B, h, W, C) → (B, C, h, w)."""
        low: Tensor = torch.einsum("xw,bhxc->bchw", self._across, wide)
        return low

    def _near(self, chosen: slice) -> tuple[Tensor, slice]:
        """Return the weights of the few low rows that some high rows lie between, and which those are."""
        near = slice(int(chosen.start * self._step), int((chosen.stop - 1) * self._step) + 2)
        return self._down[chosen, near], near


def interpolation_matrix(low: int, high: int, like: Tensor) -> Tensor:
    """Return the (high, low) matrix of linear interpolation with align_corners."""
    at = torch.arange(high, dtype=torch.float64, device=like.device) * (
        (low - 1) / max(1, high - 1)
    )
    nodes = torch.arange(low, dtype=torch.float64, device=like.device)
    return (1 - (at[:, None] - nodes).abs()).clamp(min=0).to(like.dtype)


def row_chunks(height: int, values_a_row: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of rows that together are `height`, of as many rows as the device takes well at once."""
    rows = max(1, _AT_ONCE.get(device.type, 1 << 26) // values_a_row)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
