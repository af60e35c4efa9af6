"""CyCADA: translated source frames, then a feature adversary (Hoffman et al., ICML 2018).

The frames of the source are translated into the style of the target before all stages
(`training.stages.translation`, `--style cyclegan`). Then a binary discriminator reads the features,
and F is trained against it only while it is right in more than 60 % of the pixels (authors' code).
There this is the accuracy on the same batch, here that of the iteration before, so that all
processes decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fada_deploy.training.distributed import all_reduce_sum
from fada_deploy.training.methods.base import Losses, MethodContext, Step, fixed
from fada_deploy.training.models.discriminator import PixelDiscriminator

# Published setting: the accuracy of D above which F is updated.
ACCURACY = 0.6


def cycada(context: MethodContext) -> GatedFeatureAlignment:
    """Return the feature adversary of CyCADA."""
    return GatedFeatureAlignment(
        discriminator=PixelDiscriminator(context.model.channels, 1), heads=Gate()
    )


class Gate(nn.Module):
    """Whether D was right often enough in the iteration before, as buffers.

    `accuracy` is the sum over the parts of the iteration `iteration` in all processes, of which one
    saves the state; `is_open` says whether F is trained in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accuracy: Tensor
        self.iteration: Tensor
        self.is_open: Tensor
        self.register_buffer("accuracy", torch.zeros(()))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_open", torch.zeros((), dtype=torch.bool))

    def start_iteration(self, iteration: int) -> None:
        """Decide once for each iteration, equally in all processes and for all parts."""
        if int(self.iteration) != iteration:
            self.is_open.copy_(self.accuracy > ACCURACY)
            self.accuracy.zero_()
            self.iteration.fill_(iteration)


@dataclass(frozen=True, eq=False)
class GatedFeatureAlignment:
    """Alignment of features by a binary discriminator, while that is good enough."""

    discriminator: nn.Module
    heads: Gate

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and G, then those of D."""
        self.heads.start_iteration(step.iteration)
        src = step.forward(step.src)
        seg_loss = step.segmentation_loss(src.logits)
        seg_loss.backward()

        tgt_features = step.features(step.tgt)
        step.update_classifier_statistics(tgt_features, step.tgt)
        with fixed(self.discriminator), step.autocast():
            tgt_d = self.discriminator(tgt_features)
        adversarial = step.domain_loss(tgt_d, step.tgt, target=False)
        if self.heads.is_open:
            (step.settings.adversarial_weight * adversarial).backward()

        losses = step.train_discriminator(self.discriminator, src.features, tgt_features)
        self.heads.accuracy += all_reduce_sum(losses["discriminator_accuracy"])
        return {"segmentation": seg_loss.detach(), "adversarial": adversarial.detach(), **losses}
