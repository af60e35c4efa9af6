"""ADVENT: alignment or minimization of the prediction's entropy (Vu et al., CVPR 2019).

| method | what it does |
|---|---|
| advent | a discriminator on the weighted self-information −p log p / log K (eq. 6), single level |
| advent-multi | the same for two outputs, as published |
| minent | minimizes the mean entropy of the target's predictions (eq. 3); no discriminator |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.adaptsegnet import class_probabilities, single_level
from fada_deploy.training.methods.base import Losses, MethodContext, Step
from fada_deploy.training.methods.fada import DomainAlignment
from fada_deploy.training.methods.multi_level import MultiLevelAlignment


def advent(context: MethodContext) -> DomainAlignment:
    """Return ADVENT with a single level."""
    return single_level(context, self_information)


def advent_multi(context: MethodContext) -> MultiLevelAlignment:
    """Return ADVENT with two levels."""
    return MultiLevelAlignment.create(context, self_information)


def minent(context: MethodContext) -> EntropyMinimization:
    """Return MinEnt."""
    del context
    return EntropyMinimization()


def self_information(logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted self-information −p log p / log K, (B, K, H, W) (eq. 6)."""
    probabilities = class_probabilities(logits, batch)
    # p log p tends to 0 with p, but its gradient does not; the lower bound keeps it finite.
    log_p = torch.log(probabilities.clamp(min=1e-30))
    return -probabilities * log_p / math.log(probabilities.shape[1])


@dataclass(frozen=True, eq=False)
class EntropyMinimization:
    """Minimization of the target's mean normalized entropy, with the weight of the adversary."""

    discriminator: nn.Module = field(default_factory=nn.Module)
    heads: nn.Module = field(default_factory=nn.Module)

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and G."""
        seg_loss = step.segmentation_loss(step.forward(step.src).logits)
        seg_loss.backward()
        # The entropy is that of all pixels; it is 0 on the car's own body.
        information = self_information(step.forward(step.tgt).logits, step.tgt)
        entropy = information.sum(1).mean() / step.num_parts
        (step.settings.adversarial_weight * entropy).backward()
        return {"segmentation": seg_loss.detach(), "entropy": entropy.detach()}
