"""The gradients of one adversarial update: F and G against a discriminator D, and D itself.

Wang et al., ECCV 2020, eq. 3-9. The method decides what the discriminator reads and separates
(`training.methods.alignment`). The adversarial stage trains with these gradients alone, the
self-training stage adds them to its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.losses import (
    DomainLoss,
    domain_loss,
    segmentation_loss,
    source_fraction,
)
from fada_deploy.training.methods.alignment import ForwardOutputs, Method
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import make_discriminator_optimizer, preserve_running_statistics
from fada_deploy.training.stage_config import AdversarialStage


@dataclass(frozen=True, eq=False)
class Aligner:
    """A discriminator with its optimizer, and the method and settings that it is trained with."""

    method: Method
    discriminator: nn.Module
    optimizer: Optimizer
    settings: AdversarialStage

    @classmethod
    def create(
        cls, method: Method, discriminator: nn.Module, settings: AdversarialStage
    ) -> Aligner:
        """Return an aligner with a new optimizer."""
        optimizer = make_discriminator_optimizer(discriminator, settings)
        return cls(method, discriminator, optimizer, settings)

    def zero_grad(self) -> None:
        """Reset the gradients of D."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Sum the gradients of D over all processes and update it."""
        distributed.all_reduce_gradients(self.discriminator.parameters())
        self.optimizer.step()

    def accumulate_gradients(
        self,
        model: SegmentationModel,
        src: Batch,
        tgt: Batch,
        *,
        amp: bool,
        num_labeled: Tensor,
        num_parts: int,
    ) -> dict[str, Tensor]:
        """Add the gradients of one part of a global batch to those of F, G and D.

        `num_labeled` is the `count_labeled` of the global source batch, which consists of
        `num_parts` equal parts. Return the unweighted losses of the part and
        `discriminator_accuracy`, the fraction of pixels that D assigns to the right domain: 0.5 is
        chance, 1 is saturation. All values are scalars, detached from the graph.
        """
        settings, method, discriminator = self.settings, self.method, self.discriminator
        autocast = torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp)

        def forward(batch: Batch, *, preserve_statistics: bool) -> ForwardOutputs:
            with autocast, preserve_running_statistics(model, preserve_statistics):
                features = model.features(batch.frames_bhwc)
                return ForwardOutputs(batch, features, model.classifier(features))

        def discriminator_loss(outputs: ForwardOutputs, d_logits: Tensor) -> DomainLoss:
            size_hw = method.loss_size_hw(outputs.batch, d_logits)
            ignore_mask = outputs.batch.ignore_mask(size_hw)
            return domain_loss(
                d_logits, outputs.logits, method.encode, size_hw, ignore_mask, num_parts=num_parts
            )

        # F and G: segment the labeled source.
        src_outputs = forward(src, preserve_statistics=settings.bn_statistics == "target")
        seg_loss = segmentation_loss(
            src_outputs.logits, src.labels,
            temperature=method.temperature, weights=src.pixel_weights, num_labeled=num_labeled,
        )  # fmt: skip
        seg_loss.backward()

        # F and G: make D assign the target to the source. D is updated after F and G, so its output
        # for the target is reused below.
        tgt_outputs = forward(tgt, preserve_statistics=settings.bn_statistics == "source")
        tgt_input = method.discriminator_input(tgt_outputs)
        tgt_leaf = tgt_input.detach().requires_grad_()
        with autocast:
            tgt_d_logits = discriminator(tgt_leaf)
        tgt_loss = discriminator_loss(tgt_outputs, tgt_d_logits)
        adversarial_grad = settings.adversarial_weight * tgt_loss.grad_as_source
        input_grads = torch.autograd.grad(
            tgt_d_logits, tgt_leaf, adversarial_grad, retain_graph=True
        )
        tgt_input.backward(*input_grads)

        # D: separate source and target, given the outputs of F and G before their update.
        with autocast:
            src_d_logits = discriminator(method.discriminator_input(src_outputs.detached()))
        src_loss = discriminator_loss(src_outputs, src_d_logits)
        d_weights = list(discriminator.parameters())
        torch.autograd.backward(src_d_logits, 0.5 * src_loss.grad_as_source, inputs=d_weights)
        torch.autograd.backward(tgt_d_logits, 0.5 * tgt_loss.grad_as_target, inputs=d_weights)

        src_fraction = source_fraction(src_d_logits, src.ignore_mask)
        tgt_fraction = source_fraction(tgt_d_logits, tgt.ignore_mask)
        return {
            "segmentation": seg_loss.detach(),
            "adversarial": tgt_loss.loss_as_source,
            "discriminator_source": 0.5 * src_loss.loss_as_source,
            "discriminator_target": 0.5 * tgt_loss.loss_as_target,
            "discriminator_accuracy": 0.5 * (src_fraction + 1 - tgt_fraction) / num_parts,
        }
