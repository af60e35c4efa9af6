"""Schedule, averaged weights and batch statistics against their formulae."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.config import SourceStage
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    hold_batch_statistics,
    make_optimizer,
    optimizer_step,
    poly_factor,
    set_learning_rate,
)


def test_poly_schedule() -> None:
    for i in (0, 1, 20_000, 31_249):
        assert poly_factor(i, max_iterations=31_250, power=0.9) == pytest.approx(
            (1 - i / 31_250) ** 0.9
        )
    rising = [poly_factor(i, max_iterations=100, power=0.9, warmup=10) for i in range(10)]
    assert rising[0] == pytest.approx(0.1) and np.all(np.diff(rising) > 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_classifier_learns_ten_times_faster(optimizer: str) -> None:
    model = SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, (64, 64), "batch"))
    stage = SourceStage(optimizer=optimizer)
    made = make_optimizer(model, stage)
    rate = set_learning_rate(made, 1000, stage)
    want = 5e-4 * (1 - 1000 / 31_250) ** 0.9
    assert rate == pytest.approx(want)
    assert [g["lr"] for g in made.param_groups] == pytest.approx([want, 10 * want])
    assert sum(len(g["params"]) for g in made.param_groups) == len(list(model.parameters()))


def test_average_is_the_ramped_recursion() -> None:
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


def test_average_off_is_the_model_itself() -> None:
    model = nn.Linear(1, 1)
    average = AveragedWeights(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(5)
    average.update(3)
    assert average.weights()["weight"].item() == 5


def test_a_held_pass_normalizes_by_its_own_batch_and_leaves_the_running_statistics() -> None:
    norm = nn.BatchNorm2d(1).train()
    x = torch.randn(4, 1, 3, 3) * 5 + 7
    with hold_batch_statistics(norm, True):
        y = norm(x)
    assert y.mean().abs() < 1e-5 and norm.running_mean.item() == 0
    with hold_batch_statistics(norm, False):
        norm(x)
    assert norm.running_mean.item() == pytest.approx(0.1 * x.mean().item(), rel=1e-5)


def test_gradients_are_clipped_together_and_only_when_asked() -> None:
    def stepped(max_norm: float) -> list[torch.Tensor]:
        a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
        optimizer_step(optimizer, SourceStage(max_norm=max_norm))
        return [a.detach(), b.detach()]

    torch.testing.assert_close(stepped(0.0), [torch.tensor([-3.0, 0.0]), torch.tensor([0.0, -4.0])])
    torch.testing.assert_close(stepped(9.0), stepped(0.0))
    # The norm of both is 5.
    want = [torch.tensor([-0.6, 0.0]), torch.tensor([0.0, -0.8])]
    torch.testing.assert_close(stepped(1.0), want, atol=1e-5, rtol=0)
