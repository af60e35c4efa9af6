"""DDRNet-23-slim (Hong et al., 2021): two branches, one at 1/8 and one down to 1/64, fused at 1/8.

The published widths and the published parameter names, so that its ImageNet weights load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import BasicBlock, Bottleneck, Norm, conv3x3


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate `x` bilinearly to the height and width of `like`."""
    height, width = like.shape[-2:]
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def norm_relu_conv(inner: int, outer: int, norm: Norm, *, kernel: int) -> list[nn.Module]:
    """Return the pre-activated convolution that the pyramid is made of."""
    conv = nn.Conv2d(inner, outer, 1, bias=False) if kernel == 1 else conv3x3(inner, outer)
    return [norm(inner), nn.ReLU(), conv]


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: context of five sizes, each refined on top of the one before."""

    def __init__(self, inner: int, branch: int, outer: int, norm: Norm) -> None:
        super().__init__()
        pools: list[nn.Module] = [nn.AvgPool2d(k, s, p) for k, s, p in ((5, 2, 2), (9, 4, 4), (17, 8, 8))]
        pools.append(nn.AdaptiveAvgPool2d(1))
        self.scale0 = nn.Sequential(*norm_relu_conv(inner, branch, norm, kernel=1))
        for i, pool in enumerate(pools, 1):
            self.add_module(f"scale{i}", nn.Sequential(pool, *norm_relu_conv(inner, branch, norm, kernel=1)))
            self.add_module(f"process{i}", nn.Sequential(*norm_relu_conv(branch, branch, norm, kernel=3)))
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


class DDRNet(nn.Module):
    """(B, 3, H, W) normalised RGB → fused features (B, 128, H/8, W/8); H and W divisible by 8."""

    out_channels = 128

    def __init__(self, norm: Norm, planes: int = 32) -> None:
        super().__init__()
        high = planes * 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
        )  # fmt: skip
        self.layer1 = _layer(planes, planes, norm)
        self.layer2 = _layer(planes, planes * 2, norm, stride=2)
        self.layer3 = _layer(planes * 2, planes * 4, norm, stride=2)
        self.layer4 = _layer(planes * 4, planes * 8, norm, stride=2)
        self.layer5 = nn.Sequential(
            Bottleneck(planes * 8, planes * 8, norm, stride=2, final_relu=False, expansion=2)
        )
        self.compression3 = nn.Sequential(nn.Conv2d(planes * 4, high, 1, bias=False), norm(high))
        self.compression4 = nn.Sequential(nn.Conv2d(planes * 8, high, 1, bias=False), norm(high))
        self.down3 = nn.Sequential(conv3x3(high, planes * 4, stride=2), norm(planes * 4))
        self.down4 = nn.Sequential(
            conv3x3(high, planes * 4, stride=2), norm(planes * 4), nn.ReLU(),
            conv3x3(planes * 4, planes * 8, stride=2), norm(planes * 8),
        )  # fmt: skip
        self.layer3_ = _layer(planes * 2, high, norm)
        self.layer4_ = _layer(high, high, norm)
        self.layer5_ = nn.Sequential(Bottleneck(high, high, norm, final_relu=False, expansion=2))
        self.spp = DAPPM(planes * 16, planes * 4, planes * 4, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused features."""
        eighth = self.layer2(F.relu(self.layer1(self.conv1(x))))
        low = self.layer3(F.relu(eighth))
        high = self.layer3_(F.relu(eighth))
        low, high = (
            low + self.down3(F.relu(high)),
            high + resize_to(self.compression3(F.relu(low)), high),
        )
        low = self.layer4(F.relu(low))
        high = self.layer4_(F.relu(high))
        low, high = (
            low + self.down4(F.relu(high)),
            high + resize_to(self.compression4(F.relu(low)), high),
        )
        high = self.layer5_(F.relu(high))
        context = self.spp(self.layer5(F.relu(low)))
        fused: Tensor = high + resize_to(context, high)
        return fused


def _layer(inner: int, planes: int, norm: Norm, *, stride: int = 1) -> nn.Sequential:
    # The second block leaves its sum signed; whoever reads it applies the ReLU.
    return nn.Sequential(
        BasicBlock(inner, planes, norm, stride=stride),
        BasicBlock(planes, planes, norm, final_relu=False),
    )


def ddrnet23_slim(norm: Norm) -> DDRNet:
    """Return DDRNet-23-slim, 5.7 M parameters with its head."""
    return DDRNet(norm)
