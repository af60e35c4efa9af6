"""What every alignment method has in common: one adversarial update, and its building blocks.

A method is one module of this folder. It decides what its discriminator reads, and computes the
losses of the segmentation network (feature extractor F and classifier G) and of the discriminator
D. The stages run all methods in the same way (`training.methods.aligner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.losses import segmentation_loss, source_fraction
from fada_deploy.training.models.blocks import NORMS
from fada_deploy.training.models.segmentation import SegmentationModel, find_backbone
from fada_deploy.training.optim import preserve_running_statistics
from fada_deploy.training.stage_config import AdversarialStage

Losses = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ForwardOutputs:
    """A batch with the network's features (B, C, h, w) and logits (B, K, h, w)."""

    batch: Batch
    features: Tensor
    logits: Tensor

    def detached(self) -> ForwardOutputs:
        """Return the same outputs without gradients."""
        return ForwardOutputs(self.batch, self.features.detach(), self.logits.detach())


@dataclass(frozen=True, eq=False)
class Step:
    """One part of a global batch in one adversarial update.

    Attributes:
        model: The segmentation network.
        src: Labeled source batch.
        tgt: Target batch; its labels are not read.
        settings: Settings of the adversarial stage.
        amp: Whether networks run in bfloat16.
        num_labeled: `count_labeled` of the global source batch.
        num_parts: Number of equal parts of the global batch, by whose means losses are divided.
        iteration: Number of this iteration, from 0.
        progress: Fraction of the iterations that are done, 0…1.
    """

    model: SegmentationModel
    src: Batch
    tgt: Batch
    settings: AdversarialStage
    amp: bool
    num_labeled: Tensor
    num_parts: int
    iteration: int
    progress: float

    def generator(self) -> torch.Generator:
        """Return random numbers that depend on the iteration and the source frames only."""
        generator = torch.Generator(self.src.frames_bhwc.device)
        entropy = np.random.SeedSequence([self.iteration, *self.src.indices])
        return generator.manual_seed(int(entropy.generate_state(1)[0]))

    def autocast(self) -> torch.autocast:
        """Return the context in which networks run."""
        device = self.src.frames_bhwc.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.amp)

    def forward(self, batch: Batch) -> ForwardOutputs:
        """Run the network on `src` or `tgt`.

        The pass that `bn_statistics` does not name leaves the running statistics unchanged.
        """
        features = self.features(batch)
        return ForwardOutputs(batch, features, self.classify(features, batch))

    def features(self, batch: Batch) -> Tensor:
        """Return the features of `src` or `tgt`, (B, C, h, w), as `forward` does."""
        with self.autocast(), self._statistics(batch):
            return self.model.features(batch.frames_bhwc)

    def classify(self, features: Tensor, batch: Batch) -> Tensor:
        """Return the logits (B, K, h, w) of features of `src` or `tgt`, as `forward` does."""
        with self.autocast(), self._statistics(batch):
            logits: Tensor = self.model.classifier(features)
        return logits

    @torch.no_grad()
    def update_classifier_statistics(self, features: Tensor, batch: Batch) -> None:
        """Update the running statistics of the classifier with features that no loss classifies."""
        if self.settings.bn_statistics in ("target", "both"):
            self.classify(features, batch)

    def _statistics(self, batch: Batch) -> AbstractContextManager[None]:
        other = "target" if batch is self.src else "source"
        return preserve_running_statistics(self.model, self.settings.bn_statistics == other)

    def segmentation_loss(self, logits: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return the cross entropy of source logits (B, K, h, w) and labels, a scalar."""
        return segmentation_loss(
            logits, self.src.labels,
            temperature=temperature, weights=self.src.pixel_weights, num_labeled=self.num_labeled,
        )  # fmt: skip

    def domain_loss(
        self, d_logits: Tensor, batch: Batch, *, target: bool, weights: Tensor | None = None
    ) -> Tensor:
        """Return the `binary_loss` of D logits (B, 2, h, w) of a batch; its ego mask is left out.

        `target` is the domain label, which F and G exchange to confuse D.
        """
        mask = batch.ignore_mask((d_logits.shape[-2], d_logits.shape[-1]))
        return binary_loss(
            d_logits, target=target, num_parts=self.num_parts, weights=weights, ignore_mask=mask
        )

    def train_discriminator(
        self,
        discriminator: nn.Module,
        src_input: Tensor,
        tgt_input: Tensor,
        name: str = "discriminator",
    ) -> Losses:
        """Add the gradients of a binary discriminator on what it reads of both domains.

        The inputs are detached. Return half of the loss of each domain and the accuracy, by `name`.
        """
        with self.autocast():
            src_d, tgt_d = discriminator(src_input.detach()), discriminator(tgt_input.detach())
        src_loss = 0.5 * self.domain_loss(src_d, self.src, target=False)
        tgt_loss = 0.5 * self.domain_loss(tgt_d, self.tgt, target=True)
        (src_loss + tgt_loss).backward()
        return {
            f"{name}_source": src_loss.detach(),
            f"{name}_target": tgt_loss.detach(),
            f"{name}_accuracy": self.domain_accuracy(src_d, tgt_d),
        }

    def domain_accuracy(self, src_d_logits: Tensor, tgt_d_logits: Tensor) -> Tensor:
        """Return the fraction of pixels that D assigns to the right domain, a scalar in 0…1.

        0.5 is chance, 1 is saturation.
        """
        src = source_fraction(src_d_logits, self.src.ignore_mask)
        tgt = source_fraction(tgt_d_logits, self.tgt.ignore_mask)
        return 0.5 * (src + 1 - tgt) / self.num_parts


class AlignmentMethod(Protocol):
    """One way to align two domains.

    Attributes:
        discriminator: Networks that the discriminator's optimizer updates; may have no parameters.
        heads: Networks that are trained together with the classifier, and not exported.
    """

    @property
    def discriminator(self) -> nn.Module: ...

    @property
    def heads(self) -> nn.Module: ...

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of a part to those of F, G, the heads and D; return its losses.

        The losses are unweighted scalars, detached from the graph.
        """
        ...


@dataclass(frozen=True, eq=False)
class MethodContext:
    """What a method can be built from.

    Attributes:
        model: The network that will be trained.
        settings: Settings of the adversarial stage.
        class_pixels: Returns the labeled pixels of each class in each source file, (N, K) int64.
        source_batches: Returns the first source batches of the stage.
    """

    model: SegmentationModel
    settings: AdversarialStage
    class_pixels: Callable[[], NDArray[np.int64]]
    source_batches: Callable[[], Iterator[Batch]]

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return self.model.spec.space.num_classes

    def new_classifier(self, channels: int) -> nn.Module:
        """Return a new classifier of the network's kind for features with `channels` channels."""
        spec = self.model.spec
        architecture = find_backbone(spec.backbone)
        return architecture.classifier(channels, spec.space.num_classes, NORMS[spec.norm])


def binary_loss(
    d_logits: Tensor,
    *,
    target: bool,
    num_parts: int,
    weights: Tensor | None = None,
    ignore_mask: Tensor | None = None,
) -> Tensor:
    """Return the mean over pixels of −log of the probability of a domain label, a scalar.

    `d_logits` (B, 2, h, w) are those of source and target. `weights` (B, h, w) multiply the terms;
    pixels where `ignore_mask` (B, h, w) bool is true are left out of the mean.
    """
    loss = -F.log_softmax(full_precision(d_logits), dim=1)[:, int(target)]
    if weights is not None:
        loss = loss * weights
    if ignore_mask is None:
        return loss.mean() / num_parts
    return (loss * ~ignore_mask).sum() / (~ignore_mask).sum().clamp(min=1) / num_parts


def sum_losses(parts: Sequence[Losses]) -> Losses:
    """Return the sum of each loss over the parts of a batch that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([p[name] for p in parts if name in p]).sum() for name in names}


@contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of the parameters of a module; those of its input pass through it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
