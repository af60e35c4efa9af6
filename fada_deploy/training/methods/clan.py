"""CLAN: category-level adversaries (Luo et al., CVPR 2019).

Two different classifiers read the features. Where they disagree on the target, the classes are not
aligned, and the adversarial loss weighs more (eq. 3-6). The second classifier is new and only
trained here: the network that is exported keeps the first one, while the authors sum both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.interpolation import full_precision, upsample
from fada_deploy.training.methods.adaptsegnet import class_probabilities
from fada_deploy.training.methods.base import Losses, MethodContext, Step, fixed
from fada_deploy.training.models.discriminator import OutputDiscriminator

# Published settings: the loss of a pixel is (EPSILON + LOCAL_WEIGHT · disagreement) times the
# cross entropy, after the first PREHEAT of the iterations. The 40 is for GTA5; the authors use 10
# for SYNTHIA.
EPSILON, LOCAL_WEIGHT, PREHEAT = 0.4, 40.0, 0.05
WEIGHT_DISCREPANCY = 0.01


def clan(context: MethodContext) -> CategoryLevelAlignment:
    """Return CLAN."""
    return CategoryLevelAlignment(
        heads=context.new_classifier(context.model.channels),
        discriminator=OutputDiscriminator(context.num_classes),
    )


@dataclass(frozen=True, eq=False)
class CategoryLevelAlignment:
    """Alignment with two classifiers; `heads` is the second one."""

    heads: nn.Module
    discriminator: nn.Module

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and both classifiers, then those of D."""
        src = step.forward(step.src)
        with step.autocast():
            src_second = self.heads(src.features)
        seg_loss = step.segmentation_loss(src.logits) + step.segmentation_loss(src_second)
        discrepancy = weight_similarity(step.model.classifier, self.heads) / step.num_parts
        (seg_loss + WEIGHT_DISCREPANCY * discrepancy).backward()

        tgt = step.forward(step.tgt)
        with step.autocast():
            tgt_second = self.heads(tgt.features)
        with fixed(self.discriminator), step.autocast():
            d_logits = self.discriminator(class_probabilities(tgt.logits + tgt_second, step.tgt))
        weights = self._pixel_weights(tgt.logits, tgt_second, step)
        adversarial = self._domain_loss(d_logits, weights, step, target=False)
        (step.settings.adversarial_weight * adversarial).backward()

        with step.autocast():
            src_d = self.discriminator(
                class_probabilities((src.logits + src_second).detach(), step.src)
            )
            tgt_d = self.discriminator(
                class_probabilities((tgt.logits + tgt_second).detach(), step.tgt)
            )
        src_wide = upsample(full_precision(src_d), step.src.size_hw)
        src_loss = 0.5 * step.domain_loss(src_wide, step.src, target=False)
        tgt_loss = 0.5 * self._domain_loss(tgt_d, weights.detach(), step, target=True)
        (src_loss + tgt_loss).backward()
        return {
            "segmentation": seg_loss.detach(),
            "adversarial": adversarial.detach(),
            "weight_similarity": discrepancy.detach(),
            "discriminator_source": src_loss.detach(),
            "discriminator_target": tgt_loss.detach(),
            "discriminator_accuracy": step.domain_accuracy(src_d, tgt_d),
        }

    def _domain_loss(
        self, d_logits: Tensor, weights: Tensor, step: Step, *, target: bool
    ) -> Tensor:
        """Return the weighted domain loss of the target at its size."""
        wide = upsample(full_precision(d_logits), step.tgt.size_hw)
        return step.domain_loss(wide, step.tgt, target=target, weights=weights)

    def _pixel_weights(self, first: Tensor, second: Tensor, step: Step) -> Tensor:
        """Return the weight of each target pixel, (B, H, W)."""
        first, second = (
            F.softmax(upsample(full_precision(logits), step.tgt.size_hw), dim=1)
            for logits in (first, second)
        )
        if step.progress < PREHEAT:
            return torch.ones_like(first[:, 0])
        disagreement = 1 - F.cosine_similarity(first, second, dim=1)
        return EPSILON + LOCAL_WEIGHT * disagreement


def weight_similarity(first: nn.Module, second: nn.Module) -> Tensor:
    """Return cos(w1, w2) + 1 of the convolution weights of two classifiers, a scalar (eq. 4)."""
    one, other = (
        torch.cat([m.weight.flatten() for m in each.modules() if isinstance(m, nn.Conv2d)])
        for each in (first, second)
    )
    return F.cosine_similarity(one, other, dim=0) + 1
