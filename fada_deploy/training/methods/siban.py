"""SIBAN: a significance-aware information bottleneck before the adversary (Luo et al., ICCV 2019).

There is no code of the authors; this is our reading of the paper's abstract and equations. The
features f become z ~ N(f, σ²) with a learned σ for each channel and place. The classifier and the
binary discriminator read z. The divergence of N(f, σ²) from N(0, 1) is kept below a bound by dual
ascent on its weight β. Channels that matter little to the classifier count more in it, so that the
bottleneck removes them first. The exported network uses the mean, which is f itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fada_deploy.training.distributed import all_reduce_sum
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.methods.base import Losses, MethodContext, Step, fixed
from fada_deploy.training.models.discriminator import PixelDiscriminator

# Our settings: the bound in nats per channel and place, and the step of the dual ascent.
BOUND, DUAL_STEP = 1.0, 1e-4


def siban(context: MethodContext) -> BottleneckAlignment:
    """Return SIBAN."""
    return BottleneckAlignment(
        discriminator=PixelDiscriminator(context.model.channels, 1),
        heads=Bottleneck(context.model.channels),
    )


class Bottleneck(nn.Module):
    """The logarithm of σ² of each feature, and the state of the dual ascent as buffers.

    `beta` belongs to the iteration `iteration`; `excess` is the sum of divergence − bound over the
    parts of that iteration in all processes, of which one saves the state. It changes β at the
    start of the next iteration. σ starts near 0.05, so that the classifier of the source stage
    still works.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_variance = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(cast("Tensor", self.log_variance.bias), -6.0)
        self.beta: Tensor
        self.excess: Tensor
        self.iteration: Tensor
        self.register_buffer("beta", torch.zeros(()))
        self.register_buffer("excess", torch.zeros(()))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def start_iteration(self, iteration: int) -> None:
        """Update β once for each iteration, equally in all processes and for all parts."""
        if int(self.iteration) != iteration:
            self.beta += DUAL_STEP * self.excess
            self.beta.clamp_(min=0)
            self.excess.zero_()
            self.iteration.fill_(iteration)

    def forward(self, features: Tensor) -> Tensor:
        """Return log σ² of features (B, C, h, w)."""
        log_variance: Tensor = self.log_variance(features)
        return log_variance.clamp(-12.0, 6.0)


@dataclass(frozen=True, eq=False)
class BottleneckAlignment:
    """Alignment of purified features by a binary discriminator."""

    discriminator: nn.Module
    heads: Bottleneck

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F, G and the bottleneck, then those of D."""
        parts = step.num_parts
        significance = channel_significance(step.model.classifier)
        generator = step.generator()
        self.heads.start_iteration(step.iteration)
        src_features = step.features(step.src)
        src_z, src_divergence = self._sample(src_features, significance, generator, step)
        seg_loss = step.segmentation_loss(step.classify(src_z, step.src))
        (seg_loss + 0.5 * self.heads.beta * (src_divergence - BOUND) / parts).backward()

        tgt_features = step.features(step.tgt)
        tgt_z, tgt_divergence = self._sample(tgt_features, significance, generator, step)
        step.update_classifier_statistics(tgt_z, step.tgt)
        with fixed(self.discriminator), step.autocast():
            tgt_d = self.discriminator(tgt_z)
        adversarial = step.domain_loss(tgt_d, step.tgt, target=False)
        weighted = step.settings.adversarial_weight * adversarial
        (weighted + 0.5 * self.heads.beta * (tgt_divergence - BOUND) / parts).backward()

        divergence = 0.5 * (src_divergence + tgt_divergence).detach()
        self.heads.excess += all_reduce_sum((divergence - BOUND) / parts)
        return {
            "segmentation": seg_loss.detach(),
            "adversarial": adversarial.detach(),
            "divergence": divergence / parts,
            **step.train_discriminator(self.discriminator, src_z, tgt_z),
        }

    def _sample(
        self, features: Tensor, significance: Tensor, generator: torch.Generator, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Return z (B, C, h, w) and the weighted divergence, a scalar."""
        with step.autocast():
            log_variance = full_precision(self.heads(features))
        mean = full_precision(features)
        noise = torch.empty_like(mean).normal_(generator=generator)
        z = mean + torch.exp(0.5 * log_variance) * noise
        return z, weighted_divergence(mean, log_variance, significance)


@torch.no_grad()
def channel_significance(classifier: nn.Module) -> Tensor:
    """Return the significance of each feature channel for a classifier, (C,) in 0…1.

    It is the sum of the absolute weights that read the channel, relative to the largest one.
    """
    first = next(m for m in classifier.modules() if isinstance(m, nn.Conv2d))
    # The classifier of DeepLab sums several convolutions of the same features.
    readers = [
        m
        for m in classifier.modules()
        if isinstance(m, nn.Conv2d) and m.weight.shape == first.weight.shape
    ]
    sums = torch.stack([m.weight.abs().sum((0, 2, 3)) for m in readers]).sum(0)
    return sums / sums.max().clamp(min=1e-12)


def weighted_divergence(mean: Tensor, log_variance: Tensor, significance: Tensor) -> Tensor:
    """Return the mean KL divergence of N(mean, σ²) from N(0, 1), weighted by 1 − significance.

    `mean` and `log_variance` are (B, C, h, w), `significance` (C,). The result is a scalar in nats
    per channel and place.
    """
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    weights = (1 - significance).to(mean.dtype)[:, None, None]
    return (divergence * weights).mean()
