"""FCNs in the Wild: a domain adversary on features, and class sizes (Hoffman et al., 2016).

F is trained against both domain labels, ½(L_D + L_Dinv), on source and target (eq. 3-4). The
constrained multiple-instance loss asks each class that is predicted in a target frame to have a
size that is usual in the source (eq. 5). There is no code of the authors. Our reading of that loss
is a squared hinge on the class's fraction of the frame outside the usual range, instead of an inner
optimization; its weight is ours too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.methods.base import Losses, MethodContext, Step, binary_loss, fixed
from fada_deploy.training.models.discriminator import PixelDiscriminator

# A class counts as present if its predicted fraction is above PRESENCE times its lower size.
PRESENCE = 0.1
# Source frames with the smallest and the largest fraction of a class.
LOWEST, HIGHEST = 0.1, 0.9
CLASS_SIZE_WEIGHT = 1.0


def fcn_wild(context: MethodContext) -> FeatureAndSizeAlignment:
    """Return the method of "FCNs in the Wild"."""
    return FeatureAndSizeAlignment(
        discriminator=PixelDiscriminator(context.model.channels, 1),
        heads=ClassSizes(class_sizes(context.class_pixels())),
    )


class ClassSizes(nn.Module):
    """The sizes of classes in the source as a buffer (3, K), so that they follow the device."""

    def __init__(self, sizes: NDArray[np.float64]) -> None:
        super().__init__()
        self.sizes: Tensor
        self.register_buffer("sizes", torch.from_numpy(sizes).float())


@dataclass(frozen=True, eq=False)
class FeatureAndSizeAlignment:
    """Alignment of features by a binary discriminator, and of class sizes."""

    discriminator: nn.Module
    heads: ClassSizes

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and G, then those of D."""
        weight = 0.5 * step.settings.adversarial_weight
        src = step.forward(step.src)
        seg_loss = step.segmentation_loss(src.logits)
        with fixed(self.discriminator), step.autocast():
            src_d = self.discriminator(src.features)
        src_confusion = self._both_labels(src_d, step, source=True)
        (seg_loss + weight * src_confusion).backward()

        tgt = step.forward(step.tgt)
        with fixed(self.discriminator), step.autocast():
            tgt_d = self.discriminator(tgt.features)
        tgt_confusion = self._both_labels(tgt_d, step, source=False)
        size_loss = class_size_loss(tgt.logits, self.heads.sizes) / step.num_parts
        (weight * tgt_confusion + CLASS_SIZE_WEIGHT * size_loss).backward()

        with step.autocast():
            src_d = self.discriminator(src.features.detach())
            tgt_d = self.discriminator(tgt.features.detach())
        src_loss = 0.5 * self._loss(src_d, step, source=True, target=False)
        tgt_loss = 0.5 * self._loss(tgt_d, step, source=False, target=True)
        (src_loss + tgt_loss).backward()
        return {
            "segmentation": seg_loss.detach(),
            "adversarial": 0.5 * (src_confusion + tgt_confusion).detach(),
            "class_size": size_loss.detach(),
            "discriminator_source": src_loss.detach(),
            "discriminator_target": tgt_loss.detach(),
            "discriminator_accuracy": step.domain_accuracy(src_d, tgt_d),
        }

    def _loss(self, d_logits: Tensor, step: Step, *, source: bool, target: bool) -> Tensor:
        batch = step.src if source else step.tgt
        mask = batch.ignore_mask((d_logits.shape[-2], d_logits.shape[-1]))
        return binary_loss(d_logits, target=target, num_parts=step.num_parts, ignore_mask=mask)

    def _both_labels(self, d_logits: Tensor, step: Step, *, source: bool) -> Tensor:
        """Return ½(L_D + L_Dinv) of one domain."""
        losses = [
            self._loss(d_logits, step, source=source, target=target) for target in (False, True)
        ]
        return 0.5 * (losses[0] + losses[1])


def class_sizes(class_pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's size in the source: lowest tenth, mean and highest tenth, (3, K).

    `class_pixels` (N, K) are the pixels of each class in each file. A size is a fraction of the
    labeled pixels of a file, over the files that show the class; 0, 0, 1 for a class in no file.
    """
    totals = class_pixels.sum(1, keepdims=True)
    fractions = class_pixels / np.maximum(totals, 1)
    sizes = np.tile([[0.0], [0.0], [1.0]], class_pixels.shape[1])
    for k in range(class_pixels.shape[1]):
        shown = fractions[fractions[:, k] > 0, k]
        if shown.size:
            sizes[:, k] = np.quantile(shown, LOWEST), shown.mean(), np.quantile(shown, HIGHEST)
    return sizes


def class_size_loss(logits: Tensor, sizes: Tensor) -> Tensor:
    """Return the penalty of unusual class sizes, a scalar: a squared hinge, summed over classes.

    `logits` (B, K, h, w) are the target's, `sizes` (3, K) those of `class_sizes`. A class that is
    predicted on more than PRESENCE times its lowest size should have a mean probability between the
    mean and the highest size.
    """
    probabilities = F.softmax(full_precision(logits), dim=1)
    predicted = probabilities.argmax(1)
    low, mean, high = sizes.to(probabilities.dtype)
    fractions = F.one_hot(predicted, logits.shape[1]).to(probabilities.dtype).mean((1, 2))
    present = fractions > PRESENCE * low
    size = probabilities.mean((2, 3))
    penalty = F.relu(mean - size) ** 2 + F.relu(size - high) ** 2
    total: Tensor = (penalty * present).sum(1).mean()
    return total
