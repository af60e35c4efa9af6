"""Segmentation and domain losses at the input's resolution (Wang et al., ECCV 2020, eq. 3-9).

For K classes the discriminator returns 2K channels per pixel. Channels 0 to K-1 mean "source,
class k", channels K to 2K-1 mean "target, class k". A class encoding holds K weights per pixel; the
domain label selects the half of the channels that it is compared with.

At full resolution, the logits of 2K classes take hundreds of megabytes, and every elementwise
operation reads and writes all of them. The losses therefore interpolate a few rows at a time,
compute loss and gradient while these rows are in the cache, and accumulate the gradient at the
network's resolution. This takes a fifth of the time of interpolation and autograd at full
resolution, and none of its memory. The tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.interpolation import Interpolation, SizeHW, full_precision, row_chunks

# Maps class logits (..., K) to encodings (..., K). None stands for the single encoding 1 of a
# discriminator that only separates the two domains.
Encode = Callable[[Tensor], Tensor] | None


def soft_encodings(logits: Tensor, *, temperature: float, clip: float) -> Tensor:
    """Return softmax(logits / temperature) over the last axis, clipped to at most `clip` (eq. 9).

    Clipping prevents confident pixels from dominating the loss. The result is not renormalized.
    """
    return torch.softmax(logits / temperature, -1).clamp_(max=clip)


def hard_encodings(logits: Tensor) -> Tensor:
    """Return the one-hot encoding of the argmax over the last axis."""
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    num_labeled: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of logits / `temperature`, averaged over labeled pixels (eq. 3).

    `logits` (B, K, h, w) float are interpolated to the size of `labels` (B, H, W) int64, in which
    255 is ignored. `weights` (B, H, W) float makes the average a weighted one. `num_labeled`, a
    scalar tensor, replaces the result of `count_labeled` as the divisor when the batch is a part of
    a larger one. The loss of a batch without labels is 0.
    """
    num_labeled = count_labeled(labels, weights) if num_labeled is None else num_labeled
    loss: Tensor = _SegmentationLoss.apply(logits, labels, temperature, weights, num_labeled)  # type: ignore[no-untyped-call]
    return loss


class _SegmentationLoss(torch.autograd.Function):
    """Cross entropy whose gradient is computed together with the loss, row chunk by row chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        temperature: float,
        weights: Tensor | None,
        num_labeled: Tensor,
    ) -> Tensor:
        low = full_precision(logits)
        batch, height, width = labels.shape
        interpolation = Interpolation((low.shape[2], low.shape[3]), (height, width), low)
        wide = interpolation.forward_columns(low)
        wide_gradient = torch.zeros_like(wide)
        total = low.new_zeros(())
        for rows in row_chunks(height, batch * width * low.shape[1], low.device):
            row_labels = labels[:, rows]
            labeled = row_labels != IGNORE
            index = row_labels.masked_fill(~labeled, 0)[..., None]
            pixel_weights = labeled if weights is None else labeled * weights[:, rows]
            scaled = interpolation.forward_rows(wide, rows).div_(temperature)
            log_p = log_softmax(scaled)
            total -= log_p.gather(-1, index)[..., 0].mul_(pixel_weights).sum()
            # The gradient of the cross entropy is softmax - one_hot.
            gradient = log_p.exp_()
            gradient.scatter_add_(-1, index, gradient.new_full((), -1.0).expand(index.shape))
            interpolation.backward_rows(
                wide_gradient, gradient.mul_(pixel_weights[..., None]), rows
            )
        divisor = torch.where(num_labeled > 0, num_labeled, 1)
        wide_gradient.div_(temperature).div_(divisor)
        ctx.save_for_backward(interpolation.backward_columns(wide_gradient).to(logits.dtype))
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None


def log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis."""
    if logits.shape[-1] < 16 and logits.device.type == "cpu":
        # torch's CPU kernel does not vectorize axes this short, and takes four times as long.
        return logits - logits.logsumexp(-1, keepdim=True)
    return torch.log_softmax(logits, -1)


