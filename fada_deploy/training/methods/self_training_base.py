"""What every self-training method has in common: views of the target, and their losses.

A method is one module of this folder. In each iteration it labels a target batch and returns the
views of it that the network learns from. The self-training stage runs all methods in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.data.augmentation import Augmentation
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import full_precision, upsample
from fada_deploy.training.loop import TrainingState
from fada_deploy.training.losses import segmentation_loss
from fada_deploy.training.methods.base import ForwardOutputs, Losses
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import AveragedWeights
from fada_deploy.training.stage_config import SelfTrainingStage


class View(Protocol):
    """A batch that the student learns from, with its loss."""

    @property
    def batch(self) -> Batch: ...

    def split(self, count: int) -> Sequence[View]:
        """Split the view into equal parts, for gradient accumulation."""
        ...

    def loss(
        self, outputs: ForwardOutputs, num_labeled: Tensor, num_parts: int
    ) -> tuple[Tensor, Losses]:
        """Return the weighted loss of a part of the global batch, and its unweighted terms.

        `num_labeled` counts the labeled pixels of the global batch, which has `num_parts` parts.
        """
        ...


@dataclass(frozen=True, eq=False)
class StudentView:
    """A labeled batch, with the weight of its cross entropy.

    `regularizer` is the weight of the divergence of the predictions from the uniform distribution,
    relative to the cross entropy (CRST).
    """

    name: str
    batch: Batch
    weight: float
    regularizer: float = 0.0

    def split(self, count: int) -> list[StudentView]:
        """Split the view into equal parts."""
        return [replace(self, batch=part) for part in self.batch.split(count)]

    def loss(
        self, outputs: ForwardOutputs, num_labeled: Tensor, num_parts: int
    ) -> tuple[Tensor, Losses]:
        """Return the weighted loss, and the cross entropy by name."""
        cross_entropy = segmentation_loss(
            outputs.logits, self.batch.labels,
            weights=self.batch.pixel_weights, num_labeled=num_labeled,
        )  # fmt: skip
        total = cross_entropy
        if self.regularizer:
            divergence = uniform_divergence(outputs.logits, self.batch.labels, num_labeled)
            total = total + self.regularizer * divergence
        return self.weight * total, {self.name: cross_entropy.detach()}


@dataclass(frozen=True, eq=False)
class TargetViews:
    """What one iteration learns from.

    Attributes:
        src: The labeled batch; without a source, target frames with pseudo-labels.
        labels: Pseudo-labels of the target batch, (B, H, W) int64, 255 where ignored.
        views: Views of the target with their losses.
    """

    src: Batch
    labels: Tensor
    views: Sequence[View]


class SelfTrainingMethod(Protocol):
    """One way to learn from target frames without labels."""

    def state(self) -> TrainingState:
        """Return the objects that a resumed stage needs beside the averaged weights, by name."""
        ...

    def start_iteration(self, iteration: int) -> None:
        """Update teachers and thresholds, before an iteration."""
        ...

    def views(self, src: Batch | None, tgt: Batch, rng: np.random.Generator) -> TargetViews:
        """Label a target batch; return what the student learns from."""
        ...


@dataclass(frozen=True, eq=False)
class SelfTrainingContext:
    """What a self-training method can be built from.

    Attributes:
        model: The network that will be trained, with the weights that the stage starts from.
        average: Its averaged weights.
        stage: Settings of the stage.
        augmentation: Augmentation of the run.
        amp: Whether networks run in bfloat16.
        count_target: Returns the counts of `cbst.count_confidences` of a network over the target.
        whole_target: Returns every target frame about once, unaugmented; processes divide them.
        compiled: Returns a network compiled as `model` is.
    """

    model: SegmentationModel
    average: AveragedWeights
    stage: SelfTrainingStage
    augmentation: Augmentation
    amp: bool
    count_target: Callable[[SegmentationModel], Tensor]
    whole_target: Callable[[], Iterator[Batch]]
    compiled: Callable[[SegmentationModel], SegmentationModel] = lambda model: model

    def new_teacher(self) -> SegmentationModel:
        """Return a copy of the network with its present weights, in evaluation mode."""
        return self.compiled(deepcopy(self.model).eval())

    def autocast(self) -> torch.autocast:
        """Return the context in which networks run."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.amp)


def uniform_divergence(logits: Tensor, labels: Tensor, num_labeled: Tensor) -> Tensor:
    """Return the mean over labeled pixels of −(1/K) Σ_k log p_k, a scalar (CRST, MRKLD).

    `logits` (B, K, h, w) are interpolated to the size of `labels` (B, H, W) int64, in which 255 is
    ignored. `num_labeled` is the number of labeled pixels of the global batch.
    """
    size_hw = (labels.shape[1], labels.shape[2])
    log_p = torch.log_softmax(upsample(full_precision(logits), size_hw), dim=1)
    total: Tensor = -(log_p.mean(1) * (labels != IGNORE)).sum()
    return total / num_labeled.clamp(min=1)
