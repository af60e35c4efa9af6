"""The losses of fine-grained adversarial domain adaptation, as pure functions of tensors.

With K classes the discriminator has 2K outputs: the first K say "source, class k", the last K
"target, class k". An encoding is a distribution-like (B, K, H, W) tensor that says which class a
pixel stands for; its domain decides which half of the outputs it is held against (Wang et al.,
ECCV 2020, eq. 4–8).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.labels import IGNORE


def upsample(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, h, w) to (B, C, *size_hw) bilinearly with align_corners, as published.

    Half-precision logits come out as float32: losses are taken in full precision.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=True)


def segmentation_loss(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the cross entropy of logits / `temperature`, averaged over the labelled pixels.

    `logits` (B, K, H, W) float, `labels` (B, H, W) int64 with 255 ignored. A batch with no labelled
    pixel has loss 0, not NaN.
    """
    scaled = logits if temperature == 1 else logits / temperature
    total = F.cross_entropy(scaled, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def soft_encodings(logits: Tensor, *, temperature: float, clip: float) -> Tensor:
    """Return softmax(logits / T) with entries above `clip` cut to it, **not renormalised**, detached.

    (B, K, H, W) → the same shape. Clipping keeps confident pixels from drowning the others (eq. 9).
    """
    return F.softmax(logits.detach() / temperature, dim=1).clamp(max=clip)


def hard_encodings(logits: Tensor) -> Tensor:
    """Return the one-hot of the arg max, (B, K, H, W), detached."""
    winner = logits.detach().argmax(dim=1, keepdim=True)
    return torch.zeros_like(logits.detach()).scatter_(1, winner, 1.0)


def domain_loss(domain_logits: Tensor, encodings: Tensor, *, target: bool, ignore: Tensor | None = None) -> Tensor:
    """Return −mean over pixels of Σ_k a_k log softmax(D)[d, k].

    `domain_logits` (B, 2K, H, W); `encodings` (B, K, H, W), held against the last K outputs when
    `target`, else the first. The softmax runs over all 2K. `ignore` (B, H, W) bool takes pixels out
    of sum and mean. The adversarial loss is this function with target features and `target=False`.
    """
    num_classes = encodings.shape[1]
    if domain_logits.shape[1] != 2 * num_classes:
        raise ValueError(f"{domain_logits.shape[1]} domain outputs do not fit {num_classes} classes")
    log_probability = F.log_softmax(domain_logits, dim=1)
    half = log_probability[:, num_classes:] if target else log_probability[:, :num_classes]
    per_pixel = -(encodings * half).sum(dim=1)
    if ignore is None:
        return per_pixel.mean()
    kept = (~ignore).to(per_pixel.dtype)
    return (per_pixel * kept).sum() / kept.sum().clamp(min=1)
