"""The pixel discriminator: features → 2K domain logits at the features' resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelDiscriminator(nn.Module):
    """FADA's discriminator, with the released code's parameter names.

    The first K outputs say "source, class k", the last K "target, class k". With K = 1 it is the
    traditional two-way discriminator.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.D = nn.Sequential(
            nn.Conv2d(channels, 256, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(256, 128, 3, padding=1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.cls1 = nn.Conv2d(128, num_classes, 3, padding=1)
        self.cls2 = nn.Conv2d(128, num_classes, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 2K, h, w)."""
        hidden = self.D(features)
        return torch.cat((self.cls1(hidden), self.cls2(hidden)), 1)
