"""PIDNet-S (Xu et al., CVPR 2023): a detail, a context and a boundary branch, fused at 1/8.

The published widths and the published parameter names, so that its ImageNet weights load. The auxiliary
heads of the published training are not part of the network that is deployed. What ImageNet weights leave
out starts as PyTorch starts it: from random weights that learned faster than the published initialization.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import (
    BasicBlock,
    Bottleneck,
    Norm,
    conv3x3,
    resize_to,
    signed_layer,
)
from fada_deploy.training.models.pyramids import PAPPM

# What its ImageNet weights leave out: the boundary branch and all that needs it, and the pyramid.
NOT_PRETRAINED = ("layer3_d.", "layer4_d.", "layer5_d.", "diff3.", "diff4.", "spp.", "dfm.")


class PagFM(nn.Module):
    """Pixel-attention-guided fusion: each pixel takes from the context as much as it resembles it."""

    def __init__(self, channels: int, inner: int, norm: Norm) -> None:
        super().__init__()
        self.f_x = _conv_norm(channels, inner, norm)
        self.f_y = _conv_norm(channels, inner, norm)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """Blend (B, C, h, w) with a context (B, C, h', w'); return (B, C, h, w)."""
        likeness = (self.f_x(detail) * resize_to(self.f_y(context), detail)).sum(1, keepdim=True)
        share = likeness.sigmoid()
        blended: Tensor = (1 - share) * detail + share * resize_to(context, detail)
        return blended


class LightBag(nn.Module):
    """Boundary-attention-guided fusion: details count at boundaries, context within them."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv_p = _conv_norm(channels, channels, norm)
        self.conv_i = _conv_norm(channels, channels, norm)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        """Fuse three (B, C, h, w) into one."""
        edge = boundary.sigmoid()
        fused: Tensor = self.conv_p((1 - edge) * context + detail) + self.conv_i(
            context + edge * detail
        )
        return fused


class PIDNet(nn.Module):
    """(B, 3, H, W) normalized RGB → fused features (B, 128, H/8, W/8); H and W divisible by 8.

    The published names: `layer3_` and on are the detail branch, `layer3_d` and on the boundary branch.
    """

    out_channels = 128

    def __init__(self, norm: Norm, planes: int = 32, branch: int = 96) -> None:
        super().__init__()
        high = planes * 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
        )  # fmt: skip
        self.layer1 = signed_layer(planes, planes, norm)
        self.layer2 = signed_layer(planes, high, norm, stride=2)
        self.layer3 = signed_layer(high, planes * 4, norm, blocks=3, stride=2)
        self.layer4 = signed_layer(planes * 4, planes * 8, norm, blocks=3, stride=2)
        self.layer5 = nn.Sequential(
            _bottleneck(planes * 8, planes * 8, norm, stride=2),
            _bottleneck(planes * 16, planes * 8, norm),
        )
        self.compression3 = _conv_norm(planes * 4, high, norm)
        self.compression4 = _conv_norm(planes * 8, high, norm)
        self.pag3 = PagFM(high, planes, norm)
        self.pag4 = PagFM(high, planes, norm)
        self.layer3_ = signed_layer(high, high, norm)
        self.layer4_ = signed_layer(high, high, norm)
        self.layer5_ = nn.Sequential(_bottleneck(high, high, norm))
        self.layer3_d = BasicBlock(high, planes, norm, final_relu=False)
        self.layer4_d = nn.Sequential(_bottleneck(planes, planes, norm))
        self.layer5_d = nn.Sequential(_bottleneck(high, high, norm))
        self.diff3 = nn.Sequential(conv3x3(planes * 4, planes), norm(planes))
        self.diff4 = nn.Sequential(conv3x3(planes * 8, high), norm(high))
        self.spp = PAPPM(planes * 16, branch, planes * 4, norm)
        self.dfm = LightBag(planes * 4, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused features."""
        eighth = F.relu(self.layer2(F.relu(self.layer1(self.conv1(x)))))
        context = F.relu(self.layer3(eighth))
        detail = self.pag3(self.layer3_(eighth), self.compression3(context))
        boundary = self.layer3_d(eighth) + resize_to(self.diff3(context), eighth)
        context = F.relu(self.layer4(context))
        detail = self.pag4(self.layer4_(F.relu(detail)), self.compression4(context))
        boundary = self.layer4_d(F.relu(boundary)) + resize_to(self.diff4(context), eighth)
        detail = self.layer5_(F.relu(detail))
        boundary = self.layer5_d(F.relu(boundary))
        context = resize_to(self.spp(self.layer5(context)), eighth)
        fused: Tensor = self.dfm(detail, context, boundary)
        return fused


def _conv_norm(inner: int, outer: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), norm(outer))


def _bottleneck(inner: int, planes: int, norm: Norm, *, stride: int = 1) -> Bottleneck:
    return Bottleneck(inner, planes, norm, stride=stride, final_relu=False, expansion=2)


def pidnet_s(norm: Norm) -> PIDNet:
    """Return PIDNet-S, 7.6 M parameters with its head."""
    return PIDNet(norm)
