"""The methods of the adversarial stage: what the discriminator sees, and what its answers are held against.

| method | D sees | D tells apart | from |
|---|---|---|---|
| fada | features | K classes a domain, softened probabilities | Wang et al., ECCV 2020 |
| fada-hard | features | K classes a domain, one-hot | the same |
| feature | features | the two domains | the same paper's "traditional" baseline |
| adaptsegnet | softmax of the logits | the two domains | Tsai et al., CVPR 2018, single level |
| advent | weighted self-information | the two domains | Vu et al., CVPR 2019, single level |

A two-way discriminator is the case of one class a domain, whose encoding is 1 everywhere, so all
methods share one step and one loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import SizeHW, upsample
from fada_deploy.training.losses import Encode, hard_encodings, soft_encodings
from fada_deploy.training.models.discriminator import OutputDiscriminator, PixelDiscriminator
from fada_deploy.training.models.segmentation import SegmentationModel


@dataclass(frozen=True)
class ForwardOutputs:
    """A batch with the network's features (B, C, h, w) and logits (B, K, h, w) for it."""

    batch: Batch
    features: Tensor
    logits: Tensor

    def detached(self) -> ForwardOutputs:
        """Return the same without gradients."""
        return ForwardOutputs(self.batch, self.features.detach(), self.logits.detach())


@dataclass(frozen=True)
class Method:
    """One way to align two domains.

    `view` is what the discriminator sees of a batch; `encode` makes encodings of class logits, None
    for a two-way discriminator. `temperature` divides the source's logits in the segmentation loss.
    `at_input_size` takes the domain losses at the input's size, else at the discriminator's own.
    """

    make_discriminator: Callable[[], nn.Module]
    view: Callable[[ForwardOutputs], Tensor]
    encode: Encode
    temperature: float
    at_input_size: bool

    def size_hw(self, batch: Batch, answers: Tensor) -> SizeHW:
        """Return the size at which a batch's domain loss is taken."""
        return batch.size_hw if self.at_input_size else (answers.shape[-2], answers.shape[-1])


def make_method(name: str, model: SegmentationModel, stage: AdversarialStage) -> Method:
    """Return a method by name for a network and the stage's settings."""
    num_classes = model.spec.space.num_classes

    def feature_level(classes: int, encode: Encode) -> Method:
        return Method(
            make_discriminator=lambda: PixelDiscriminator(model.channels, classes),
            view=lambda seen: seen.features,
            encode=encode,
            temperature=stage.temperature,
            at_input_size=stage.full_resolution,
        )

    def output_level(view: Callable[[ForwardOutputs], Tensor]) -> Method:
        return Method(
            make_discriminator=lambda: OutputDiscriminator(num_classes),
            view=view,
            encode=None,
            temperature=1.0,
            at_input_size=False,
        )

    soft = partial(soft_encodings, temperature=stage.temperature, clip=stage.clip)
    makers: dict[str, Callable[[], Method]] = {
        "fada": lambda: feature_level(num_classes, soft),
        "fada-hard": lambda: feature_level(num_classes, hard_encodings),
        "feature": lambda: feature_level(1, None),
        "adaptsegnet": lambda: output_level(output_map),
        "advent": lambda: output_level(entropy_map),
    }
    return makers[name]()


def output_map(seen: ForwardOutputs) -> Tensor:
    """Return the class probabilities at the input's size, (B, K, H, W); 0 under the car's bonnet."""
    size_hw = seen.batch.size_hw
    probabilities = F.softmax(upsample(seen.logits, size_hw), dim=1)
    ignored = seen.batch.ignore(size_hw)
    return probabilities if ignored is None else probabilities * ~ignored[:, None]


def entropy_map(seen: ForwardOutputs) -> Tensor:
    """Return the weighted self-information −p log p / log K of every class, (B, K, H, W) (ADVENT, eq. 6)."""
    probabilities = output_map(seen)
    # x log x goes to 0 with x, but its gradient does not: the smallest float keeps it finite.
    logarithm = torch.log(probabilities.clamp(min=1e-30))
    return -probabilities * logarithm / math.log(probabilities.shape[1])
