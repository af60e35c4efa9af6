"""The alignment methods of the adversarial stage: what the discriminator reads and separates.

| method | discriminator input | discriminator classes | source |
|---|---|---|---|
| fada | features | 2K: domain and class, soft encodings | Wang et al., ECCV 2020 |
| fada-hard | features | 2K: domain and class, one-hot encodings | Wang et al., ECCV 2020 |
| feature | features | 2: domain | Wang et al., ECCV 2020 (baseline) |
| adaptsegnet | softmax of the logits | 2: domain | Tsai et al., CVPR 2018 (single level) |
| advent | weighted self-information | 2: domain | Vu et al., CVPR 2019 (single level) |

A discriminator of two domains is the special case of one class per domain whose encoding is 1
everywhere, so all methods share one training step and one loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.errors import UsageError
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import SizeHW, upsample
from fada_deploy.training.losses import Encode, hard_encodings, soft_encodings
from fada_deploy.training.models.discriminator import OutputDiscriminator, PixelDiscriminator
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.stage_config import AdversarialStage


@dataclass(frozen=True, eq=False)
class ForwardOutputs:
    """A batch with the network's features (B, C, h, w) and logits (B, K, h, w)."""

    batch: Batch
    features: Tensor
    logits: Tensor

    def detached(self) -> ForwardOutputs:
        """Return the same outputs without gradients."""
        return ForwardOutputs(self.batch, self.features.detach(), self.logits.detach())


@dataclass(frozen=True)
class Method:
    """One way to align two domains.

    `discriminator_input` selects what the discriminator reads. `encode` maps class logits to
    encodings; None means a discriminator of two domains. `temperature` divides the source logits
    in the segmentation loss. `full_resolution` computes the domain loss at the size of the batch
    instead of the size of the discriminator's output.
    """

    make_discriminator: Callable[[], nn.Module]
    discriminator_input: Callable[[ForwardOutputs], Tensor]
    encode: Encode
    temperature: float
    full_resolution: bool

    def loss_size_hw(self, batch: Batch, d_logits: Tensor) -> SizeHW:
        """Return the size (height, width) at which the domain loss of a batch is computed."""
        return batch.size_hw if self.full_resolution else (d_logits.shape[-2], d_logits.shape[-1])


def make_method(name: str, model: SegmentationModel, stage: AdversarialStage) -> Method:
    """Return a method by name for a network and the settings of the stage.

    Raise `UsageError` for an unknown name.
    """
    num_classes = model.spec.space.num_classes

    def feature_level(num_encodings: int, encode: Encode) -> Method:
        return Method(
            make_discriminator=lambda: PixelDiscriminator(model.channels, num_encodings),
            discriminator_input=lambda outputs: outputs.features,
            encode=encode,
            temperature=stage.temperature,
            full_resolution=stage.full_resolution,
        )

    def output_level(discriminator_input: Callable[[ForwardOutputs], Tensor]) -> Method:
        return Method(
            make_discriminator=lambda: OutputDiscriminator(num_classes),
            discriminator_input=discriminator_input,
            encode=None,
            temperature=1.0,
            full_resolution=False,
        )

    soft = partial(soft_encodings, temperature=stage.temperature, clip=stage.clip)
    methods: dict[str, Callable[[], Method]] = {
        "fada": lambda: feature_level(num_classes, soft),
        "fada-hard": lambda: feature_level(num_classes, hard_encodings),
        "feature": lambda: feature_level(1, None),
        "adaptsegnet": lambda: output_level(class_probabilities),
        "advent": lambda: output_level(self_information),
    }
    if name not in methods:
        raise UsageError(f"alignment method must be one of {', '.join(methods)}, got {name!r}")
    return methods[name]()


def class_probabilities(outputs: ForwardOutputs) -> Tensor:
    """Return the class probabilities at the size of the batch, (B, K, H, W).

    They are 0 on the car's own body, where there is an ego mask.
    """
    size_hw = outputs.batch.size_hw
    probabilities = F.softmax(upsample(outputs.logits, size_hw), dim=1)
    ignore_mask = outputs.batch.ignore_mask(size_hw)
    return probabilities if ignore_mask is None else probabilities * ~ignore_mask[:, None]


def self_information(outputs: ForwardOutputs) -> Tensor:
    """Return the weighted self-information −p log p / log K, (B, K, H, W) (ADVENT, eq. 6)."""
    probabilities = class_probabilities(outputs)
    # p log p tends to 0 with p, but its gradient does not; the lower bound keeps it finite.
    log_p = torch.log(probabilities.clamp(min=1e-30))
    return -probabilities * log_p / math.log(probabilities.shape[1])
