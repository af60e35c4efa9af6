"""Adversarial training: source labels train the classifier, a discriminator aligns the domains.

`fada train --stages adversarial --method fada`. The updates have the order of the released code of
FADA: F and G on the source, F and G against D on the target, then D on both
(`training.methods.fada`). Other methods have modules of their own.
"""

from __future__ import annotations

from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.losses import count_labeled
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.base import Losses, sum_losses
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    freeze_running_statistics,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)


def train_adversarial(
    model: SegmentationModel,
    src_loader: BatchLoader,
    tgt_loader: BatchLoader,
    *,
    aligner: Aligner,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Align the target with the source; return the averaged weights."""
    stage = aligner.settings
    optimizer = make_optimizer(model, stage, aligner.method.heads)
    average = AveragedWeights(model, stage.ema)
    loop = make_loop(
        {"model": model, "optimizer": optimizer, "average": average, **aligner.state()}
    )
    model.train()
    if stage.bn_statistics == "frozen":
        freeze_running_statistics(model)
    for iteration in loop:
        learning_rates = {
            "lr": set_learning_rate(optimizer, iteration, stage),
            **aligner.start_iteration(iteration, stage),
        }
        src, tgt = src_loader[iteration], tgt_loader[iteration]
        losses = adversarial_step(model, optimizer, aligner, src, tgt, amp=amp)
        average.update(iteration)
        loop.log(src.files + tgt.files, learning_rates, losses)
    return average


def adversarial_step(
    model: SegmentationModel,
    optimizer: Optimizer,
    aligner: Aligner,
    src: Batch,
    tgt: Batch,
    *,
    amp: bool = False,
) -> Losses:
    """Update F and G, then D, on one source and one target batch.

    `optimizer` also updates the heads of the method. Return the losses and metrics of
    `Aligner.accumulate_gradients` for the whole batch.
    """
    stage = aligner.settings
    num_labeled = distributed.all_reduce_sum(count_labeled(src.labels, src.pixel_weights))
    optimizer.zero_grad(set_to_none=True)
    aligner.zero_grad()
    losses = [
        aligner.accumulate_gradients(
            model, src_part, tgt_part, amp=amp, num_labeled=num_labeled,
            num_parts=distributed.world_size() * stage.accumulate,
        )
        for src_part, tgt_part in zip(
            src.split(stage.accumulate), tgt.split(stage.accumulate), strict=True
        )
    ]  # fmt: skip
    optimizer_step(optimizer, stage)
    aligner.step()
    return sum_losses(losses)
