"""Adversarial training: source labels train the classifier, a discriminator aligns the domains.

`fada train --stages adversarial --method fada`. Wang et al., ECCV 2020, eq. 3-9. The updates have
the order of the released code: F and G on the source, F and G against D on the target, then D on
both. The method decides what the discriminator reads and separates (`training.methods.alignment`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.losses import (
    DomainLoss,
    count_labeled,
    domain_loss,
    segmentation_loss,
    source_fraction,
)
from fada_deploy.training.methods.alignment import ForwardOutputs, Method
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    freeze_running_statistics,
    make_discriminator_optimizer,
    make_optimizer,
    optimizer_step,
    preserve_running_statistics,
    set_learning_rate,
)


def train_adversarial(
    model: SegmentationModel,
    src_loader: BatchLoader,
    tgt_loader: BatchLoader,
    stage: AdversarialStage,
    *,
    method: Method,
    discriminator: nn.Module,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Align the target with the source by `method`; return the averaged weights."""
    optimizer = make_optimizer(model, stage)
    d_optimizer = make_discriminator_optimizer(discriminator, stage)
    average = AveragedWeights(model, stage.ema)
    loop = make_loop(
        {
            "model": model,
            "optimizer": optimizer,
            "average": average,
            "discriminator": discriminator,
            "discriminator_optimizer": d_optimizer,
        }
    )
    model.train()
    if stage.bn_statistics == "frozen":
        freeze_running_statistics(model)
    for iteration in loop:
        learning_rates = {
            "lr": set_learning_rate(optimizer, iteration, stage),
            "discriminator_lr": set_learning_rate(d_optimizer, iteration, stage),
        }
        src, tgt = src_loader[iteration], tgt_loader[iteration]
        losses = adversarial_step(
            model, discriminator, optimizer, d_optimizer, src, tgt, stage, method=method, amp=amp
        )
        average.update(iteration)
        loop.log(src.files + tgt.files, learning_rates, losses)
    return average


def adversarial_step(
    model: SegmentationModel,
    discriminator: nn.Module,
    optimizer: Optimizer,
    d_optimizer: Optimizer,
    src: Batch,
    tgt: Batch,
    stage: AdversarialStage,
    *,
    method: Method,
    amp: bool = False,
) -> dict[str, Tensor]:
    """Update F and G, then D, on one source and one target batch; return the unweighted losses.

    The result also holds `discriminator_accuracy`, the fraction of pixels that D assigns to the
    right domain: 0.5 is chance, 1 is saturation. All values are scalars, detached from the graph.
    """
    num_labeled = distributed.all_reduce_sum(count_labeled(src.labels))
    optimizer.zero_grad(set_to_none=True)
    d_optimizer.zero_grad(set_to_none=True)
    losses = [
        accumulate_gradients(
            model, discriminator, src_part, tgt_part, stage,
            method=method, amp=amp, num_labeled=num_labeled,
        )
        for src_part, tgt_part in zip(
            src.split(stage.accumulate), tgt.split(stage.accumulate), strict=True
        )
    ]  # fmt: skip
    optimizer_step(optimizer, stage)
    distributed.all_reduce_gradients(discriminator.parameters())
    d_optimizer.step()
    return {name: torch.stack([part[name] for part in losses]).sum() for name in losses[0]}


def accumulate_gradients(
    model: SegmentationModel,
    discriminator: nn.Module,
    src: Batch,
    tgt: Batch,
    stage: AdversarialStage,
    *,
    method: Method,
    amp: bool,
    num_labeled: Tensor,
) -> dict[str, Tensor]:
    """Add the gradients of one part of a global batch to those of F, G and D; return its losses.

    `num_labeled` counts the labeled pixels of the global batch.
    """
    autocast = torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp)
    num_parts = distributed.world_size() * stage.accumulate

    def forward(batch: Batch, *, preserve_statistics: bool) -> ForwardOutputs:
        with autocast, preserve_running_statistics(model, preserve_statistics):
            features = model.features(batch.frames_bhwc)
            return ForwardOutputs(batch, features, model.classifier(features))

    def discriminator_loss(outputs: ForwardOutputs, d_logits: Tensor) -> DomainLoss:
        size_hw = method.loss_size_hw(outputs.batch, d_logits)
        ignore_mask = outputs.batch.ignore_mask(size_hw)
        return domain_loss(
            d_logits, outputs.logits, method.encode, size_hw, ignore_mask, num_parts=num_parts
        )

    # F and G: segment the labeled source.
    src_outputs = forward(src, preserve_statistics=stage.bn_statistics == "target")
    seg_loss = segmentation_loss(
        src_outputs.logits, src.labels, temperature=method.temperature, num_labeled=num_labeled
    )
    seg_loss.backward()

    # F and G: make D assign the target to the source. D is updated after F and G, so its output for
    # the target is reused below.
    tgt_outputs = forward(tgt, preserve_statistics=stage.bn_statistics == "source")
    tgt_input = method.discriminator_input(tgt_outputs)
    tgt_leaf = tgt_input.detach().requires_grad_()
    with autocast:
        tgt_d_logits = discriminator(tgt_leaf)
    tgt_loss = discriminator_loss(tgt_outputs, tgt_d_logits)
    adversarial_grad = stage.adversarial_weight * tgt_loss.grad_as_source
    input_grads = torch.autograd.grad(tgt_d_logits, tgt_leaf, adversarial_grad, retain_graph=True)
    tgt_input.backward(*input_grads)

    # D: separate source and target, given the outputs of F and G before their update.
    with autocast:
        src_d_logits = discriminator(method.discriminator_input(src_outputs.detached()))
    src_loss = discriminator_loss(src_outputs, src_d_logits)
    d_weights = list(discriminator.parameters())
    torch.autograd.backward(src_d_logits, 0.5 * src_loss.grad_as_source, inputs=d_weights)
    torch.autograd.backward(tgt_d_logits, 0.5 * tgt_loss.grad_as_target, inputs=d_weights)

    src_fraction = source_fraction(src_d_logits, src.ignore_mask)
    tgt_fraction = source_fraction(tgt_d_logits, tgt.ignore_mask)
    return {
        "segmentation": seg_loss.detach(),
        "adversarial": tgt_loss.loss_as_source,
        "discriminator_source": 0.5 * src_loss.loss_as_source,
        "discriminator_target": 0.5 * tgt_loss.loss_as_target,
        "discriminator_accuracy": 0.5 * (src_fraction + 1 - tgt_fraction) / num_parts,
    }
