"""Domain discriminators of the adversarial stage."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class PixelDiscriminator(nn.Module):
    """The class-level discriminator of FADA, with the parameter names of the released code.

    Of its 2K outputs, output k is the logit of "source, class k" and output K + k that of
    "target, class k". With K = 1 it is the usual binary domain discriminator.
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
        """Map features (B, C, h, w) to domain logits (B, 2K, h, w)."""
        hidden = self.D(features)
        return torch.cat((self.cls1(hidden), self.cls2(hidden)), 1)


class OutputDiscriminator(nn.Module):
    """The output-level discriminator of AdaptSegNet and ADVENT: five strided convolutions.

    Its single logit z of "target" is returned as the two domain logits (0, z), because their
    softmax equals the sigmoid of z.
    """

    def __init__(self, num_classes: int, planes: int = 64) -> None:
        super().__init__()
        widths = (num_classes, planes, 2 * planes, 4 * planes, 8 * planes)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        self.D = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 2, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map output maps (B, K, H, W) to domain logits (B, 2, H/32, W/32); H and W at least 32."""
        target = self.D(maps)
        return torch.cat((torch.zeros_like(target), target), 1)
