"""Self-training: a mean teacher labels the target, the student learns source and mixed frames.

`fada train --stages source,selftrain`, or after the adversarial stage. The teacher is the averaged
weights of the student; its confident labels and pasted source classes make the mixed frames
(`training.methods.self_training`). With `selftrain.align` the same iterations also align the
domains (`training.methods.aligner`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.data.augmentation import Augmentation
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import MakeLoop, TrainingState
from fada_deploy.training.losses import count_labeled, segmentation_loss
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.cbst import (
    Thresholds,
    round_labels,
    round_of,
    round_portion,
    thresholds_of,
    uniform_divergence,
)
from fada_deploy.training.methods.self_training import (
    CollapseMonitor,
    PseudoLabels,
    StudentView,
    pseudo_labels,
    student_views,
    weighted_labels,
)
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
    seed: int,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Train on the source and on pseudo-labels; return the averaged weights, which are the teacher.

    `augmentation` changes the colors of the student's frames; `seed` decides what is mixed and how.
    `aligner` also aligns the domains in every iteration; None only self-trains. `count_target`
    returns the counts of `count_confidences` over the whole target, for rounds. Without a source
    loader, the pseudo-labeled target takes the place of the source, and the teacher is frozen.
    """
    if src_loader is None:
        mix_running_statistics(
            model, (tgt_loader[k].frames_bhwc for k in range(STATISTICS_BATCHES))
        )
    optimizer = make_optimizer(model, stage, aligner.method.heads if aligner else None)
    average = AveragedWeights(model, stage.ema)
    state: TrainingState = {"model": model, "optimizer": optimizer, "average": average}
    if aligner is not None:
        state = {**state, **aligner.state()}
    # Before the loop restores a saved state, because a frozen teacher keeps the initial weights.
    teacher = deepcopy(model).eval()
    thresholds = Thresholds(model.spec.space.num_classes).to(next(model.parameters()).device)
    if stage.rounds:
        # The network that labels a round is needed until its end.
        state = {**state, "teacher": teacher, "thresholds": thresholds}
    loop = make_loop(state)
    monitor = CollapseMonitor(model.spec.space.names, window=max(1, stage.iterations // 10))
    model.train()
    if src_loader is None or (aligner and aligner.settings.bn_statistics == "frozen"):
        freeze_running_statistics(model)
    for iteration in loop:
        learning_rates = {"lr": set_learning_rate(optimizer, iteration, stage)}
        if aligner is not None:
            learning_rates |= aligner.start_iteration(iteration, stage)
        number, begins = round_of(iteration, stage)
        if begins:
            teacher.load_state_dict(average.weights())
            thresholds.values = thresholds_of(
                count_target(teacher),
                portion=round_portion(number, stage),
                per_class=stage.threshold_per_class,
            )
        tgt = tgt_loader[iteration]
        if src_loader is not None and not stage.rounds:
            teacher.load_state_dict(average.weights())
        rng = np.random.default_rng([seed, iteration, distributed.rank()])

        pseudo = label_target(teacher, tgt, stage, thresholds.values, amp=amp)
        src = rolled(tgt, pseudo) if src_loader is None else src_loader[iteration]
        views = student_views(src, tgt, pseudo, stage, model.spec.mean, augmentation, rng)
        losses = self_training_step(model, optimizer, aligner, src, tgt, views, stage, amp=amp)
        average.update(iteration)
        if vanished := monitor.update(src.labels, pseudo.labels):
            logger.warning(
                "selftrain: the pseudo-labels no longer contain %s, although the source shows it; "
                "lower selftrain.quantile, or keep the weights of the stage before",
                ", ".join(vanished),
            )
        labeled = (pseudo.labels < model.spec.space.num_classes).float().mean()
        losses["labeled_fraction"] = labeled / distributed.world_size()
        loop.log(src.files + tgt.files, learning_rates, losses)
    return average


def rolled(tgt: Batch, pseudo: PseudoLabels) -> Batch:
    """Return a pseudo-labeled target batch whose frames are moved by one slot.

    Mixing pastes the classes of a slot into the frame of the same slot, so these have to differ.
    """
    indices = (*tgt.indices[-1:], *tgt.indices[:-1])
    labels = pseudo.labels.roll(1, 0)
    weights = None if pseudo.weight is None else pseudo.weight.expand(labels.shape).clone()
    return Batch(tgt.frames_bhwc.roll(1, 0), labels, indices, ego=tgt.ego, weights=weights)


@torch.no_grad()
def label_target(
    teacher: SegmentationModel,
    tgt: Batch,
    stage: SelfTrainingStage,
    thresholds: Tensor,
    *,
    amp: bool,
) -> PseudoLabels:
    """Return the teacher's labels of a target batch; the car's own body is ignored.

    `thresholds` (K,) are those of the round, if there are rounds.
    """
    with torch.autocast(tgt.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
        logits = teacher(tgt.frames_bhwc)
    if stage.rounds:
        pseudo = PseudoLabels(round_labels(logits, tgt.size_hw, thresholds))
    elif stage.weighting == "confident_share":
        pseudo = weighted_labels(logits, tgt.size_hw, max_threshold=stage.max_threshold)
    else:
        pseudo = PseudoLabels(
            pseudo_labels(
                logits, tgt.size_hw, max_threshold=stage.max_threshold, quantile=stage.quantile
            )
        )
    ignored = tgt.ignore_mask(tgt.size_hw)
    if ignored is None:
        return pseudo
    return replace(pseudo, labels=pseudo.labels.masked_fill(ignored, 255))


def self_training_step(
    model: SegmentationModel,
    optimizer: Optimizer,
    aligner: Aligner | None,
    src: Batch,
    tgt: Batch,
    views: Sequence[StudentView],
    stage: SelfTrainingStage,
    *,
    amp: bool = False,
) -> dict[str, Tensor]:
    """Update the student on a source batch and its views of the target; return unweighted losses.

    With an aligner the source loss is that of the adversarial update, which also updates D.
    """
    num_parts = distributed.world_size() * stage.accumulate
    # Weights of pseudo-labels, unlike those of classes, make the loss smaller.
    divisor = src.pixel_weights if src.weights is None else None
    num_labeled = distributed.all_reduce_sum(count_labeled(src.labels, divisor))
    optimizer.zero_grad(set_to_none=True)
    parts: list[dict[str, Tensor]] = []
    if aligner is None:
        parts += [
            {"segmentation": _accumulate(model, part, num_labeled, amp=amp)}
            for part in src.split(stage.accumulate)
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
        batch = view.batch
        # Not the sum of the weights: weights of pseudo-labels make their loss smaller.
        num_labeled = distributed.all_reduce_sum(count_labeled(batch.labels))
        parts += [
            {
                view.name: _accumulate(
                    model,
                    part,
                    num_labeled,
                    weight=view.weight,
                    amp=amp,
                    regularizer=stage.regularizer,
                )
            }
            for part in batch.split(stage.accumulate)
        ]
    optimizer_step(optimizer, stage)
    if aligner is not None:
        aligner.step()
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([p[name] for p in parts if name in p]).sum() for name in names}


def _accumulate(
    model: SegmentationModel,
    batch: Batch,
    num_labeled: Tensor,
    *,
    weight: float = 1.0,
    regularizer: float = 0.0,
    amp: bool,
) -> Tensor:
    """Add the gradients of `weight` times the loss of a batch; return its cross entropy.

    The loss is the cross entropy and `regularizer` times the divergence of the predictions from the
    uniform distribution. `num_labeled` counts the labeled pixels of the global batch.
    """
    with torch.autocast(batch.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
        logits = model(batch.frames_bhwc)
    loss = segmentation_loss(
        logits, batch.labels, weights=batch.pixel_weights, num_labeled=num_labeled
    )
    total = loss
    if regularizer:
        total = loss + regularizer * uniform_divergence(logits, batch.labels, num_labeled)
    (weight * total).backward()
    return loss.detach()
