"""Pyramid pooling over five context sizes: DAPPM of DDRNet and PAPPM of PIDNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fada_deploy.training.models.blocks import Norm, conv3x3, resize_to


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: each context is added to the previous one and refined."""

    def __init__(self, inner: int, branch: int, outer: int, norm: Norm) -> None:
        super().__init__()
        self.scale0 = _context(0, inner, branch, norm)
        for i in range(1, 5):
            self.add_module(f"scale{i}", _context(i, inner, branch, norm))
            self.add_module(
                f"process{i}", nn.Sequential(*norm_relu_conv(branch, branch, norm, kernel=3))
            )
        self.compression = nn.Sequential(*norm_relu_conv(5 * branch, outer, norm, kernel=1))
        self.shortcut = nn.Sequential(*norm_relu_conv(inner, outer, norm, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, h, w) to (B, outer, h, w)."""
        scales = [self.scale0(x)]
        for i in range(1, 5):
            pooled = resize_to(self.get_submodule(f"scale{i}")(x), x)
            scales.append(self.get_submodule(f"process{i}")(pooled + scales[-1]))
        context: Tensor = self.compression(torch.cat(scales, 1)) + self.shortcut(x)
        return context


class PAPPM(nn.Module):
    """Parallel aggregation pyramid pooling: one grouped convolution refines all contexts."""

    def __init__(self, inner: int, branch: int, outer: int, norm: Norm) -> None:
        super().__init__()
        for i in range(5):
            self.add_module(f"scale{i}", _context(i, inner, branch, norm))
        grouped = nn.Conv2d(4 * branch, 4 * branch, 3, padding=1, groups=4, bias=False)
        self.scale_process = nn.Sequential(norm(4 * branch), nn.ReLU(), grouped)
        self.compression = nn.Sequential(*norm_relu_conv(5 * branch, outer, norm, kernel=1))
        self.shortcut = nn.Sequential(*norm_relu_conv(inner, outer, norm, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, h, w) to (B, outer, h, w)."""
        local = self.get_submodule("scale0")(x)
        pooled = [resize_to(self.get_submodule(f"scale{i}")(x), x) + local for i in range(1, 5)]
        refined = self.scale_process(torch.cat(pooled, 1))
        context: Tensor = self.compression(torch.cat((local, refined), 1)) + self.shortcut(x)
        return context


def norm_relu_conv(inner: int, outer: int, norm: Norm, *, kernel: int) -> list[nn.Module]:
    """Return the layers of a pre-activated convolution: norm, ReLU, convolution."""
    conv = nn.Conv2d(inner, outer, 1, bias=False) if kernel == 1 else conv3x3(inner, outer)
    return [norm(inner), nn.ReLU(), conv]


def _context(i: int, inner: int, branch: int, norm: Norm) -> nn.Sequential:
    """Return context `i`: 0 the unpooled features, 1-3 growing windows, 4 the entire image."""
    pools: tuple[list[nn.Module], ...] = (
        [],
        [nn.AvgPool2d(5, 2, 2)],
        [nn.AvgPool2d(9, 4, 4)],
        [nn.AvgPool2d(17, 8, 8)],
        [nn.AdaptiveAvgPool2d(1)],
    )
    return nn.Sequential(*pools[i], *norm_relu_conv(inner, branch, norm, kernel=1))
