"""No step reads a tensor on the host, where it would wait for the GPU.

The operations of a step are observed on a CPU. Those whose result, or its shape, the host has to
know are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.color_kernels import change_colors
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods import self_training
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.self_trainers import make_self_training
from fada_deploy.training.methods.self_training import CollapseMonitor
from fada_deploy.training.methods.self_training_base import SelfTrainingContext
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights, make_optimizer
from fada_deploy.training.stage_config import AdversarialStage, SelfTrainingStage
from fada_deploy.training.stages.adversarial import adversarial_step
from fada_deploy.training.stages.selftrain import self_training_step

SIZE_HW = (64, 96)
READING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::equal",
    "aten::is_nonzero", "aten::repeat_interleave",
}  # fmt: skip


class ForbidOperations(TorchDispatchMode):
    """Raise for an operation for which the host waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for argument in args if isinstance(argument, list | tuple) for i in argument
        )  # fmt: skip
        if name in READING or by_mask:
            raise AssertionError(f"the host reads a tensor: {name}")
        return func(*args, **(kwargs or {}))


class ForbidCopies(TorchFunctionMode):
    """Raise for a method that copies a tensor to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            raise AssertionError(f"the host reads a tensor: {func.__name__}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reading() -> Iterator[None]:
    with ForbidCopies(), ForbidOperations():
        yield


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.unique(),
        lambda x: bool((x > 0).any()), lambda x: x.masked_fill_(x > 0, 1).nonzero(),
        lambda x: x.__setitem__(x > 0, torch.ones(1)), lambda x: x.tolist(),
        lambda x: x.cpu(), lambda x: x.numpy(),
    ],
)  # fmt: skip
def test_reading_a_tensor_is_noticed(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="the host reads"), no_reading():
        read(torch.tensor([1.0]))


def batch(seed: int, ego: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (2, *SIZE_HW, 3), np.uint8))
    labels = torch.from_numpy(rng.integers(0, 13, (2, *SIZE_HW)))
    labels[:, :7] = 255
    mask = torch.arange(SIZE_HW[0])[:, None].expand(SIZE_HW) > 55
    return Batch(frames, labels, (0, 1), ego=mask if ego else None, class_weights=torch.ones(13))


@pytest.fixture
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec("tiny", CITYSCAPES_13, SIZE_HW, "batch")).train()


@pytest.mark.parametrize("name", ["fada", "fada-hard", "feature", "advent", "minent", "clan"])
def test_adversarial_step(model: SegmentationModel, name: str) -> None:
    settings = AdversarialStage(optimizer="adamw", max_norm=1.0)
    method = make_method(name, MethodContext(model, settings, None, None))  # type: ignore[arg-type]
    aligner = Aligner.create(method, settings)
    optimizer = make_optimizer(model, settings, method.heads)
    average = AveragedWeights(model, 0.9)
    src, tgt = batch(1), batch(2, ego=True)
    with no_reading():
        adversarial_step(model, optimizer, aligner, src, tgt)
        average.update(0)


@pytest.mark.parametrize("weighting", ["none", "confident_share"])
def test_self_training_step(
    model: SegmentationModel, weighting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = SelfTrainingStage(
        optimizer="adamw", max_norm=1.0, mixed_weight=1.0, masked_weight=1.0, weighting=weighting,
        iterations=10, max_iterations=10,
    )  # fmt: skip
    average = AveragedWeights(model, 0.9)
    method = make_self_training(
        SelfTrainingContext(
            model, average, stage, get_augmentation("strong"), False,
            count_target=lambda _: torch.zeros(()), whole_target=lambda: iter(()),
        )
    )  # fmt: skip
    optimizer = make_optimizer(model, stage)
    monitor = CollapseMonitor(CITYSCAPES_13.names, window=5)
    src, tgt = batch(1), batch(2, ego=True)

    # As on a GPU; on a CPU, OpenCV changes the colors.
    monkeypatch.setattr(self_training, "change_batch", change_colors)
    with no_reading():
        method.start_iteration(3)
        target = method.views(src, tgt, np.random.default_rng(0))
        losses = self_training_step(model, optimizer, None, target.src, tgt, target.views, stage)
        monitor.update(target.src.labels, target.labels)
    assert {"segmentation", "mixed", "masked"} <= losses.keys()
