"""Building blocks shared by several backbones: residual blocks and frozen batch normalization.

The residual blocks have torchvision's parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and affine parameters, and `eps` = 0.

    The released FADA code has no `eps` either. A backbone whose published weights depend on theirs
    sets the attribute.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 0.0
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize features (B, C, H, W)."""
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the equivalent scale and shift per channel, (C,) each."""
        buffers = cast("dict[str, Tensor]", self._buffers)
        scale = buffers["weight"] * (buffers["running_var"] + self.eps).rsqrt()
        return scale, buffers["bias"] - buffers["running_mean"] * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # torchvision's batch normalization also stores a batch counter, which has no use here.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


# Normalization layers by the name used in `ModelSpec.norm`.
NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}


def normalized(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(conv(x)), for a convolution without bias.

    In training mode a frozen norm is folded into the weights of the convolution. This saves two
    passes over the activations and one activation tensor in the backward pass. In evaluation mode
    both stay separate, so that an exported graph contains the plain weights.
    """
    if not (norm.training and isinstance(norm, FrozenBatchNorm2d)):
        result: Tensor = norm(conv(x))
        return result
    scale, shift = norm.affine()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(
        x, weight, shift, conv.stride, cast("Any", conv.padding), conv.dilation, conv.groups
    )


class Shortcut(nn.Sequential):
    """A 1×1 convolution and a norm, for a residual shortcut whose shapes differ."""

    def __init__(self, inner: int, outer: int, norm: Norm, *, stride: int) -> None:
        super().__init__(nn.Conv2d(inner, outer, 1, stride, bias=False), norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        return normalized(cast("nn.Conv2d", self[0]), self[1], x)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate `x` bilinearly to the height and width of `like`."""
    height, width = like.shape[-2:]
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def conv3x3(inner: int, outer: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution without bias that preserves the size at stride 1."""
    return nn.Conv2d(inner, outer, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """A residual block of two 3×3 convolutions.

    `stride` applies to the first convolution, `dilations` to the first and the second. Without
    `final_relu` the sum is returned as it is, for a caller that applies the ReLU itself.
    """

    expansion = 1

    def __init__(
        self,
        inner: int,
        planes: int,
        norm: Norm,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inner, planes, stride=stride, dilation=dilations[0])
        self.bn1 = norm(planes)
        self.conv2 = conv3x3(planes, planes, dilation=dilations[1])
        self.bn2 = norm(planes)
        self.downsample = shortcut(inner, planes * self.expansion, norm, stride=stride)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, planes, H / stride, W / stride)."""
        y = F.relu(normalized(self.conv1, self.bn1, x))
        y = normalized(self.conv2, self.bn2, y) + (
            x if self.downsample is None else self.downsample(x)
        )
        return F.relu(y) if self.final_relu else y


class Bottleneck(nn.Module):
    """A residual block of a 1×1, a 3×3 and a 1×1 convolution.

    `stride` and `dilations[0]` apply to the 3×3 convolution. `dilations[1]` is unused; it makes the
    signature that of `BasicBlock`.
    """

    expansion = 4

    def __init__(
        self,
        inner: int,
        planes: int,
        norm: Norm,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        final_relu: bool = True,
        expansion: int = expansion,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = conv3x3(planes, planes, stride=stride, dilation=dilations[0])
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, planes * expansion, 1, bias=False)
        self.bn3 = norm(planes * expansion)
        self.downsample = shortcut(inner, planes * expansion, norm, stride=stride)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, planes · expansion, H / stride, W / stride)."""
        y = F.relu(normalized(self.conv1, self.bn1, x))
        y = F.relu(normalized(self.conv2, self.bn2, y))
        y = normalized(self.conv3, self.bn3, y) + (
            x if self.downsample is None else self.downsample(x)
        )
        return F.relu(y) if self.final_relu else y


def shortcut(inner: int, outer: int, norm: Norm, *, stride: int) -> Shortcut | None:
    """Return the projection of a residual shortcut, or None if the shapes already agree."""
    return None if stride == 1 and inner == outer else Shortcut(inner, outer, norm, stride=stride)


def basic_layer(
    inner: int, planes: int, norm: Norm, *, blocks: int = 2, stride: int = 1
) -> nn.Sequential:
    """Return a sequence of basic blocks, the last one without its final ReLU."""
    layer = [BasicBlock(inner, planes, norm, stride=stride)]
    layer += [BasicBlock(planes, planes, norm) for _ in range(blocks - 2)]
    return nn.Sequential(*layer, BasicBlock(planes, planes, norm, final_relu=False))
