"""Optimizers, their schedule, averaged weights and whose pass moves the batch statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from fada_deploy.training.config import AdversarialStage, Stage
from fada_deploy.training.distributed import add_gradients
from fada_deploy.training.models.segmentation import SegmentationModel


def optimizer_step(optimizer: Optimizer, stage: Stage) -> None:
    """Step with all processes' gradients, scaled down together where their norm exceeds `max_norm`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    add_gradients(parameters)
    if stage.max_norm:
        nn.utils.clip_grad_norm_(parameters, stage.max_norm)
    optimizer.step()


def poly_factor(iteration: int, *, max_iterations: int, power: float, warmup: int = 0) -> float:
    """Return (1 − i/max)^power, times (i + 1)/warmup during a warm-up."""
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return float(rise * (1 - iteration / max_iterations) ** power)


def make_optimizer(model: SegmentationModel, stage: Stage) -> Optimizer:
    """Return the optimizer of F (learning rate `lr`) and G (`lr` × factor)."""
    groups = [
        {"params": list(model.feature_extractor.parameters()), "lr": stage.lr},
        {
            "params": list(model.classifier.parameters()),
            "lr": stage.lr * stage.classifier_lr_factor,
        },
    ]
    # One fused kernel an update: a third of the time of the loop over tensors on two CPU cores.
    if stage.optimizer == "adamw":
        return _rated(AdamW(groups, weight_decay=stage.weight_decay, fused=True))
    return _rated(SGD(groups, momentum=stage.momentum, weight_decay=stage.weight_decay, fused=True))


def make_discriminator_optimizer(discriminator: nn.Module, stage: AdversarialStage) -> Optimizer:
    """Return the discriminator's Adam."""
    rate, betas = stage.discriminator_lr, stage.discriminator_betas
    return _rated(Adam(discriminator.parameters(), lr=rate, betas=betas, fused=True))


def set_learning_rate(optimizer: Optimizer, iteration: int, stage: Stage) -> float:
    """Move every group to its place on the poly schedule; return the first group's rate."""
    factor = poly_factor(
        iteration, max_iterations=stage.max_iterations, power=stage.power, warmup=stage.warmup
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def _rated(optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


class AveragedWeights:
    """Exponential moving average of a model's weights: decay min(1 − 1/(t + 1), α), t counting updates.

    Integer tensors and the running statistics of normalization layers are copied, not averaged.
    With α = 0 it is the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._parameters = {name for name, _ in model.named_parameters()}
        kept = self._live() if decay else {}
        self.average: dict[str, Tensor] = {name: t.detach().clone() for name, t in kept.items()}

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the model's weights after an iteration's step."""
        if not self._decay:
            return
        decay = min(1 - 1 / (iteration + 1), self._decay)
        for name, live in self._live().items():
            if name in self._parameters:
                self.average[name].lerp_(live.detach(), 1 - decay)
            else:
                self.average[name].copy_(live)

    def weights(self) -> dict[str, Tensor]:
        """Return the state to keep: the average, or the live weights when averaging is off."""
        return self.average if self._decay else self._live()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average, to be saved."""
        return self.average

    def load_state_dict(self, average: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    def _live(self) -> dict[str, Tensor]:
        return dict(self._model.state_dict())


@contextmanager
def hold_batch_statistics(model: nn.Module, hold: bool) -> Iterator[None]:
    """Let a pass use its own batch statistics without moving the running ones, when `hold`."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if hold else []
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


def freeze_statistics(model: nn.Module) -> None:
    """Let batch normalization keep and use its running statistics, as the published frozen layers do."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
