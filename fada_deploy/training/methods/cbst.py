"""Self-training in rounds: thresholds over the whole target, for each class or for all.

CBST and ST are from Zou et al. (ECCV 2018): at the start of a round the network predicts the whole
target. The threshold k_c of a class is the probability that a portion of its predicted pixels
exceed, and a pixel gets the label argmax_c p_c / k_c if that ratio is at least 1 (eq. 5-7). ST has
one threshold for all classes. CRST (Zou et al., ICCV 2019) adds a regularizer to the loss of the
pseudo-labels, here MRKLD: the divergence of the prediction from the uniform distribution
(`self_training_base.uniform_divergence`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import SizeHW, full_precision, upsample
from fada_deploy.training.loop import TrainingState
from fada_deploy.training.methods.self_training import (
    PseudoLabels,
    rolled,
    student_views,
    without_ego,
)
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, TargetViews
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.stage_config import SelfTrainingStage

# Probabilities are counted in this many bins; the thresholds are that exact.
_BINS = 4096
# What the portion grows by in each round, and its largest value (published settings).
PORTION_STEP, LARGEST_PORTION = 0.05, 0.5


class Thresholds(nn.Module):
    """The thresholds k of a round, (K,), as a buffer, so that a resumed stage has them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", torch.ones(num_classes))


class Rounds:
    """Self-training in rounds: the network at the start of a round labels all of its frames."""

    def __init__(self, context: SelfTrainingContext) -> None:
        self._context = context
        self.teacher = context.new_teacher()
        device = next(context.model.parameters()).device
        self.thresholds = Thresholds(context.model.spec.space.num_classes).to(device)

    def state(self) -> TrainingState:
        """Return the network that labels a round, which is needed until its end."""
        return {"teacher": self.teacher, "thresholds": self.thresholds}

    def start_iteration(self, iteration: int) -> None:
        """Take the weights and compute the thresholds of a round where it begins."""
        context = self._context
        number, begins = round_of(iteration, context.stage)
        if not begins:
            return
        context.average.copy_to(self.teacher)
        self.thresholds.values = thresholds_of(
            context.count_target(self.teacher),
            portion=round_portion(number, context.stage),
            per_class=context.stage.threshold_per_class,
        )

    def views(self, src: Batch | None, tgt: Batch, rng: np.random.Generator) -> TargetViews:
        """Label a target batch; return mixed and masked frames."""
        context = self._context
        with torch.no_grad(), context.autocast():
            logits = self.teacher(tgt.frames_bhwc)
        labels = round_labels(logits, tgt.size_hw, self.thresholds.values)
        pseudo = without_ego(PseudoLabels(labels), tgt)
        src = rolled(tgt, pseudo) if src is None else src
        views = student_views(
            src, tgt, pseudo, context.stage, context.model.spec.mean, context.augmentation, rng
        )
        return TargetViews(src, pseudo.labels, views)


def round_of(iteration: int, stage: SelfTrainingStage) -> tuple[int, bool]:
    """Return the round of an iteration from 0, and whether it begins there."""
    number = iteration * stage.rounds // stage.iterations
    before = (iteration - 1) * stage.rounds // stage.iterations
    return number, number != before


def round_portion(number: int, stage: SelfTrainingStage) -> float:
    """Return the portion of the pixels that a round labels, 0…1."""
    return min(stage.portion + PORTION_STEP * number, max(LARGEST_PORTION, stage.portion))


@torch.no_grad()
def count_confidences(model: SegmentationModel, batch: Batch, *, amp: bool = False) -> Tensor:
    """Return how many pixels of a batch a network predicts with which probability.

    That is (K, bins) int64, with one row for each predicted class and equal bins in 0…1.
    """
    num_classes = model.spec.space.num_classes
    with torch.autocast(batch.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
        logits = model(batch.frames_bhwc)
    confidence, classes = F.softmax(full_precision(logits), dim=1).max(1)
    bins = classes * _BINS + (confidence * _BINS).long().clamp(max=_BINS - 1)
    ignored = batch.ignore_mask((logits.shape[-2], logits.shape[-1]))
    bins = bins.flatten() if ignored is None else bins[~ignored]
    return torch.bincount(bins, minlength=num_classes * _BINS).view(num_classes, _BINS)


def count_all_confidences(
    model: SegmentationModel, batches: Iterable[Batch], *, amp: bool = False
) -> Tensor:
    """Return the sum of `count_confidences` over the batches of all processes."""
    counts: Tensor | None = None
    for batch in batches:
        part = count_confidences(model, batch, amp=amp)
        counts = part if counts is None else counts + part
    assert counts is not None, "there is at least one batch"
    return distributed.all_reduce_sum(counts)


def thresholds_of(counts: Tensor, *, portion: float, per_class: bool) -> Tensor:
    """Return the thresholds k, (K,) in 0…1, from the counts of `count_confidences` on the target.

    A portion of the pixels that are predicted as class c have a probability of at least k_c; with
    `per_class` false, a portion of all pixels have one of at least k. A class that is not predicted
    has the threshold 1.
    """
    histograms = counts
    if not per_class:
        histograms = histograms.sum(0, keepdim=True).expand(len(counts), -1)
    # The number of pixels with a probability of at least the lower edge of each bin.
    above = histograms.flip(1).cumsum(1).flip(1)
    enough = above >= portion * histograms.sum(1, keepdim=True)
    highest = torch.where(enough, torch.arange(_BINS, device=counts.device), -1).max(1).values
    thresholds = highest.float() / _BINS
    return torch.where(histograms.sum(1) > 0, thresholds, 1.0)


def round_labels(logits: Tensor, size_hw: SizeHW, thresholds: Tensor) -> Tensor:
    """Return the labels of confident pixels, (B, H, W) int64; 255 elsewhere.

    `logits` (B, K, h, w) are those of the network at the start of the round, `thresholds` are (K,).
    """
    probabilities = upsample(F.softmax(full_precision(logits), dim=1), size_hw)
    ratio, classes = (probabilities / thresholds.clamp(min=1e-6)[:, None, None]).max(1)
    return torch.where(ratio >= 1, classes, IGNORE)
