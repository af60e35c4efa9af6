"""Self-training in rounds, compared with the equations in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import interrupted_after
from safetensors.torch import load_file
from torch import Tensor, nn

from fada_deploy.common.errors import InterruptedRunError
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.cbst import (
    count_all_confidences,
    round_labels,
    round_of,
    round_portion,
    thresholds_of,
)
from fada_deploy.training.methods.self_training_base import uniform_divergence
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import SelfTrainingStage

K = 4


class FixedNetwork(nn.Module):
    """Returns the logits whose number is the first value of the frames."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.spec = ModelSpec("resnet18", LabelSpace("four", CITYSCAPES_19.classes[:K]), (64, 64))

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits[int(frames[0, 0, 0, 0])]


@pytest.fixture
def logits() -> Tensor:
    """Return the logits of three batches, (3, 2, K, 10, 12); the last class is never the best."""
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(3, 2, K, 10, 12, generator=generator)
    values[:, :, -1] = -20
    return values


def batches() -> list[Batch]:
    labels = torch.full((2, 8, 8), 255)
    return [Batch(torch.full((2, 8, 8, 3), i, dtype=torch.uint8), labels, (0, 1)) for i in range(3)]


def softmax(z: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("portion", [0.2, 0.5])
def test_thresholds_are_the_values_at_the_portion(
    logits: Tensor, portion: float, per_class: bool
) -> None:
    model = FixedNetwork(logits)
    counts = count_all_confidences(model, batches())  # type: ignore[arg-type]
    got = thresholds_of(counts, portion=portion, per_class=per_class).numpy()
    p = softmax(logits.numpy().astype(float), 2)
    best, winners = p.max(2).ravel(), p.argmax(2).ravel()
    for k in range(K):
        values = np.sort(best[winners == k] if per_class else best)[::-1]
        if not values.size:
            assert got[k] == 1
            continue
        want = values[int(np.ceil(portion * len(values))) - 1]
        # One bin of the histogram.
        assert want - 1 / 4096 <= got[k] <= want


def test_labels_are_those_of_the_largest_ratio(logits: Tensor) -> None:
    thresholds = torch.tensor([0.9, 0.3, 0.6, 1.0])
    labels = round_labels(logits[0], (10, 12), thresholds).numpy()
    p = softmax(logits[0].numpy().astype(float), 1)
    ratio = p / thresholds.numpy()[:, None, None]
    want = np.where(ratio.max(1) >= 1, ratio.argmax(1), 255)
    np.testing.assert_array_equal(labels, want)
    # Class 1 wins with less than half of the probability in some places.
    assert ((labels == 1) & (p[:, 1] < 0.5)).any() and (labels == 255).any()


def test_regularizer_is_the_divergence_from_the_uniform_distribution() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(2, K, 5, 6))).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, K, (2, 5, 6)))
    labels[:, :2] = 255
    loss = uniform_divergence(z, labels, (labels != 255).sum())
    loss.backward()
    p = softmax(z.detach().numpy(), 1)
    mask = (labels.numpy() != 255)[:, None]
    want = -(np.log(p).mean(1, keepdims=True) * mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(want, rel=1e-9)
    np.testing.assert_allclose(z.grad.numpy(), (p - 1 / K) * mask / mask.sum(), atol=1e-12)


def test_rounds_have_equal_length_and_growing_portions() -> None:
    stage = SelfTrainingStage(iterations=10, max_iterations=10, rounds=4)
    numbers, begins = zip(*(round_of(i, stage) for i in range(10)), strict=True)
    assert numbers == (0, 0, 0, 1, 1, 2, 2, 2, 3, 3)
    assert [i for i, does_begin in enumerate(begins) if does_begin] == [0, 3, 5, 8]
    assert [round(round_portion(n, stage), 2) for n in (0, 1, 2, 6, 9)] == [
        0.2,
        0.25,
        0.3,
        0.5,
        0.5,
    ]


def test_a_round_is_resumed_exactly(blocks: Path, tmp_path: Path) -> None:
    """Interrupted in the middle of a round, whose labels are those of an earlier network."""
    settings = [
        "src_size=96x64", "size=96x64", "source.iterations=2", "source.batch=2", "save_every=50",
        "selftrain.iterations=6", "selftrain.rounds=2", "selftrain.lr=1e-3", "selftrain.batch=2",
        "selftrain.regularizer=0.1", "selftrain.warmup=0",
    ]  # fmt: skip
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"), "init": "none",
        "backbone": "tiny", "stages": ("source", "selftrain"),
    }  # fmt: skip
    config = make_config(recipe="paper", file=None, settings=settings, options=options)
    device = torch.device("cpu")
    train(config, tmp_path / "whole", device=device)
    message = "after 5 iterations of selftrain"
    with interrupted_after(5, "selftrain"), pytest.raises(InterruptedRunError, match=message):
        train(config, tmp_path / "resumed", device=device)
    train(load_config(tmp_path / "resumed"), tmp_path / "resumed", device=device)
    want, got = (
        load_file(tmp_path / name / "selftrain" / "weights.safetensors")
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(want[k], got[k]) for k in want)
