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

from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.methods.base import Losses, MethodContext, Step, fixed
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
        src_confusion = self._both_labels(src_d, step.src, step)
        (seg_loss + weight * src_confusion).backward()

        tgt = step.forward(step.tgt)
        with fixed(self.discriminator), step.autocast():
            tgt_d = self.discriminator(tgt.features)
        tgt_confusion = self._both_labels(tgt_d, step.tgt, step)
        ego_mask = step.tgt.ignore_mask((tgt.logits.shape[-2], tgt.logits.shape[-1]))
        size_loss = class_size_loss(tgt.logits, self.heads.sizes, ego_mask) / step.num_parts
        (weight * tgt_confusion + CLASS_SIZE_WEIGHT * size_loss).backward()

        return {
            "segmentation": seg_loss.detach(),
            "adversarial": 0.5 * (src_confusion + tgt_confusion).detach(),
            "class_size": size_loss.detach(),
            **step.train_discriminator(self.discriminator, src.features, tgt.features),
        }

    def _both_labels(self, d_logits: Tensor, batch: Batch, step: Step) -> Tensor:
        """Return ½(L_D + L_Dinv) of one domain."""
        as_source = step.domain_loss(d_logits, batch, target=False)
        return 0.5 * (as_source + step.domain_loss(d_logits, batch, target=True))


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


def class_size_loss(logits: Tensor, sizes: Tensor, ignore_mask: Tensor | None = None) -> Tensor:
    """Return the penalty of unusual class sizes, a scalar: a squared hinge, summed over classes.

    `logits` (B, K, h, w) are the target's, `sizes` (3, K) those of `class_sizes`. Pixels where
    `ignore_mask` (B, h, w) bool is true do not count. A class that is predicted on more than
    PRESENCE times its lowest size should have a mean probability between the mean and the
    highest size.
    """
    probabilities = F.softmax(full_precision(logits), dim=1)
    low, mean, high = sizes.to(probabilities.dtype)
    counted = torch.ones_like(probabilities[:, :1])
    if ignore_mask is not None:
        counted = counted * ~ignore_mask[:, None]
    num_pixels = counted.sum((2, 3)).clamp(min=1)
    predicted = F.one_hot(probabilities.argmax(1), logits.shape[1]).permute(0, 3, 1, 2)
    present = (predicted * counted).sum((2, 3)) / num_pixels > PRESENCE * low
    size = (probabilities * counted).sum((2, 3)) / num_pixels
    penalty = F.relu(mean - size) ** 2 + F.relu(size - high) ** 2
    total: Tensor = (penalty * present).sum(1).mean()
    return total