def count_labeled(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the number of labeled pixels, or the sum of their weights, as a scalar tensor."""
    labeled = labels != IGNORE
    return labeled.sum() if weights is None else (labeled * weights).sum()


@dataclass(frozen=True, eq=False)
class DomainLoss:
    """The domain loss of one batch for both domain labels, with gradients in the D logits.

    `loss_as_source` and `loss_as_target` are scalars: the loss if every pixel carries that domain
    label. `grad_as_source` and `grad_as_target` have the shape of the D logits, (B, 2K, h, w).
    """

    loss_as_source: Tensor
    loss_as_target: Tensor
    grad_as_source: Tensor
    grad_as_target: Tensor


@torch.no_grad()
def domain_loss(
    d_logits: Tensor,
    class_logits: Tensor,
    encode: Encode,
    size_hw: SizeHW,
    ignore_mask: Tensor | None = None,
    *,
    num_parts: int = 1,
) -> DomainLoss:
    """Return -mean over pixels of Σ_k a_k log softmax(D)[d, k] for both domains d (eq. 4-8).

    `d_logits` (B, 2K, h, w) and `class_logits` (B, C, h', w') float are interpolated to `size_hw`,
    where `encode` turns the class logits into the encodings a. The softmax runs over all 2K
    channels. Pixels where `ignore_mask` (B, *size_hw) bool is true are left out of sum and mean.
    `num_parts` is the number of equal parts of the batch that the mean is taken over.

    On the target, the adversarial loss of the network and the loss of the discriminator differ only
    in the domain label, so one call serves both. Raise `ValueError` if 2K does not match C.
    """
    low, low_classes = full_precision(d_logits), full_precision(class_logits)
    batch, channels = low.shape[:2]
    num_classes = channels // 2
    if num_classes != (1 if encode is None else low_classes.shape[1]):
        raise ValueError(
            f"{channels} discriminator channels do not match {low_classes.shape[1]} classes"
        )
    interpolation = Interpolation((low.shape[2], low.shape[3]), size_hw, low)
    wide = interpolation.forward_columns(low)
    wide_classes = None
    if encode is not None:
        low_hw = (low_classes.shape[2], low_classes.shape[3])
        class_interpolation = Interpolation(low_hw, size_hw, low_classes)
        wide_classes = class_interpolation.forward_columns(low_classes)
    softmax_gradient = torch.zeros_like(wide)
    encoding_sum = torch.zeros_like(wide[..., :num_classes])
    total_as_source, total_as_target = low.new_zeros(()), low.new_zeros(())
    for rows in row_chunks(size_hw[0], batch * size_hw[1] * channels, low.device):
        d_rows = interpolation.forward_rows(wide, rows)
        if encode is None or wide_classes is None:
            encodings = d_rows.new_ones((*d_rows.shape[:3], 1))
        else:
            encodings = encode(class_interpolation.forward_rows(wide_classes, rows))
        if ignore_mask is not None:
            encodings = encodings * ~ignore_mask[:, rows, :, None]
        log_p = log_softmax(d_rows)
        total_as_source -= (encodings * log_p[..., :num_classes]).sum()
        total_as_target -= (encodings * log_p[..., num_classes:]).sum()
        # The gradient of -Σ a_k log softmax(x)_k is softmax(x) Σ a - a. The first term is the same
        # for both domain labels; the second is subtracted from one half of the channels at the end.
        weight = encodings.sum(-1, keepdim=True)
        interpolation.backward_rows(softmax_gradient, log_p.exp_().mul_(weight), rows)
        interpolation.backward_rows(encoding_sum, encodings, rows)
    num_pixels: int | Tensor = batch * size_hw[0] * size_hw[1]
    if ignore_mask is not None:
        num_pixels = (~ignore_mask).sum().clamp(min=1)
    num_pixels = num_pixels * num_parts
    common = interpolation.backward_columns(softmax_gradient).div_(num_pixels)
    encoding_gradient = interpolation.backward_columns(encoding_sum).div_(num_pixels)
    grad_as_source, grad_as_target = common.clone(), common
    grad_as_source[:, :num_classes] -= encoding_gradient
    grad_as_target[:, num_classes:] -= encoding_gradient
    return DomainLoss(
        loss_as_source=total_as_source / num_pixels,
        loss_as_target=total_as_target / num_pixels,
        grad_as_source=grad_as_source.to(d_logits.dtype),
        grad_as_target=grad_as_target.to(d_logits.dtype),
    )


@torch.no_grad()
def source_fraction(
    d_logits: Tensor, ignore_mask: Callable[[SizeHW], Tensor | None] = lambda size_hw: None
) -> Tensor:
    """Return the fraction of pixels that the discriminator assigns to the source, a scalar in 0..1.

    `d_logits` (B, 2K, h, w) are compared at their own resolution. `ignore_mask(size_hw)` returns
    the pixels to leave out, (B, *size_hw) bool, or None.
    """
    num_classes = d_logits.shape[1] // 2
    is_source = d_logits[:, :num_classes].logsumexp(1) > d_logits[:, num_classes:].logsumexp(1)
    ignored = ignore_mask((d_logits.shape[-2], d_logits.shape[-1]))
    if ignored is None:
        return is_source.float().mean()
    return (is_source & ~ignored).sum() / (~ignored).sum().clamp(min=1)
