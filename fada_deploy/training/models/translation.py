"""The networks of CycleGAN (Zhu et al., ICCV 2017): generators and discriminators of frames.

Frames are (B, 3, H, W) float in −1…1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Generator(nn.Module):
    """Translate frames: two halvings of the size, residual blocks, and two doublings.

    `width` is the number of channels at full size, 64 in the publication, with 9 `blocks`.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *_norm(width)]
        for inner, outer in pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 3, 2, padding=1), *_norm(outer)]
        layers += [_Residual(widths[-1]) for _ in range(blocks)]
        for inner, outer in pairwise(reversed(widths)):
            up = nn.ConvTranspose2d(inner, outer, 3, 2, padding=1, output_padding=1)
            layers += [up, *_norm(outer)]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7))
        self.apply(_initialize)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, 3, H, W) to translated frames of the same size."""
        height, width = frames.shape[-2:]
        padded = F.pad(frames, (0, -width % 4, 0, -height % 4), mode="replicate")
        translated: Tensor = torch.tanh(self.layers(padded))
        return translated[..., :height, :width]


class _Residual(nn.Module):
    """Two 3×3 convolutions whose output is added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), *_norm(width),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


class FrameDiscriminator(nn.Module):
    """Score patches of 70×70 pixels: near 1 for frames of the domain, near 0 for translations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for inner, outer, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(inner * width, outer * width, 4, stride, padding=1),
                nn.InstanceNorm2d(outer * width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        self.apply(_initialize)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, 3, H, W) to scores (B, 1, h, w)."""
        scores: Tensor = self.layers(frames)
        return scores


def _norm(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width), nn.ReLU()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(cast("Tensor", module.bias))


def to_network(frames_bhwc: Tensor) -> Tensor:
    """Return uint8 frames (B, H, W, 3) as the networks read them."""
    return frames_bhwc.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in −1…1 as uint8 frames (B, H, W, 3)."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1)
