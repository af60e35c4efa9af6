"""Alignment of two outputs of the network, each with a discriminator of its own.

The second output is that of an auxiliary classifier on intermediate features (AdaptSegNet, Tsai et
al., CVPR 2018, eq. 5; ADVENT, Vu et al., CVPR 2019). It is not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fada_deploy.common.errors import UsageError
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.base import (
    ForwardOutputs,
    Losses,
    MethodContext,
    Step,
    fixed,
)
from fada_deploy.training.models.discriminator import OutputDiscriminator
from fada_deploy.training.models.segmentation import (
    BACKBONES,
    SegmentationModel,
    find_backbone,
)

# Weight of the auxiliary output relative to the main one, in both authors' code: 0.1 in the
# segmentation loss, 0.0002 to 0.001 in the adversarial loss.
SEGMENTATION_WEIGHT, ADVERSARIAL_WEIGHT = 0.1, 0.2


@dataclass(frozen=True, eq=False)
class MultiLevelAlignment:
    """Alignment of the main and the auxiliary output.

    `maps(logits, batch)` returns what a discriminator reads, (B, K, H, W).
    """

    maps: Callable[[Tensor, Batch], Tensor]
    heads: nn.Module
    discriminator: nn.Module

    @classmethod
    def create(
        cls, context: MethodContext, maps: Callable[[Tensor, Batch], Tensor]
    ) -> MultiLevelAlignment:
        """Return the method for a backbone that `require_auxiliary` accepts."""
        channels = auxiliary_channels(context.model)
        return cls(
            maps=maps,
            heads=context.new_classifier(channels),
            discriminator=nn.ModuleList(OutputDiscriminator(context.num_classes) for _ in range(2)),
        )

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F, G and the auxiliary classifier, then those of both D."""
        weight = step.settings.adversarial_weight
        main_d, auxiliary_d = self.discriminator.children()
        src, src_auxiliary = self._forward(step, step.src)
        main_loss = step.segmentation_loss(src.logits)
        auxiliary_loss = step.segmentation_loss(src_auxiliary)
        (main_loss + SEGMENTATION_WEIGHT * auxiliary_loss).backward()

        tgt, tgt_auxiliary = self._forward(step, step.tgt)
        with fixed(self.discriminator), step.autocast():
            main = main_d(self.maps(tgt.logits, step.tgt))
            auxiliary = auxiliary_d(self.maps(tgt_auxiliary, step.tgt))
        main_adversarial = step.domain_loss(main, step.tgt, target=False)
        auxiliary_adversarial = step.domain_loss(auxiliary, step.tgt, target=False)
        (weight * (main_adversarial + ADVERSARIAL_WEIGHT * auxiliary_adversarial)).backward()

        losses: Losses = {
            "segmentation": main_loss.detach(),
            "segmentation_auxiliary": auxiliary_loss.detach(),
            "adversarial": main_adversarial.detach(),
            "adversarial_auxiliary": auxiliary_adversarial.detach(),
        }
        for name, d, src_logits, tgt_logits in (
            ("discriminator", main_d, src.logits, tgt.logits),
            ("discriminator_auxiliary", auxiliary_d, src_auxiliary, tgt_auxiliary),
        ):
            src_maps = self.maps(src_logits.detach(), step.src)
            tgt_maps = self.maps(tgt_logits.detach(), step.tgt)
            losses |= step.train_discriminator(d, src_maps, tgt_maps, name)
        return losses

    def _forward(self, step: Step, batch: Batch) -> tuple[ForwardOutputs, Tensor]:
        """Return the outputs of the network, and the auxiliary logits (B, K, h, w)."""
        with captured_features(step.model) as captured:
            outputs = step.forward(batch)
        (features,) = captured
        with step.autocast():
            return outputs, self.heads(features)


@contextmanager
def captured_features(model: SegmentationModel) -> Iterator[list[Tensor]]:
    """Collect the intermediate features of each pass of a network, (B, C, h, w)."""
    captured: list[Tensor] = []
    backbone = model.feature_extractor["backbone"]
    module = backbone.get_submodule(find_backbone(model.spec.backbone).auxiliary)
    hook = module.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
    try:
        yield captured
    finally:
        hook.remove()


def require_auxiliary(backbone: str) -> None:
    """Raise `UsageError` if a backbone has no intermediate features for a second classifier."""
    if not find_backbone(backbone).auxiliary:
        able = ", ".join(name for name, each in BACKBONES.items() if each.auxiliary)
        raise UsageError(
            f"{backbone} has no auxiliary output for methods with two levels; use the method with "
            f"a single level, or one of {able}"
        )


@torch.no_grad()
def auxiliary_channels(model: SegmentationModel) -> int:
    """Return the number of channels of the intermediate features."""
    was_training, side = model.training, 8 * find_backbone(model.spec.backbone).multiple
    device = next(model.parameters()).device
    with captured_features(model.eval()) as captured:
        model.features(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device))
    model.train(was_training)
    return captured[0].shape[1]
