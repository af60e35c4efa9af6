"""Supervised training on the labeled source.

`fada train --stages source`.
"""

from __future__ import annotations

import torch

from fada_deploy.training import distributed
from fada_deploy.training.data.loader import BatchLoader
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.losses import count_labeled, segmentation_loss
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)
from fada_deploy.training.stage_config import SourceStage


def train_supervised(
    model: SegmentationModel,
    loader: BatchLoader,
    stage: SourceStage,
    *,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Minimize the cross entropy of labeled frames; return the averaged weights."""
    optimizer = make_optimizer(model, stage)
    average = AveragedWeights(model, stage.ema)
    loop = make_loop({"model": model, "optimizer": optimizer, "average": average})
    model.train()
    for iteration in loop:
        lr = set_learning_rate(optimizer, iteration, stage)
        batch = loader[iteration]
        num_labeled = distributed.all_reduce_sum(count_labeled(batch.labels, batch.pixel_weights))

        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in batch.split(stage.accumulate):
            with torch.autocast(part.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
                logits = model(part.frames_bhwc)
            loss = segmentation_loss(
                logits, part.labels, weights=part.pixel_weights, num_labeled=num_labeled
            )
            loss.backward()
            losses.append(loss.detach())
        optimizer_step(optimizer, stage)
        average.update(iteration)
        loop.log(batch.files, {"lr": lr}, {"segmentation": torch.stack(losses).sum()})
    return average
