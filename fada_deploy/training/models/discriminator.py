"""Discriminators: what the adversarial stage holds the two domains apart with."""

from __future__ import annotations

from itertools import pairwise

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


class OutputDiscriminator(nn.Module):
    """The discriminator of AdaptSegNet and ADVENT: five strided convolutions over a map of K channels.

    Its one logit z for "target" is given out as the two-way domain logits (0, z), whose softmax is
    the sigmoid of z.
    """

    def __init__(self, num_classes: int, planes: int = 64) -> None:
        super().__init__()
        widths = (num_classes, planes, 2 * planes, 4 * planes, 8 * planes)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        self.D = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 2, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, K, H, W) to (B, 2, H / 32, W / 32); H and W of at least 32."""
        target = self.D(maps)
        return torch.cat((torch.zeros_like(target), target), 1)
