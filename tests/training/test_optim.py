"""Schedule, weight averaging, gradient clipping and batch-norm statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    make_optimizer,
    optimizer_step,
    poly_factor,
    preserve_running_statistics,
    set_learning_rate,
)
from fada_deploy.training.stage_config import SourceStage


def test_poly_schedule_with_warmup() -> None:
    for i in (0, 1, 20_000, 31_249):
        assert poly_factor(i, max_iterations=31_250, power=0.9) == pytest.approx(
            (1 - i / 31_250) ** 0.9
        )
    rising = [poly_factor(i, max_iterations=100, power=0.9, warmup=10) for i in range(10)]
    assert rising[0] == pytest.approx(0.1) and np.all(np.diff(rising) > 0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_classifier_has_ten_times_the_learning_rate(name: str) -> None:
    model = SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, (64, 64), "batch"))
    stage = SourceStage(optimizer=name)
    optimizer = make_optimizer(model, stage)
    rate = set_learning_rate(optimizer, 1000, stage)
    want = 5e-4 * (1 - 1000 / 31_250) ** 0.9
    assert rate == pytest.approx(want)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([want, 10 * want])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_average_follows_its_recursion_and_copies_buffers() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = AveragedWeights(model, 0.9)
    values = np.random.default_rng(0).normal(size=30)
    want = model[0].weight.item()
    for t, value in enumerate(values):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(value)
        average.update(t)
        alpha = min(1 - 1 / (t + 1), 0.9)
        want = alpha * want + (1 - alpha) * value
    assert average.weights()["0.weight"].item() == pytest.approx(want, rel=1e-5)
    assert average.weights()["1.running_mean"].item() == pytest.approx(values[-1])


def test_decay_zero_returns_the_model_weights() -> None:
    model = nn.Linear(1, 1)
    average = AveragedWeights(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(5)
    average.update(3)
    assert average.weights()["weight"].item() == 5


def test_preserved_running_statistics_do_not_change_but_normalization_uses_the_batch() -> None:
    norm = nn.BatchNorm2d(1).train()
    x = torch.randn(4, 1, 3, 3) * 5 + 7
    with preserve_running_statistics(norm, True):
        y = norm(x)
    assert y.mean().abs() < 1e-5 and norm.running_mean.item() == 0
    with preserve_running_statistics(norm, False):
        norm(x)
    assert norm.running_mean.item() == pytest.approx(0.1 * x.mean().item(), rel=1e-5)


def test_clips_joint_gradient_norm_only_above_the_limit() -> None:
    def stepped(max_norm: float) -> list[torch.Tensor]:
        a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
        optimizer_step(optimizer, SourceStage(max_norm=max_norm))
        return [a.detach(), b.detach()]

    torch.testing.assert_close(stepped(0.0), [torch.tensor([-3.0, 0.0]), torch.tensor([0.0, -4.0])])
    torch.testing.assert_close(stepped(9.0), stepped(0.0))
    # The joint norm of both gradients is 5.
    want = [torch.tensor([-0.6, 0.0]), torch.tensor([0.0, -0.8])]
    torch.testing.assert_close(stepped(1.0), want, atol=1e-5, rtol=0)
