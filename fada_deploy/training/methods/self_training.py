"""Self-training on the target: which pixels of a pseudo-label count, and what the student sees.

ClassMix is from Olsson et al. (WACV 2021), its use between two domains from DACS (Tranheden et al.,
WACV 2021). Masked consistency is from MIC (Hoyer et al., CVPR 2023). The class-balanced thresholds
follow CBST (Zou et al., ECCV 2018), but are computed per batch instead of over the whole target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training import distributed
from fada_deploy.training.data.augmentation import Augmentation
from fada_deploy.training.data.color_change import draw_color_change
from fada_deploy.training.data.color_kernels import change_batch
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.device import copy_to_device
from fada_deploy.training.interpolation import SizeHW, full_precision, upsample
from fada_deploy.training.methods.self_training_base import StudentView
from fada_deploy.training.stage_config import SelfTrainingStage


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The teacher's labels of a target batch, (B, H, W) int64, 255 where ignored.

    `weight` is the weight of every pixel in the loss, a scalar tensor; None for 1.
    """

    labels: Tensor
    weight: Tensor | None = None


def weighted_labels(logits: Tensor, size_hw: SizeHW, *, max_threshold: float) -> PseudoLabels:
    """Return labels of all pixels, weighted by the fraction of confident ones (DACS).

    `logits` (B, K, h, w) are the teacher's. A pixel is confident if its softmax probability is at
    least `max_threshold`. The fraction is that of the batches of all processes.
    """
    confidence, classes = upsample(F.softmax(full_precision(logits), dim=1), size_hw).max(1)
    confident = distributed.all_reduce_sum((confidence >= max_threshold).float().mean())
    return PseudoLabels(classes, confident / distributed.world_size())


def pseudo_labels(
    logits: Tensor, size_hw: SizeHW, *, max_threshold: float, quantile: float
) -> Tensor:
    """Return the labels of confident pixels, (B, H, W) int64; 255 elsewhere.

    `logits` (B, K, h, w) are the teacher's. A pixel of predicted class k counts if its softmax
    probability is at least min(`max_threshold`, the `quantile` of the probabilities of all pixels
    of class k in the batches of all processes). A rare class whose probabilities are low thus keeps
    a fraction 1 - `quantile` of its pixels. A quantile of 1 uses `max_threshold` for every class.
    """
    # At the network's resolution: quantiles over all full-size pixels would cost more than the net.
    probabilities = F.softmax(full_precision(logits), dim=1)
    confidence, classes = map(distributed.gather_pixels, probabilities.max(1))
    quantiles = class_quantiles(confidence, classes, logits.shape[1], quantile)
    thresholds = quantiles.clamp(max=max_threshold)
    confidence, classes = upsample(probabilities, size_hw).max(1)
    return torch.where(confidence >= thresholds[classes], classes, IGNORE)


