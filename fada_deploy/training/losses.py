"""The losses of fine-grained adversarial domain adaptation, at the input's size, with their gradients.

With K classes the discriminator has 2K outputs: the first K say "source, class k", the last K
"target, class k". An encoding is a distribution-like tensor that says which class a pixel stands
for; its domain decides which half of the outputs it is held against (Wang et al., ECCV 2020, eq. 4–8).

At full resolution logits of 2K classes fill hundreds of megabytes, and every elementwise operation
walks through all of them. So a few rows at a time are interpolated, their loss and its gradient are
taken while they are in the cache, and the gradient is carried back to the network's resolution. What
autograd would have kept is never made: a fifth of the time of the plain reading, and none of its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.interpolation import Interpolation, SizeHW, full_precision, row_chunks

# Class logits (…, K) → encodings (…, K). None is 1 everywhere, one class a domain: a two-way discriminator.
Encode = Callable[[Tensor], Tensor] | None


def soft_encodings(logits: Tensor, *, temperature: float, clip: float) -> Tensor:
    """Return softmax(logits / T) over the last axis, entries above `clip` cut to it, **not renormalized**.

    Clipping keeps confident pixels from drowning the others (eq. 9).
    """
    return torch.softmax(logits / temperature, -1).clamp_(max=clip)


def hard_encodings(logits: Tensor) -> Tensor:
    """Return the one-hot of the arg max over the last axis."""
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, pixels: Tensor | None = None
) -> Tensor:
    """Return the cross entropy of logits / `temperature`, interpolated to the labels' size, over labeled pixels.

    `logits` (B, K, h, w) float, `labels` (B, H, W) int64 with 255 ignored. `pixels` is how many labeled
    ones the sum is divided by, where the batch is a part of one; by default its own. A batch with no
    labeled pixel has loss 0, not NaN.
    """
    pixels = labeled_pixels(labels) if pixels is None else pixels
    loss: Tensor = _Segmentation.apply(logits, labels, temperature, pixels)  # type: ignore[no-untyped-call]
    return loss


class _Segmentation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float, pixels: Tensor
    ) -> Tensor:
        low = full_precision(logits)
        across = Interpolation(
            (low.shape[2], low.shape[3]), (labels.shape[1], labels.shape[2]), low
        )
        wide = across.widen(low)
        gradient = torch.zeros_like(wide)
        total = low.new_zeros(())
        batch, height, width = labels.shape
        for chosen in row_chunks(height, batch * width * low.shape[1], low.device):
            truth = labels[:, chosen]
            kept = truth != IGNORE
            index = truth.masked_fill(~kept, 0)[..., None]
            scaled = across.rows(wide, chosen).div_(temperature)
            log_p = torch.log_softmax(scaled, -1)
            total -= log_p.gather(-1, index)[..., 0].mul_(kept).sum()
            slope = log_p.exp_()
            slope.scatter_add_(-1, index, slope.new_full((), -1.0).expand(index.shape))
            across.add_rows(gradient, slope.mul_(kept[..., None]), chosen)
        count = pixels.clamp(min=1)
        ctx.save_for_backward(
            across.narrow(gradient.div_(temperature).div_(count)).to(logits.dtype)
        )
        return total / count

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None


def labeled_pixels(labels: Tensor) -> Tensor:
    """Return how many pixels have a label, a scalar int64 tensor."""
    return (labels != IGNORE).sum()


@dataclass(frozen=True)
class DomainLoss:
    """A domain loss held against either half of the discriminator's answers, with gradients in the answers.

    Losses are scalars, gradients have the answers' shape (B, 2K, h, w).
    """

    as_source: Tensor
    as_target: Tensor
    gradient_as_source: Tensor
    gradient_as_target: Tensor


@torch.no_grad()
def domain_loss(
    answers: Tensor,
    logits: Tensor,
    encode: Encode,
    size_hw: SizeHW,
    ignore: Tensor | None = None,
    *,
    parts: int = 1,
) -> DomainLoss:
    """Return −mean over pixels of Σ_k a_k log softmax(D)[d, k] for either domain d, and gradients in `answers`.

    `answers` (B, 2K, h, w) and class `logits` (B, C, h, w) are interpolated to `size_hw`, where
    `encode` makes the encodings a of the logits; the softmax runs over all 2K. `ignore` (B, *size_hw)
    bool takes pixels out of sum and mean; `parts` is how many equal parts the mean's batch has, of which
    this is one. The target's adversarial loss and its discriminator's loss
    differ in the half alone, so one pass serves both.
    """
    low, classes = full_precision(answers), full_precision(logits)
    across = Interpolation((low.shape[2], low.shape[3]), size_hw, low)
    wide = across.widen(low)
    wide_classes = None
    if encode is not None:
        across_classes = Interpolation((classes.shape[2], classes.shape[3]), size_hw, classes)
        wide_classes = across_classes.widen(classes)
    num_classes = low.shape[1] // 2
    if num_classes != (1 if encode is None else classes.shape[1]):
        raise ValueError(f"{low.shape[1]} domain outputs do not fit {classes.shape[1]} classes")
    shared, own = torch.zeros_like(wide), torch.zeros_like(wide[..., :num_classes])
    totals = [low.new_zeros(()), low.new_zeros(())]
    for chosen in row_chunks(size_hw[0], low.shape[0] * size_hw[1] * low.shape[1], low.device):
        x = across.rows(wide, chosen)
        if encode is None or wide_classes is None:
            encodings = x.new_ones((*x.shape[:3], 1))
        else:
            encodings = encode(across_classes.rows(wide_classes, chosen))
        if ignore is not None:
            encodings = encodings * ~ignore[:, chosen, :, None]
        weight = encodings.sum(-1, keepdim=True)
        log_p = torch.log_softmax(x, -1)
        totals[0] -= (encodings * log_p[..., :num_classes]).sum()
        totals[1] -= (encodings * log_p[..., num_classes:]).sum()
        # d/dx of −Σ a_k log softmax(x)_k is p Σ a − a; the a of either half is taken off at the end.
        across.add_rows(shared, log_p.exp_().mul_(weight), chosen)
        across.add_rows(own, encodings, chosen)
    pixels = (
        low.shape[0] * size_hw[0] * size_hw[1]
        if ignore is None
        else int((~ignore).sum().clamp(min=1))
    )
    pixels *= parts
    both, a = across.narrow(shared).div_(pixels), across.narrow(own).div_(pixels)
    as_source, as_target = both.clone(), both
    as_source[:, :num_classes] -= a
    as_target[:, num_classes:] -= a
    gradients = (as_source.to(answers.dtype), as_target.to(answers.dtype))
    return DomainLoss(totals[0] / pixels, totals[1] / pixels, *gradients)


@torch.no_grad()
def source_fraction(
    answers: Tensor, ignore: Callable[[SizeHW], Tensor | None] = lambda size_hw: None
) -> Tensor:
    """Return the share of pixels that the discriminator's answers (B, 2K, h, w) take for the source, a scalar.

    At the answers' own resolution; `ignore(size)` gives pixels to leave out, (B, *size) bool, or None.
    """
    num_classes = answers.shape[1] // 2
    source = answers[:, :num_classes].logsumexp(1) > answers[:, num_classes:].logsumexp(1)
    left_out = ignore((answers.shape[-2], answers.shape[-1]))
    if left_out is None:
        return source.float().mean()
    return (source & ~left_out).sum() / (~left_out).sum().clamp(min=1)
