"""Adversarial training: source labels teach the classes, a discriminator aligns the domains.

`fada train --stages adversarial --method fada`. Wang et al., ECCV 2020, eq. 3–9; the order of
updates is the released code's: F and G on the source, F and G against D on the target, then D on
both. What the discriminator sees and tells apart is the method's (`training.methods`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fada_deploy.training.batches import Batch, Batches
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.losses import domain_loss, segmentation_loss, upsample
from fada_deploy.training.methods import Method, Seen
from fada_deploy.training.models.segmenter import Segmenter
from fada_deploy.training.optim import (
    AveragedWeights,
    freeze_statistics,
    held_statistics,
    make_discriminator_optimiser,
    make_optimiser,
    set_learning_rate,
)
from fada_deploy.training.session import OpenSession


def train_adversarial(
    model: Segmenter,
    source: Batches,
    target: Batches,
    stage: AdversarialStage,
    *,
    method: Method,
    discriminator: nn.Module,
    amp: bool,
    open_session: OpenSession,
) -> AveragedWeights:
    """Align the target with the source as `method` does; return the weights to keep."""
    optimiser = make_optimiser(model, stage)
    d_optimiser = make_discriminator_optimiser(discriminator, stage)
    average = AveragedWeights(model, stage.ema)
    session = open_session(
        {
            "model": model,
            "optimiser": optimiser,
            "average": average,
            "discriminator": discriminator,
            "discriminator_optimiser": d_optimiser,
        }
    )
    model.train()
    if stage.bn_statistics == "frozen":
        freeze_statistics(model)
    for iteration in session:
        rate = set_learning_rate(optimiser, iteration, stage)
        set_learning_rate(d_optimiser, iteration, stage)
        losses = adversarial_step(
            model, discriminator, optimiser, d_optimiser, source[iteration], target[iteration], stage,
            method=method, amp=amp,
        )  # fmt: skip
        average.update(iteration)
        session.log(**losses, lr=rate)
    return average


def adversarial_step(
    model: Segmenter,
    discriminator: nn.Module,
    optimiser: Optimizer,
    d_optimiser: Optimizer,
    src: Batch,
    tgt: Batch,
    stage: AdversarialStage,
    *,
    method: Method,
    amp: bool = False,
) -> dict[str, Tensor]:
    """Update F and G, then D, on one source and one target batch; return the losses, unweighted."""
    autocast = torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp)

    def look(batch: Batch, *, hold: bool) -> Seen:
        with autocast, held_statistics(model, hold):
            features = model.features(batch.frames_bhwc)
            return Seen(batch, features, model.classifier(features))

    # F and G: classes on the source.
    optimiser.zero_grad(set_to_none=True)
    on_src = look(src, hold=stage.bn_statistics == "target")
    segmentation = segmentation_loss(
        upsample(on_src.logits, src.size_hw), src.labels, temperature=method.temperature
    )
    segmentation.backward()

    # F and G: the target must pass for the source, class by class.
    on_tgt = look(tgt, hold=stage.bn_statistics == "source")
    discriminator.requires_grad_(False)
    with autocast:
        answers = discriminator(method.view(on_tgt))
    size = method.size_hw(tgt, answers)
    tgt_encodings = method.encode(on_tgt.logits.detach(), size)
    adversarial = domain_loss(upsample(answers, size), tgt_encodings, target=False, ignore=tgt.ignore(size))
    (stage.adversarial_weight * adversarial).backward()
    discriminator.requires_grad_(True)
    optimiser.step()

    # D: tell the domains apart, class by class, on what F and G said before their step.
    d_optimiser.zero_grad(set_to_none=True)
    d_losses = []
    for seen, is_target in ((on_src.detached(), False), (on_tgt.detached(), True)):
        with autocast:
            answers = discriminator(method.view(seen))
        size = method.size_hw(seen.batch, answers)
        encodings = tgt_encodings if is_target else method.encode(seen.logits, size)
        ignore = seen.batch.ignore(size)
        loss = 0.5 * domain_loss(upsample(answers, size), encodings, target=is_target, ignore=ignore)
        loss.backward()
        d_losses.append(loss.detach())
    d_optimiser.step()
    return {
        "segmentation": segmentation.detach(),
        "adversarial": adversarial.detach(),
        "discriminator_source": d_losses[0],
        "discriminator_target": d_losses[1],
    }