def class_quantiles(values: Tensor, classes: Tensor, num_classes: int, quantile: float) -> Tensor:
    """Return a quantile of the values of each class, (K,) float; infinity for an absent class.

    `values` (N,) float belong to `classes` (N,) int64. Values between two others are interpolated
    linearly. Two sorts take the place of a loop over the classes, in which the host would wait for
    the GPU.
    """
    values, order = values.sort()
    classes, order = classes[order].sort(stable=True)
    values = values[order]
    ends = torch.searchsorted(classes, torch.arange(num_classes, device=classes.device), right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    counts = ends - starts
    position = quantile * (counts - 1).clamp(min=0).double()
    lower, upper = (
        values[(starts + rank.long()).clamp(max=len(values) - 1)]
        for rank in (position.floor(), position.ceil())
    )
    return torch.where(counts > 0, lower.lerp(upper, position.frac().to(values.dtype)), torch.inf)


def without_ego(pseudo: PseudoLabels, tgt: Batch) -> PseudoLabels:
    """Return pseudo-labels of a target batch that ignore the car's own body."""
    ignored = tgt.ignore_mask(tgt.size_hw)
    if ignored is None:
        return pseudo
    return replace(pseudo, labels=pseudo.labels.masked_fill(ignored, IGNORE))


def rolled(tgt: Batch, pseudo: PseudoLabels) -> Batch:
    """Return a pseudo-labeled target batch whose frames are moved by one slot.

    Mixing pastes the classes of a slot into the frame of the same slot, so these have to differ.
    """
    indices = (*tgt.indices[-1:], *tgt.indices[:-1])
    labels = pseudo.labels.roll(1, 0)
    weights = None if pseudo.weight is None else pseudo.weight.expand(labels.shape).clone()
    return Batch(tgt.frames_bhwc.roll(1, 0), labels, indices, ego=tgt.ego, weights=weights)


def class_mix(
    src_frames: Tensor,
    src_labels: Tensor,
    tgt_frames: Tensor,
    tgt_labels: Tensor,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste half of the classes of each source frame into the target frame of the same slot.

    Frames are (B, H, W, 3) uint8, labels (B, H, W) int64 with 255 ignored. Of the n classes of a
    source frame, (n + 1) // 2 random ones are pasted. Return the mixed frames and labels, and
    which pixels were pasted, (B, H, W) bool.
    """
    # The numbers drawn do not depend on the labels, so that the host need not wait for a GPU.
    keys = copy_to_device(rng.random((len(src_labels), IGNORE + 1)), src_labels.device)
    flat_labels = src_labels.flatten(1)
    present = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, flat_labels, True)
    present[:, IGNORE] = False
    ranks = keys.masked_fill(~present, torch.inf).argsort(1).argsort(1)
    chosen = ranks < (present.sum(1, keepdim=True) + 1) // 2
    pasted = chosen.gather(1, flat_labels).view_as(src_labels)
    frames = torch.where(pasted[..., None], src_frames, tgt_frames)
    return frames, torch.where(pasted, src_labels, tgt_labels), pasted


def student_views(
    src: Batch,
    tgt: Batch,
    pseudo: PseudoLabels,
    stage: SelfTrainingStage,
    mean: tuple[float, float, float],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> list[StudentView]:
    """Return the views of a target batch whose loss has a weight: mixed frames and masked frames.

    `pseudo` are the labels of the target batch. Masked pixels have the color `mean`, RGB in 0…1,
    which is zero after the normalization of the input.
    """
    views = []
    weights = None
    if pseudo.weight is not None:
        weights = pseudo.weight.expand(pseudo.labels.shape).clone()
    if stage.mixed_weight:
        frames, labels, pasted = class_mix(
            src.frames_bhwc, src.labels, tgt.frames_bhwc, pseudo.labels, rng
        )
        frames = augment_colors(frames, augmentation, rng)
        mixed_weights = weights
        if weights is not None and src.weights is None:
            mixed_weights = weights.masked_fill(pasted, 1.0)  # labels of the source are certain
        batch = Batch(frames, labels, tgt.indices, weights=mixed_weights)
        views.append(StudentView("mixed", batch, stage.mixed_weight, stage.regularizer))
    if stage.masked_weight:
        frames = augment_colors(tgt.frames_bhwc, augmentation, rng)
        hidden = block_mask(
            tgt.size_hw, len(tgt.indices), block=stage.mask_block, ratio=stage.mask_ratio, rng=rng
        )
        color = np.array([round(255 * m) for m in mean], np.uint8)
        frames = torch.where(
            copy_to_device(hidden[..., None], frames.device),
            copy_to_device(color, frames.device),
            frames,
        )
        batch = Batch(frames, pseudo.labels, tgt.indices, weights=weights)
        views.append(StudentView("masked", batch, stage.masked_weight, stage.regularizer))
    return views


def block_mask(
    size_hw: SizeHW, count: int, *, block: int, ratio: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which pixels are hidden, (count, H, W) bool: each block with probability `ratio`.

    Blocks are squares of `block` pixels on a grid that starts in the upper left corner.
    """
    rows, columns = (-(-length // block) for length in size_hw)
    hidden = rng.random((count, rows, columns)) < ratio
    full = hidden.repeat(block, 1).repeat(block, 2)
    return np.ascontiguousarray(full[:, : size_hw[0], : size_hw[1]])


def augment_colors(
    frames_bhwc: Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> Tensor:
    """Return frames (B, H, W, 3) uint8 with the photometric part of an augmentation."""
    changes = [draw_color_change(augmentation, (0.0, 0.0, 0.0, 0.0), rng) for _ in frames_bhwc]
    return change_batch(frames_bhwc, changes)


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Return the pixels of each class in `labels` int64, (K,) float64; other labels are ignored."""
    # bincount would ask a GPU for the largest label.
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64, device=labels.device)
    flat = labels.flatten()
    return counts.scatter_add_(0, flat, torch.ones_like(flat))[:num_classes].double()


class CollapseMonitor:
    """Warn once about each class that the pseudo-labels no longer contain.

    The classes of pseudo-labels and source labels are counted over a window of iterations. A class
    has vanished if the source shows it in more than 0.1 % of its pixels, and the pseudo-labels in
    less than a twentieth of that.
    """

    def __init__(self, names: Sequence[str], window: int) -> None:
        self._names, self._window = names, window
        # Tensors on the device of the labels, which are read at the end of a window only.
        self._counts: list[Tensor] = []
        self._iterations = 0
        self.vanished: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of the present window and the classes that have been reported."""
        counts = [c.cpu() for c in self._counts]
        return {"counts": counts, "iterations": self._iterations, "vanished": list(self.vanished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._counts, self._iterations = state["counts"], state["iterations"]
        self.vanished = state["vanished"]

    def update(self, src_labels: Tensor, tgt_labels: Tensor) -> list[str]:
        """Count one batch of labels; at the end of a window, return the newly vanished classes."""
        num_classes = len(self._names)
        both = [count_classes(labels, num_classes) for labels in (src_labels, tgt_labels)]
        if self._counts:
            both = [a.to(b.device) + b for a, b in zip(self._counts, both, strict=True)]
        self._counts = both
        self._iterations += 1
        if self._iterations % self._window:
            return []
        src, tgt = (counts / counts.sum().clamp(min=1) for counts in self._counts)
        self._counts = []
        vanished = ((src > 0.001) & (tgt < 0.05 * src)).tolist()
        new = [
            n for n, v in zip(self._names, vanished, strict=True) if v and n not in self.vanished
        ]
        self.vanished += new
        return new
