"""PIDNet-S (Xu et al., CVPR 2023): a detail, a context and a boundary branch, fused at 1/8.

Widths and parameter names are the published ones, so that the published ImageNet weights load. The
auxiliary heads of the published training are not part of the network. Parameters without ImageNet
weights start from PyTorch's default initialization, which learns faster than the published one.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import (
    BasicBlock,
    Bottleneck,
    Norm,
    basic_layer,
    conv3x3,
    resize_to,
)
from fada_deploy.training.models.pyramids import PAPPM

# Prefixes of the parameters without ImageNet weights: the boundary branch, the modules that depend
# on it, and the pyramid pooling.
NOT_PRETRAINED = ("layer3_d.", "layer4_d.", "layer5_d.", "diff3.", "diff4.", "spp.", "dfm.")


class PagFM(nn.Module):
    """Pixel-attention-guided fusion: blend each pixel with the context by their similarity."""

    def __init__(self, channels: int, inner: int, norm: Norm) -> None:
        super().__init__()
        self.f_x = _conv_norm(channels, inner, norm)
        self.f_y = _conv_norm(channels, inner, norm)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """Blend (B, C, h, w) with a context (B, C, h', w'); return (B, C, h, w)."""
        similarity = (self.f_x(detail) * resize_to(self.f_y(context), detail)).sum(1, keepdim=True)
        weight = similarity.sigmoid()
        blended: Tensor = (1 - weight) * detail + weight * resize_to(context, detail)
        return blended


class LightBag(nn.Module):
    """Boundary-attention-guided fusion: details dominate at boundaries, context elsewhere."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv_p = _conv_norm(channels, channels, norm)
        self.conv_i = _conv_norm(channels, channels, norm)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        """Fuse three feature maps (B, C, h, w) into one of the same shape."""
        edge = boundary.sigmoid()
        fused: Tensor = self.conv_p((1 - edge) * context + detail) + self.conv_i(
            context + edge * detail
        )
        return fused


class PIDNet(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 128, H/8, W/8); H and W divisible by 8.

    In the published names, `layer3_`, `layer4_`, … are the detail branch and `layer3_d`,
    `layer4_d`, … the boundary branch.
    """

    out_channels = 128

    def __init__(self, norm: Norm, planes: int = 32, branch: int = 96) -> None:
        super().__init__()
        high = planes * 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
        )  # fmt: skip
        self.layer1 = basic_layer(planes, planes, norm)
        self.layer2 = basic_layer(planes, high, norm, stride=2)
        self.layer3 = basic_layer(high, planes * 4, norm, blocks=3, stride=2)
        self.layer4 = basic_layer(planes * 4, planes * 8, norm, blocks=3, stride=2)
        self.layer5 = nn.Sequential(
            _bottleneck(planes * 8, planes * 8, norm, stride=2),
            _bottleneck(planes * 16, planes * 8, norm),
        )
        self.compression3 = _conv_norm(planes * 4, high, norm)
        self.compression4 = _conv_norm(planes * 8, high, norm)
        self.pag3 = PagFM(high, planes, norm)
        self.pag4 = PagFM(high, planes, norm)
        self.layer3_ = basic_layer(high, high, norm)
        self.layer4_ = basic_layer(high, high, norm)
        self.layer5_ = nn.Sequential(_bottleneck(high, high, norm))
        self.layer3_d = BasicBlock(high, planes, norm, final_relu=False)
        self.layer4_d = nn.Sequential(_bottleneck(planes, planes, norm))
        self.layer5_d = nn.Sequential(_bottleneck(high, high, norm))
        self.diff3 = nn.Sequential(conv3x3(planes * 4, planes), norm(planes))
        self.diff4 = nn.Sequential(conv3x3(planes * 8, high), norm(high))
        self.spp = PAPPM(planes * 16, branch, planes * 4, norm)
        self.dfm = LightBag(planes * 4, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 128, H/8, W/8)."""
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
    """Return PIDNet-S: 7.6 M parameters including its segmentation head."""
    return PIDNet(norm)
