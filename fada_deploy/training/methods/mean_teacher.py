"""Self-training with a mean teacher, which labels each target batch anew.

The weights of the teacher are the exponential moving average of the student's (Tarvainen and
Valpola, NIPS 2017). Without a source, the teacher keeps the weights that the stage starts from, and
pseudo-labeled target frames take the place of the source.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fada_deploy.training.data.loader import Batch
from fada_deploy.training.loop import TrainingState
from fada_deploy.training.methods.self_training import (
    PseudoLabels,
    pseudo_labels,
    rolled,
    student_views,
    weighted_labels,
    without_ego,
)
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, TargetViews


class MeanTeacher:
    """A teacher whose confident labels, or weighted labels, make mixed and masked frames."""

    def __init__(self, context: SelfTrainingContext) -> None:
        self._context = context
        # Before the stage restores a saved state, because a frozen teacher keeps these weights.
        self.teacher = context.new_teacher()

    def state(self) -> TrainingState:
        """Return nothing: the averaged weights are part of the stage's own state."""
        return {}

    def start_iteration(self, iteration: int) -> None:
        """Let the teacher follow the student, unless it is frozen."""
        if not self._context.stage.source_free:
            self._context.average.copy_to(self.teacher)

    def views(self, src: Batch | None, tgt: Batch, rng: np.random.Generator) -> TargetViews:
        """Label a target batch; return mixed and masked frames."""
        pseudo = without_ego(self.label(tgt), tgt)
        src = rolled(tgt, pseudo) if src is None else src
        context = self._context
        views = student_views(
            src, tgt, pseudo, context.stage, context.model.spec.mean, context.augmentation, rng
        )
        return TargetViews(src, pseudo.labels, views)

    @torch.no_grad()
    def label(self, tgt: Batch) -> PseudoLabels:
        """Return the teacher's labels of a target batch."""
        stage = self._context.stage
        with self._context.autocast():
            logits: Tensor = self.teacher(tgt.frames_bhwc)
        if stage.weighting == "confident_share":
            return weighted_labels(logits, tgt.size_hw, max_threshold=stage.max_threshold)
        labels = pseudo_labels(
            logits, tgt.size_hw, max_threshold=stage.max_threshold, quantile=stage.quantile
        )
        return PseudoLabels(labels)
