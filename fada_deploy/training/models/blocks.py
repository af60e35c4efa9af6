"""What several networks are made of: residual blocks under torchvision's parameter names, frozen normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and scale, **without eps**, as in the released FADA code.

    A network whose weights were trained with a large one sets `eps`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 0.0
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return what it comes to: a scale and a shift a channel."""
        buffers = cast("dict[str, Tensor]", self._buffers)
        scale = buffers["weight"] * (buffers["running_var"] + self.eps).rsqrt()
        return scale, buffers["bias"] - buffers["running_mean"] * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # torchvision counts batches in every norm; frozen statistics have nothing to count.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


# What a run may ask of its normalization layers.
NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}


def normalized(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(conv(x)).

    In training a frozen norm is folded into the convolution's weights and bias: two walks through the
    activations less, and one tensor of them less to keep for the backward pass. What is exported keeps
    both apart, as plain weights.
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
    """The 1×1 projection that a shortcut needs where shapes change, with its norm."""

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
    """Return a 3×3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(inner, outer, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; `final_relu` off leaves the sum signed.

    `dilations`: of the first convolution, where a stride would stand, and of the second, behind it.
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
    """1×1, 3×3, 1×1 and a shortcut; the stride and the first of `dilations` sit on the 3×3.

    Nothing behind the 3×3 looks around, so the second of `dilations` is for `BasicBlock` alone.
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
    """Return a shortcut's projection, or None where shapes already agree."""
    return None if stride == 1 and inner == outer else Shortcut(inner, outer, norm, stride=stride)


def signed_layer(
    inner: int, planes: int, norm: Norm, *, blocks: int = 2, stride: int = 1
) -> nn.Sequential:
    """Return basic blocks of which the last leaves its sum signed; whoever reads it applies the ReLU."""
    layer = [BasicBlock(inner, planes, norm, stride=stride)]
    layer += [BasicBlock(planes, planes, norm) for _ in range(blocks - 2)]
    return nn.Sequential(*layer, BasicBlock(planes, planes, norm, final_relu=False))
