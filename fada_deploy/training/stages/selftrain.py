"""Self-training: a mean teacher labels the target, the student learns source and mixed frames.

`fada train --stages source,selftrain`, or after the adversarial stage. The teacher is the averaged
weights of the student; its confident labels and pasted source classes make the mixed frames
(`training.methods.self_training`).
"""

from __future__ import annotations

import logging
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.config import SelfTrainingStage
from fada_deploy.training.data.augmentation import Augmentation, augment_photometry
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.losses import count_labeled, segmentation_loss
from fada_deploy.training.methods.self_training import CollapseMonitor, class_mix, pseudo_labels
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)

logger = logging.getLogger(__name__)


def train_self_training(
    model: SegmentationModel,
    src_loader: BatchLoader,
    tgt_loader: BatchLoader,
    stage: SelfTrainingStage,
    *,
    augmentation: Augmentation,
    seed: int,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Train on the source and on mixed frames; return the averaged weights, which are the teacher.

    `augmentation` changes the colors of the mixed frames; `seed` decides what is mixed and how.
    """
    optimizer = make_optimizer(model, stage)
    average = AveragedWeights(model, stage.ema)
    loop = make_loop({"model": model, "optimizer": optimizer, "average": average})
    teacher = deepcopy(model).eval()
    monitor = CollapseMonitor(model.spec.space.names, window=max(1, stage.iterations // 10))
    model.train()
    for iteration in loop:
        lr = set_learning_rate(optimizer, iteration, stage)
        src, tgt = src_loader[iteration], tgt_loader[iteration]
        teacher.load_state_dict(average.weights())
        rng = np.random.default_rng([seed, iteration, distributed.rank()])

        tgt_labels = label_target(teacher, tgt, stage, amp=amp)
        mixed_frames, mixed_labels = class_mix(
            src.frames_bhwc, src.labels, tgt.frames_bhwc, tgt_labels, rng
        )
        mixed_frames = augment_colors(mixed_frames, augmentation, rng)
        losses = self_training_step(
            model, optimizer, src, mixed_frames, mixed_labels, stage, amp=amp
        )
        average.update(iteration)
        if vanished := monitor.update(src.labels, tgt_labels):
            logger.warning(
                "selftrain: the pseudo-labels no longer contain %s, although the source shows it; "
                "lower selftrain.quantile, or keep the weights of the stage before",
                ", ".join(vanished),
            )
        labeled = (tgt_labels < model.spec.space.num_classes).float().mean()
        losses["labeled_fraction"] = labeled / distributed.world_size()
        loop.log(src.files + tgt.files, {"lr": lr}, losses)
    return average


@torch.no_grad()
def label_target(
    teacher: SegmentationModel, tgt: Batch, stage: SelfTrainingStage, *, amp: bool
) -> Tensor:
    """Return the teacher's confident labels of a target batch, (B, H, W) int64; 255 elsewhere."""
    with torch.autocast(tgt.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
        logits = teacher(tgt.frames_bhwc)
    labels = pseudo_labels(
        logits, tgt.size_hw, max_threshold=stage.max_threshold, quantile=stage.quantile
    )
    ignored = tgt.ignore_mask(tgt.size_hw)
    return labels if ignored is None else labels.masked_fill(ignored, 255)


def augment_colors(
    frames_bhwc: Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> Tensor:
    """Return frames (B, H, W, 3) uint8 with the photometric part of an augmentation."""
    frames = [augment_photometry(frame, augmentation, rng) for frame in frames_bhwc.cpu().numpy()]
    return torch.from_numpy(np.stack(frames)).to(frames_bhwc.device)


def self_training_step(
    model: SegmentationModel,
    optimizer: Optimizer,
    src: Batch,
    mixed_frames: Tensor,
    mixed_labels: Tensor,
    stage: SelfTrainingStage,
    *,
    amp: bool = False,
) -> dict[str, Tensor]:
    """Update the student on a source batch and a mixed batch; return the unweighted losses."""
    optimizer.zero_grad(set_to_none=True)
    losses = {}
    for name, frames, labels, weight in (
        ("segmentation", src.frames_bhwc, src.labels, 1.0),
        ("mixed", mixed_frames, mixed_labels, stage.mixed_weight),
    ):
        num_labeled = distributed.all_reduce_sum(count_labeled(labels))
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=amp):
            logits = model(frames)
        loss = segmentation_loss(logits, labels, num_labeled=num_labeled)
        (weight * loss).backward()
        losses[name] = loss.detach()
    optimizer_step(optimizer, stage)
    return losses
