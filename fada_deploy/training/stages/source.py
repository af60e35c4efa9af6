"""Supervised training: the source stage, and the student of the distillation stage.

`fada train --stages source`
"""

from __future__ import annotations

import torch

from fada_deploy.training.config import DistillStage, SourceStage
from fada_deploy.training.data.loader import BatchLoader
from fada_deploy.training.distributed import total
from fada_deploy.training.loop import LoopFactory
from fada_deploy.training.losses import labeled_pixels, segmentation_loss
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)


def train_supervised(
    model: SegmentationModel,
    batches: BatchLoader,
    stage: SourceStage | DistillStage,
    *,
    amp: bool,
    open_loop: LoopFactory,
) -> AveragedWeights:
    """Minimize the cross entropy of labeled frames; return the weights to keep."""
    optimizer = make_optimizer(model, stage)
    average = AveragedWeights(model, stage.ema)
    session = open_loop({"model": model, "optimizer": optimizer, "average": average})
    model.train()
    for iteration in session:
        rate = set_learning_rate(optimizer, iteration, stage)
        batch = batches[iteration]
        pixels = total(labeled_pixels(batch.labels))

        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in batch.parts(stage.accumulate):
            with torch.autocast(part.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
                logits = model(part.frames_bhwc)
            loss = segmentation_loss(logits, part.labels, pixels=pixels)
            loss.backward()
            losses.append(loss.detach())
        optimizer_step(optimizer, stage)
        average.update(iteration)
        session.log(batch.files, {"lr": rate}, {"segmentation": torch.stack(losses).sum()})
    return average
