"""FADA: a discriminator of domains and classes on the features (Wang et al., ECCV 2020, eq. 3-9).

| method | discriminator classes |
|---|---|
| fada | 2K: domain and class, soft encodings |
| fada-hard | 2K: domain and class, one-hot encodings |
| feature | 2: domain (the baseline of the paper) |

A discriminator of two domains is the special case of one class per domain whose encoding is 1
everywhere, so `DomainAlignment` also serves the output-level methods with a single level
(`training.methods.adaptsegnet`, `training.methods.advent`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fada_deploy.training.interpolation import SizeHW
from fada_deploy.training.losses import (
    DomainLoss,
    Encode,
    domain_loss,
    hard_encodings,
    soft_encodings,
)
from fada_deploy.training.methods.base import ForwardOutputs, Losses, MethodContext, Step
from fada_deploy.training.models.discriminator import PixelDiscriminator


def fada(context: MethodContext) -> DomainAlignment:
    """Return FADA with soft encodings (eq. 9)."""
    stage = context.settings
    encode = partial(soft_encodings, temperature=stage.temperature, clip=stage.clip)
    return _feature_level(context, context.num_classes, encode)


def fada_hard(context: MethodContext) -> DomainAlignment:
    """Return FADA with one-hot encodings."""
    return _feature_level(context, context.num_classes, hard_encodings)


def feature_only(context: MethodContext) -> DomainAlignment:
    """Return the baseline with two domains and no classes."""
    return _feature_level(context, 1, None)


def _feature_level(context: MethodContext, num_encodings: int, encode: Encode) -> DomainAlignment:
    return DomainAlignment(
        discriminator=PixelDiscriminator(context.model.channels, num_encodings),
        discriminator_input=lambda outputs: outputs.features,
        encode=encode,
        temperature=context.settings.temperature,
        full_resolution=context.settings.full_resolution,
    )


@dataclass(frozen=True, eq=False)
class DomainAlignment:
    """Alignment by one discriminator whose channels are domains and classes.

    Attributes:
        discriminator: Returns 2K channels, or two if it only separates the domains.
        discriminator_input: Selects what it reads.
        encode: Maps class logits to encodings; None for a discriminator of two domains.
        temperature: Divides the source logits in the segmentation loss.
        full_resolution: Whether the domain loss is computed at the size of the batch instead of
            the size of the discriminator's output.
        heads: None.
    """

    discriminator: nn.Module
    discriminator_input: Callable[[ForwardOutputs], Tensor]
    encode: Encode
    temperature: float
    full_resolution: bool
    heads: nn.Module = field(default_factory=nn.Module)

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and G, then those of D, in the order of the released code."""
        # F and G: segment the labeled source.
        src_outputs = step.forward(step.src)
        seg_loss = step.segmentation_loss(src_outputs.logits, temperature=self.temperature)
        seg_loss.backward()

        # F: make D assign the target to the source. D is updated after F and G, so its output
        # for the target is reused below.
        tgt_outputs = step.forward(step.tgt)
        tgt_input = self.discriminator_input(tgt_outputs)
        tgt_leaf = tgt_input.detach().requires_grad_()
        with step.autocast():
            tgt_d_logits = self.discriminator(tgt_leaf)
        tgt_loss = self._loss(step, tgt_outputs, tgt_d_logits)
        adversarial_grad = step.settings.adversarial_weight * tgt_loss.grad_as_source
        input_grads = torch.autograd.grad(
            tgt_d_logits, tgt_leaf, adversarial_grad, retain_graph=True
        )
        tgt_input.backward(*input_grads)

        # D: separate source and target, given the outputs of F and G before their update.
        with step.autocast():
            src_d_logits = self.discriminator(self.discriminator_input(src_outputs.detached()))
        src_loss = self._loss(step, src_outputs, src_d_logits)
        d_weights = list(self.discriminator.parameters())
        torch.autograd.backward(src_d_logits, 0.5 * src_loss.grad_as_source, inputs=d_weights)
        torch.autograd.backward(tgt_d_logits, 0.5 * tgt_loss.grad_as_target, inputs=d_weights)
        return {
            "segmentation": seg_loss.detach(),
            "adversarial": tgt_loss.loss_as_source,
            "discriminator_source": 0.5 * src_loss.loss_as_source,
            "discriminator_target": 0.5 * tgt_loss.loss_as_target,
            "discriminator_accuracy": step.domain_accuracy(src_d_logits, tgt_d_logits),
        }

    def _loss(self, step: Step, outputs: ForwardOutputs, d_logits: Tensor) -> DomainLoss:
        size_hw: SizeHW = (d_logits.shape[-2], d_logits.shape[-1])
        if self.full_resolution:
            size_hw = outputs.batch.size_hw
        return domain_loss(
            d_logits, outputs.logits, self.encode, size_hw, outputs.batch.ignore_mask(size_hw),
            num_parts=step.num_parts,
        )  # fmt: skip
