"""Fine-grained adversarial training: source labels teach classes, a discriminator of 2K outputs aligns them.

`fada train --stages adversarial`. Wang et al., ECCV 2020, eq. 3–9; the order of updates is the
released code's: F and G on the source, F and G against D on the target, then D on both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fada_deploy.training.batches import Batch, Batches
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.losses import (
    domain_loss,
    hard_encodings,
    segmentation_loss,
    soft_encodings,
    two_way_encodings,
    upsample,
)
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmenter import Segmenter
from fada_deploy.training.optim import (
    AveragedWeights,
    held_statistics,
    make_discriminator_optimiser,
    make_optimiser,
    set_learning_rate,
)
from fada_deploy.training.session import OpenSession

Encode = Callable[[Tensor], Tensor]


def make_encoder(stage: AdversarialStage) -> Encode:
    """Return the function logits → encodings that the stage's settings name."""
    encoders: dict[str, Encode] = {
        "soft": lambda logits: soft_encodings(logits, temperature=stage.temperature, clip=stage.clip),
        "hard": hard_encodings,
        "two-way": two_way_encodings,
    }
    return encoders[stage.encodings]


def train_adversarial(
    model: Segmenter,
    source: Batches,
    target: Batches,
    stage: AdversarialStage,
    *,
    discriminator: PixelDiscriminator,
    amp: bool,
    open_session: OpenSession,
) -> AveragedWeights:
    """Align the target's features with the source's, class by class; return the weights to keep."""
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
    for iteration in session:
        rate = set_learning_rate(optimiser, iteration, stage)
        set_learning_rate(d_optimiser, iteration, stage)
        losses = adversarial_step(
            model, discriminator, optimiser, d_optimiser, source[iteration], target[iteration], stage, amp=amp
        )
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
    amp: bool = False,
) -> dict[str, Tensor]:
    """Update F and G, then D, on one source and one target batch; return the losses, unweighted."""
    encode = make_encoder(stage)
    autocast = torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp)

    def domain_size(batch: Batch, features: Tensor) -> tuple[int, int]:
        return batch.size_hw if stage.full_resolution else (features.shape[-2], features.shape[-1])

    # F and G: classes on the source.
    optimiser.zero_grad(set_to_none=True)
    with autocast, held_statistics(model, stage.bn_statistics == "target"):
        src_features = model.features(src.frames_bhwc)
        src_logits = model.classifier(src_features)
    segmentation = segmentation_loss(upsample(src_logits, src.size_hw), src.labels, temperature=stage.temperature)
    segmentation.backward()

    # F and G: the target's features must pass for the source's, class by class.
    with autocast, held_statistics(model, stage.bn_statistics == "source"):
        tgt_features = model.features(tgt.frames_bhwc)
        tgt_logits = model.classifier(tgt_features)
    tgt_size = domain_size(tgt, tgt_features)
    tgt_encodings = encode(upsample(tgt_logits.detach(), tgt_size))
    discriminator.requires_grad_(False)
    with autocast:
        domain = discriminator(tgt_features)
    adversarial = domain_loss(upsample(domain, tgt_size), tgt_encodings, target=False, ignore=tgt.ignore(tgt_size))
    (stage.adversarial_weight * adversarial).backward()
    discriminator.requires_grad_(True)
    optimiser.step()

    # D: tell the domains apart, class by class.
    d_optimiser.zero_grad(set_to_none=True)
    src_size = domain_size(src, src_features)
    src_encodings = encode(upsample(src_logits.detach(), src_size))
    d_losses = []
    for features, encodings, batch, size, is_target in (
        (src_features, src_encodings, src, src_size, False),
        (tgt_features, tgt_encodings, tgt, tgt_size, True),
    ):
        with autocast:
            domain = discriminator(features.detach())
        loss = 0.5 * domain_loss(upsample(domain, size), encodings, target=is_target, ignore=batch.ignore(size))
        loss.backward()
        d_losses.append(loss.detach())
    d_optimiser.step()
    return {
        "segmentation": segmentation.detach(),
        "adversarial": adversarial.detach(),
        "discriminator_source": d_losses[0],
        "discriminator_target": d_losses[1],
    }
