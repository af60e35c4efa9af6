"""A depthwise convolution whose gradients are fast in bfloat16 on a CPU.

oneDNN computes the bfloat16 gradients of a depthwise convolution without its vectorized kernels:
on two cores with AMX they took 0.57 of a training step of EfficientNet-Lite0, in which depthwise
convolutions are a tenth of the arithmetic. The gradient of the input is itself a depthwise
convolution, with the flipped kernel, and the gradient of the kernel is fast in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def depthwise_conv2d(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """Convolve every channel of (B, C, H, W) with its own kernel, `weight` (C, 1, k, k).

    The result equals `torch.nn.functional.conv2d` with C groups; only its gradients are computed
    differently, and only where that is faster.
    """
    slow_gradients = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if slow_gradients and torch.is_grad_enabled():
        y: Tensor = DepthwiseConvolution.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
        return y
    return F.conv2d(x, weight, None, stride, padding, groups=len(weight))


class DepthwiseConvolution(torch.autograd.Function):
    """`conv2d` with one group per channel; its gradients are two more convolutions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        gradient = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        x_gradient = _input_gradient(gradient, weight, x.shape[-2:], stride, padding)
        precise = torch.promote_types(gradient.dtype, torch.float32)
        weight_gradient = torch.ops.aten.convolution_backward(
            gradient.to(precise),
            x.to(precise).contiguous(memory_format=torch.channels_last),
            weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight),
            [False, True, False],
        )[1]  # fmt: skip
        return x_gradient.to(x.dtype), weight_gradient, None, None


def _input_gradient(
    gradient: Tensor, weight: Tensor, size_hw: tuple[int, int], stride: int, padding: int
) -> Tensor:
    """Return the gradient of the input (B, C, *size_hw) from that of the output (B, C, h, w)."""
    batch, channels = gradient.shape[:2]
    kernel = weight.shape[-1]
    if stride > 1:
        # Zeros in place of the skipped outputs turn the strided convolution into a dense one.
        dense_hw = [length + 2 * padding - kernel + 1 for length in size_hw]
        dense = torch.empty(
            (batch, channels, *dense_hw), dtype=gradient.dtype, device=gradient.device,
            memory_format=torch.channels_last,
        ).zero_()  # fmt: skip
        dense[:, :, ::stride, ::stride] = gradient
        gradient = dense
    flipped = weight.flip(2, 3).to(gradient.dtype)
    return F.conv2d(gradient, flipped, None, 1, kernel - 1 - padding, groups=channels)
