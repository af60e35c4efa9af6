"""Self-training: the student learns from the source, and from views of the target without labels.

`fada train --stages source,selftrain`, or after the adversarial stage. Where the labels of the
target come from is a matter of the method (`training.methods.self_trainers`). With
`selftrain.align` the same iterations also align the domains (`training.methods.aligner`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.data.augmentation import Augmentation
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import MakeLoop, TrainingState
from fada_deploy.training.losses import count_labeled
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.base import ForwardOutputs, Losses, sum_losses
from fada_deploy.training.methods.self_trainers import make_self_training
from fada_deploy.training.methods.self_training import CollapseMonitor
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, StudentView, View
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    freeze_running_statistics,
    make_optimizer,
    mix_running_statistics,
    optimizer_step,
    set_learning_rate,
)
from fada_deploy.training.stage_config import SelfTrainingStage

logger = logging.getLogger(__name__)

# Batches from which the normalization statistics of the target are estimated without a source.
STATISTICS_BATCHES = 50


def train_self_training(
    model: SegmentationModel,
    src_loader: BatchLoader | None,
    tgt_loader: BatchLoader,
    stage: SelfTrainingStage,
    *,
    augmentation: Augmentation,
    aligner: Aligner | None,
    count_target: Callable[[SegmentationModel], Tensor],
    whole_target: Callable[[], Iterator[Batch]],
    compiled: Callable[[SegmentationModel], SegmentationModel],
    seed: int,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Train on the source and on pseudo-labels; return the averaged weights.

    `augmentation` changes the colors of the student's frames; `seed` decides what is mixed and how.
    `aligner` also aligns the domains in every iteration; None only self-trains. `count_target`,
    `whole_target` and `compiled` are those of `SelfTrainingContext`. Without a source loader, the
    pseudo-labeled target takes the place of the source.
    """
    if src_loader is None:
        mix_running_statistics(
            model, (tgt_loader[k].frames_bhwc for k in range(STATISTICS_BATCHES))
        )
    # Not before: compiled code would depend on the momentum of each of these batches.
    model = compiled(model)
    optimizer = make_optimizer(model, stage, aligner.method.heads if aligner else None)
    average = AveragedWeights(model, stage.ema)
    method = make_self_training(
        SelfTrainingContext(
            model, average, stage, augmentation, amp, count_target, whole_target, compiled
        )
    )
    monitor = CollapseMonitor(model.spec.space.names, window=max(1, stage.iterations // 10))
    state: TrainingState = {
        "model": model, "optimizer": optimizer, "average": average, "monitor": monitor,
    }  # fmt: skip
    loop = make_loop({**state, **method.state(), **(aligner.state() if aligner else {})})
    remedy = "keep the weights of the stage before"
    if not (stage.rounds or stage.prototypes or stage.weighting != "none"):
        remedy = f"lower selftrain.quantile, or {remedy}"
    model.train()
    if src_loader is None or (aligner and aligner.settings.bn_statistics == "frozen"):
        freeze_running_statistics(model)
    for iteration in loop:
        learning_rates = {"lr": set_learning_rate(optimizer, iteration, stage)}
        if aligner is not None:
            learning_rates |= aligner.start_iteration(iteration, stage)
        method.start_iteration(iteration)
        tgt = tgt_loader[iteration]
        src = src_loader[iteration] if src_loader is not None else None
        rng = np.random.default_rng([seed, iteration, distributed.rank()])

        target = method.views(src, tgt, rng)
        losses = self_training_step(
            model, optimizer, aligner, target.src, tgt, target.views, stage, amp=amp
        )
        average.update(iteration)
        if vanished := monitor.update(target.src.labels, target.labels):
            logger.warning(
                "selftrain: the pseudo-labels no longer contain %s, which the source shows; %s",
                ", ".join(vanished),
                remedy,
            )
        labeled = (target.labels < model.spec.space.num_classes).float().mean()
        losses["labeled_fraction"] = labeled / distributed.world_size()
        loop.log(target.src.files + tgt.files, learning_rates, losses)
    return average


def self_training_step(
    model: SegmentationModel,
    optimizer: Optimizer,
    aligner: Aligner | None,
    src: Batch,
    tgt: Batch,
    views: Sequence[View],
    stage: SelfTrainingStage,
    *,
    amp: bool = False,
) -> Losses:
    """Update the student on a source batch and its views of the target; return unweighted losses.

    With an aligner the source loss is that of the adversarial update, which also updates D.
    """
    num_parts = distributed.world_size() * stage.accumulate
    # Weights of pseudo-labels, unlike those of classes, make the loss smaller.
    divisor = src.pixel_weights if src.weights is None else None
    num_labeled = distributed.all_reduce_sum(count_labeled(src.labels, divisor))
    optimizer.zero_grad(set_to_none=True)
    parts: list[Losses] = []
    if aligner is None:
        parts += [
            _accumulate(model, part, num_labeled, num_parts, amp=amp)
            for part in StudentView("segmentation", src, 1.0).split(stage.accumulate)
        ]
    else:
        aligner.zero_grad()
        parts += [
            aligner.accumulate_gradients(
                model, src_part, tgt_part, amp=amp, num_labeled=num_labeled, num_parts=num_parts
            )
            for src_part, tgt_part in zip(
                src.split(stage.accumulate), tgt.split(stage.accumulate), strict=True
            )
        ]
    for view in views:
        # Not the sum of the weights: weights of pseudo-labels make their loss smaller.
        num_labeled = distributed.all_reduce_sum(count_labeled(view.batch.labels))
        parts += [
            _accumulate(model, part, num_labeled, num_parts, amp=amp)
            for part in view.split(stage.accumulate)
        ]
    optimizer_step(optimizer, stage)
    if aligner is not None:
        aligner.step()
    return sum_losses(parts)


def _accumulate(
    model: SegmentationModel, view: View, num_labeled: Tensor, num_parts: int, *, amp: bool
) -> Losses:
    """Add the gradients of the loss of a view; return its unweighted terms."""
    frames = view.batch.frames_bhwc
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=amp):
        features = model.features(frames)
        logits = model.classifier(features)
    loss, terms = view.loss(ForwardOutputs(view.batch, features, logits), num_labeled, num_parts)
    loss.backward()
    return terms
