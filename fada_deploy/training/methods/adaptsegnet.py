"""AdaptSegNet: a discriminator on the class probabilities (Tsai et al., CVPR 2018).

`adaptsegnet` reads the output of the network alone, `adaptsegnet-multi` also that of an auxiliary
classifier on intermediate features (eq. 5; weights 0.1 and 0.2 relative to the main output).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import full_precision, upsample
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.fada import DomainAlignment
from fada_deploy.training.methods.multi_level import MultiLevelAlignment
from fada_deploy.training.models.discriminator import OutputDiscriminator

# Maps logits (B, K, h, w) and their batch to what the discriminator reads, (B, K, H, W).
OutputMaps = Callable[[Tensor, Batch], Tensor]


def adaptsegnet(context: MethodContext) -> DomainAlignment:
    """Return AdaptSegNet with a single level."""
    return single_level(context, class_probabilities)


def adaptsegnet_multi(context: MethodContext) -> MultiLevelAlignment:
    """Return AdaptSegNet with two levels."""
    return MultiLevelAlignment.create(context, class_probabilities)


def single_level(context: MethodContext, maps: OutputMaps) -> DomainAlignment:
    """Return the alignment of maps of the network's output."""
    return DomainAlignment(
        discriminator=OutputDiscriminator(context.num_classes),
        discriminator_input=lambda outputs: maps(outputs.logits, outputs.batch),
        encode=None,
        temperature=1.0,
        full_resolution=False,
    )


def class_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Return the class probabilities at the size of the batch, (B, K, H, W).

    They are 0 on the car's own body, where there is an ego mask.
    """
    size_hw = batch.size_hw
    probabilities = F.softmax(upsample(full_precision(logits), size_hw), dim=1)
    ignore_mask = batch.ignore_mask(size_hw)
    return probabilities if ignore_mask is None else probabilities * ~ignore_mask[:, None]
