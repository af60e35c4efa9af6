"""Adversarial training: source labels teach the classes, a discriminator aligns the domains.

`fada train --stages adversarial --method fada`. Wang et al., ECCV 2020, eq. 3–9; the order of
updates is the released code's: F and G on the source, F and G against D on the target, then D on
both. What the discriminator sees and tells apart is the method's (`training.methods.alignment`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.loop import LoopFactory
from fada_deploy.training.losses import (
    DomainLoss,
    domain_loss,
    labeled_pixels,
    segmentation_loss,
    source_fraction,
)
from fada_deploy.training.methods.alignment import ForwardOutputs, Method
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    freeze_statistics,
    hold_batch_statistics,
    make_discriminator_optimizer,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)


def train_adversarial(
    model: SegmentationModel,
    source: BatchLoader,
    target: BatchLoader,
    stage: AdversarialStage,
    *,
    method: Method,
    discriminator: nn.Module,
    amp: bool,
    open_loop: LoopFactory,
) -> AveragedWeights:
    """Align the target with the source as `method` does; return the weights to keep."""
    optimizer = make_optimizer(model, stage)
    d_optimizer = make_discriminator_optimizer(discriminator, stage)
    average = AveragedWeights(model, stage.ema)
    session = open_loop(
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
        freeze_statistics(model)
    for iteration in session:
        rates = {
            "lr": set_learning_rate(optimizer, iteration, stage),
            "discriminator_lr": set_learning_rate(d_optimizer, iteration, stage),
        }
        src, tgt = source[iteration], target[iteration]
        losses = adversarial_step(
            model, discriminator, optimizer, d_optimizer, src, tgt, stage, method=method, amp=amp
        )
        average.update(iteration)
        session.log(src.files + tgt.files, rates, losses)
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
    """Update F and G, then D, on one source and one target batch; return the losses, unweighted.

    Also how many of the pixels D puts into the right domain, a share: 0.5 is chance, 1 is saturation.
    """
    pixels = distributed.total(labeled_pixels(src.labels))
    optimizer.zero_grad(set_to_none=True)
    d_optimizer.zero_grad(set_to_none=True)
    parts = zip(src.parts(stage.accumulate), tgt.parts(stage.accumulate), strict=True)
    losses = [
        add_gradients(model, discriminator, *part, stage, method=method, amp=amp, pixels=pixels)
        for part in parts
    ]
    optimizer_step(optimizer, stage)
    distributed.add_gradients(discriminator.parameters())
    d_optimizer.step()
    return {name: torch.stack([each[name] for each in losses]).sum() for name in losses[0]}


def add_gradients(
    model: SegmentationModel,
    discriminator: nn.Module,
    src: Batch,
    tgt: Batch,
    stage: AdversarialStage,
    *,
    method: Method,
    amp: bool,
    pixels: Tensor,
) -> dict[str, Tensor]:
    """Add a part's gradients to F's, G's and D's; return its part of the losses.

    `pixels` counts the labeled ones of the whole batch.
    """
    autocast = torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp)
    shares = distributed.size() * stage.accumulate

    def look(batch: Batch, *, hold: bool) -> ForwardOutputs:
        with autocast, hold_batch_statistics(model, hold):
            features = model.features(batch.frames_bhwc)
            return ForwardOutputs(batch, features, model.classifier(features))

    def terms(seen: ForwardOutputs, answers: Tensor) -> DomainLoss:
        size = method.size_hw(seen.batch, answers)
        return domain_loss(
            answers, seen.logits, method.encode, size, seen.batch.ignore(size), parts=shares
        )

    # F and G: classes on the source.
    on_src = look(src, hold=stage.bn_statistics == "target")
    segmentation = segmentation_loss(
        on_src.logits, src.labels, temperature=method.temperature, pixels=pixels
    )
    segmentation.backward()

    # F and G: the target must pass for the source, class by class. D stays as it is meanwhile, so what it
    # says of the target here is what it will learn from below.
    on_tgt = look(tgt, hold=stage.bn_statistics == "source")
    view = method.view(on_tgt)
    tgt_view = view.detach().requires_grad_()
    with autocast:
        tgt_answers = discriminator(tgt_view)
    tgt_terms = terms(on_tgt, tgt_answers)
    pull = stage.adversarial_weight * tgt_terms.gradient_as_source
    view.backward(*torch.autograd.grad(tgt_answers, tgt_view, pull, retain_graph=True))

    # D: tell the domains apart, class by class, on what F and G said before their step.
    with autocast:
        src_answers = discriminator(method.view(on_src.detached()))
    src_terms = terms(on_src, src_answers)
    weights = list(discriminator.parameters())
    torch.autograd.backward(src_answers, 0.5 * src_terms.gradient_as_source, inputs=weights)
    torch.autograd.backward(tgt_answers, 0.5 * tgt_terms.gradient_as_target, inputs=weights)
    right = source_fraction(src_answers, src.ignore) + 1 - source_fraction(tgt_answers, tgt.ignore)
    return {
        "segmentation": segmentation.detach(),
        "adversarial": tgt_terms.as_source,
        "discriminator_source": 0.5 * src_terms.as_source,
        "discriminator_target": 0.5 * tgt_terms.as_target,
        "discriminator_accuracy": 0.5 * right / shares,
    }
