"""Optimizers, learning-rate schedule, weight averaging and batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from fada_deploy.training.distributed import all_reduce_gradients
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.stage_config import AdversarialStage, Stage


def make_optimizer(
    model: SegmentationModel, stage: Stage, heads: nn.Module | None = None
) -> Optimizer:
    """Return the optimizer of F (learning rate `lr`) and G (`lr` × `classifier_lr_factor`).

    `heads` are further networks that are trained as G is.
    """
    groups = [
        {"params": list(model.feature_extractor.parameters()), "lr": stage.lr},
        {
            "params": list(model.classifier.parameters()),
            "lr": stage.lr * stage.classifier_lr_factor,
        },
    ]
    if heads is not None and (parameters := list(heads.parameters())):
        groups.append({**groups[1], "params": parameters})
    # The fused update takes a third of the time of the per-tensor loop on two CPU cores.
    if stage.optimizer == "adamw":
        optimizer: Optimizer = AdamW(groups, weight_decay=stage.weight_decay, fused=True)
    else:
        optimizer = SGD(
            groups, momentum=stage.momentum, weight_decay=stage.weight_decay, fused=True
        )
    return with_base_lr(optimizer)


def make_discriminator_optimizer(discriminator: nn.Module, stage: AdversarialStage) -> Optimizer:
    """Return the Adam optimizer of the discriminator."""
    lr, betas = stage.discriminator_lr, stage.discriminator_betas
    return with_base_lr(Adam(discriminator.parameters(), lr=lr, betas=betas, fused=True))


def with_base_lr(optimizer: Optimizer) -> Optimizer:
    """Store the initial learning rate of each group, which the schedule scales."""
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def poly_factor(iteration: int, *, max_iterations: int, power: float, warmup: int = 0) -> float:
    """Return (1 − i/max_iterations)^power, multiplied by (i + 1)/warmup during the warm-up."""
    ramp = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return float(ramp * (1 - iteration / max_iterations) ** power)


class Schedule(Protocol):
    """The settings of a learning-rate schedule."""

    @property
    def max_iterations(self) -> int: ...
    @property
    def power(self) -> float: ...
    @property
    def warmup(self) -> int: ...


def set_learning_rate(optimizer: Optimizer, iteration: int, stage: Schedule) -> float:
    """Set the learning rate of every group for an iteration; return that of the first group."""
    factor = poly_factor(
        iteration, max_iterations=stage.max_iterations, power=stage.power, warmup=stage.warmup
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def optimizer_step(optimizer: Optimizer, stage: Stage) -> None:
    """Sum the gradients over all processes, clip their joint norm to `max_norm`, and step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    all_reduce_gradients(parameters)
    if stage.max_norm:
        nn.utils.clip_grad_norm_(parameters, stage.max_norm)
    optimizer.step()


class AveragedWeights:
    """Exponential moving average of a model's weights.

    The decay of update t (from 0) is min(1 − 1/(t + 1), `decay`). Buffers, such as the running
    statistics of normalization layers, are copied instead of averaged. With a decay of 0 no average
    is kept and `weights` returns the model's own weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        initial = self._live() if decay else {}
        self.average: dict[str, Tensor] = {name: t.detach().clone() for name, t in initial.items()}
        parameters = {name for name, _ in model.named_parameters()}
        # Names of the tensors to average, and to copy.
        self._averaged = [name for name in initial if name in parameters]
        self._copied = [name for name in initial if name not in parameters]

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Update the average with the model's weights after `iteration`."""
        if not self._decay:
            return
        decay, live = min(1 - 1 / (iteration + 1), self._decay), self._live()
        # Operations on lists need few kernels on a GPU.
        torch._foreach_lerp_(
            [self.average[n] for n in self._averaged], [live[n] for n in self._averaged], 1 - decay
        )
        _copy([self.average[n] for n in self._copied], [live[n] for n in self._copied])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Copy `weights` to another network of the same architecture."""
        weights, target = self.weights(), model.state_dict()
        _copy([target[name] for name in weights], list(weights.values()))

    def weights(self) -> dict[str, Tensor]:
        """Return the average, or the model's own weights if averaging is off."""
        return self.average if self._decay else self._live()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average; empty if averaging is off."""
        return self.average

    def load_state_dict(self, average: dict[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    def _live(self) -> dict[str, Tensor]:
        return dict(self._model.state_dict())


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors, those of a type together, which a GPU does with few kernels."""
    for dtype in dict.fromkeys(source.dtype for source in sources):
        pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if s.dtype == dtype]
        torch._foreach_copy_([t for t, _ in pairs], [s for _, s in pairs])


@contextmanager
def preserve_running_statistics(model: nn.Module, preserve: bool) -> Iterator[None]:
    """Normalize with batch statistics but leave the running statistics unchanged, if `preserve`."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if preserve else []
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


def mix_weights(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], fraction: float
) -> dict[str, Tensor]:
    """Return (1 − `fraction`) · `one` + `fraction` · `other`, with the integers of `one`.

    Running statistics of normalization are mixed as the weights are.
    """
    return {
        name: torch.lerp(tensor, other[name].to(tensor.device), fraction)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in one.items()
    }


@torch.no_grad()
def mix_running_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Move the running statistics of batch normalization towards those of target frames.

    Batch k (from 0) has the weight 0.1 · exp(−0.08 k), so the result is a mixture of both domains
    that later batches hardly change (Klingner et al., 2022, UBNA). `batches` are frames
    (B, H, W, 3) uint8. The model is left in evaluation mode.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    model.eval()
    for module in norms:
        module.train()
    for k, frames in enumerate(batches):
        for module in norms:
            module.momentum = 0.1 * math.exp(-0.08 * k)
        model(frames)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    model.eval()


def freeze_running_statistics(model: nn.Module) -> None:
    """Make batch normalization use its running statistics and stop updating them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
