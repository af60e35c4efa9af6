"""Each criterion without labels against a NumPy reading of its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.data.base import FrameDataset, Pair
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.unlabeled_scores import (
    CHANGES,
    TargetFrames,
    UnlabeledScores,
    entropy,
    expected_overlap,
    mean_iou,
    missing_classes,
    neighborhood_density,
    overlap,
    score_candidates,
)

K = CITYSCAPES_13.num_classes
SIZE = (64, 96)
ALL = np.ones(K, bool)


def no_labels(path: Path) -> np.ndarray:
    raise AssertionError(f"labels were read: {path}")


@pytest.fixture
def dataset(tmp_path: Path) -> FrameDataset:
    """Return five frames whose labels must not be read; the bottom quarter shows the car itself."""
    rng = np.random.default_rng(3)
    pairs = []
    for i in range(5):
        frame = cv2.resize(rng.integers(0, 256, (6, 9, 3), np.uint8), (96, 64))
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), frame)
        pairs.append(Pair(tmp_path / f"{i}.png", tmp_path / "labels.png"))
    ego = np.zeros((8, 12), bool)
    ego[6:] = True
    return FrameDataset("target", "train", CITYSCAPES_13, pairs, no_labels, ego_mask=ego)


class ColorModel(SegmentationModel):
    """A network at 1/8 resolution whose logits are a linear function of the mean color."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, tilt: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.spec = ModelSpec("ddrnet23-slim", CITYSCAPES_13, SIZE)
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.bias, self.tilt = torch.tensor(bias, dtype=torch.float32), tilt

    def forward(self, frames_bhwc: Tensor) -> Tensor:
        x = frames_bhwc.float().permute(0, 3, 1, 2) / 255
        x = nn.functional.avg_pool2d(x, 8)
        z = torch.einsum("kc,bchw->bkhw", self.weight, x) + self.bias[:, None, None]
        # Depends on the column, so that mirrored frames have other labels.
        z[:, 0] += self.tilt * torch.linspace(-1, 1, z.shape[3])
        return z


def random_model(seed: int, tilt: float = 0.0, scale: float = 6.0) -> ColorModel:
    rng = np.random.default_rng(seed)
    weight = scale * rng.standard_normal((K, 3))
    # Centered at gray, so that the labels of the frames differ.
    return ColorModel(weight, rng.standard_normal(K) / 4 - weight.sum(1) / 2, tilt)


def as_loaders(*models: SegmentationModel) -> list[Callable[[], SegmentationModel]]:
    return [lambda model=model: model for model in models]


def probabilities(model: ColorModel, frames: np.ndarray) -> np.ndarray:
    """Return (N, h, w, K) in NumPy: area means of 8×8 pixels, softmax in float64."""
    n, height, width, _ = frames.shape
    x = frames.reshape(n, height // 8, 8, width // 8, 8, 3).mean((2, 4)) / 255
    z = x @ model.weight.detach().double().numpy().T + model.bias.double().numpy()
    z[..., 0] += model.tilt * np.linspace(-1, 1, width // 8)
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def numpy_density(p: np.ndarray) -> float:
    entropies = []
    v = p / np.linalg.norm(p, axis=1, keepdims=True)
    for i in range(len(v)):
        s = np.array([np.exp(v[i] @ v[j] / 0.05) for j in range(len(v)) if j != i])
        s /= s.sum()
        entropies.append(-(s * np.log(s)).sum())
    return float(np.mean(entropies))


def numpy_iou(a: np.ndarray, b: np.ndarray, classes: np.ndarray) -> float:
    values = []
    for k in np.flatnonzero(classes):
        union = ((a == k) | (b == k)).sum()
        values.append(((a == k) & (b == k)).sum() / union if union else 0.0)
    return float(np.mean(values))


def test_neighborhood_density_and_entropy_are_those_of_the_formulae() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(K), 40)
    assert float(neighborhood_density(torch.from_numpy(p))) == pytest.approx(numpy_density(p))
    p[0] = np.eye(K)[2]
    want = [-sum(v * np.log(v) for v in row if v > 0) for row in p]
    np.testing.assert_allclose(entropy(torch.from_numpy(p), 1).numpy(), want, atol=1e-12)
    # Equal vectors: each pixel is equally similar to the 39 others.
    same = torch.full((40, K), 1 / K, dtype=torch.float64)
    assert float(neighborhood_density(same)) == pytest.approx(np.log(39))


def test_mean_iou_counts_a_class_that_nobody_predicts_as_zero() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (2, 30)).astype(np.uint8)
    classes = np.arange(K) < 7
    got = mean_iou(overlap(torch.from_numpy(a), torch.from_numpy(b), K), classes)
    assert got == pytest.approx(numpy_iou(a, b, classes))
    # Half of the probability of each pixel is on its label, so half of its class is expected.
    p = np.full((30, K), 0.5 / (K - 1))
    p[np.arange(30), a] = 0.5
    expected = expected_overlap(torch.from_numpy(p), torch.from_numpy(a))
    np.testing.assert_allclose(expected[0].numpy(), [(a == k).sum() / 2 for k in range(K)])
    union = [(a == k).sum() + p[a != k, k].sum() for k in range(K)]
    np.testing.assert_allclose(expected[1].numpy(), union)
    same = overlap(torch.from_numpy(a), torch.from_numpy(a), K)
    assert mean_iou(same, classes) == pytest.approx(5 / 7)


def test_all_criteria_of_two_candidates_equal_a_numpy_reading(dataset: FrameDataset) -> None:
    models = [random_model(5, tilt=2.0), random_model(6, scale=2.0)]
    classes = ALL.copy()
    classes[3] = False
    frames = TargetFrames(dataset, 3)
    got = score_candidates(as_loaders(*models), frames, classes=classes, seed=4)
    images = np.stack([dataset.image(i) for i in (0, 2, 4)])
    valid = np.ones((8, 12), bool)
    valid[6:] = False
    p = [probabilities(model, images) for model in models]
    consensus = (p[0] + p[1]).argmax(-1)[:, valid]
    for model, own, scores in zip(models, p, got, strict=True):
        labels = own.argmax(-1)[:, valid]
        mirrored = probabilities(model, images[:, :, ::-1])[:, :, ::-1].argmax(-1)[:, valid]
        assert scores.mirror_agreement == pytest.approx((labels == mirrored).mean())
        want = numpy_iou(labels, mirrored, classes)
        assert scores.consistency["mirrored"] == pytest.approx(want)
        assert scores.ensemble_agreement == pytest.approx((labels == consensus).mean())
        flat = own[:, valid]
        shown = np.flatnonzero(classes)
        sure = [flat[labels == k, k].sum() for k in shown]
        either = [(labels == k).sum() + flat[labels != k, k].sum() for k in shown]
        want = np.mean(np.array(sure) / either)
        assert scores.expected_iou == pytest.approx(want, abs=1e-5)
        mean = np.mean(list(scores.consistency.values()))
        assert scores.score == pytest.approx((mean * mean * want) ** (1 / 3), abs=1e-5)
        assert scores.entropy == pytest.approx(-(flat * np.log(flat)).sum(-1).mean(), abs=1e-5)
        # There are 72 valid pixels, so the neighborhood density is of all of them.
        density = np.mean([numpy_density(frame) for frame in flat])
        assert scores.neighborhood_density == pytest.approx(density, abs=1e-4)
        fractions = [(labels == k).mean() for k in range(K)]
        np.testing.assert_allclose(scores.class_fractions, fractions)
        present = [(labels == k).any(1).mean() for k in range(K)]
        np.testing.assert_allclose(scores.frame_fractions, present)
        assert (scores.frame_fractions > 0).sum() > 4, "the comparison must involve classes"
    assert got[0].mirror_agreement < 0.95 < got[1].mirror_agreement == 1


def test_a_larger_frame_is_compared_at_the_resolution_of_the_first_candidate(
    dataset: FrameDataset,
) -> None:
    """A network of another input size takes part; its labels are those of its own resolution."""
    small, large = random_model(5), random_model(5)
    large.spec = replace(large.spec, size_hw=(128, 192))
    frames = TargetFrames(dataset, 5)
    got = score_candidates(as_loaders(small, large), frames, classes=ALL, seed=0)
    assert got[0].class_fractions.sum() == pytest.approx(1)
    assert got[1].ensemble_agreement > 0.7
    np.testing.assert_allclose(got[1].class_fractions, got[0].class_fractions, atol=0.15)
    # Mirrored frames have the mirrored labels, whatever the resolution.
    assert got[1].mirror_agreement > 0.95


def test_a_constant_network_is_sure_and_consistent_but_does_not_win(
    dataset: FrameDataset,
) -> None:
    """The failure of agreement and entropy that the mean over classes avoids."""
    bias = np.zeros(K)
    bias[4] = 20
    constant = ColorModel(np.zeros((K, 3)), bias)
    good = random_model(5, scale=20.0)
    got = score_candidates(
        as_loaders(good, constant), TargetFrames(dataset, 5), classes=ALL, seed=0
    )
    assert got[1].mirror_agreement == 1 and got[1].entropy < got[0].entropy
    assert got[1].mean_consistency == pytest.approx(1 / K)
    assert got[1].mean_consistency < got[0].mean_consistency - 0.1
    assert got[1].expected_iou < got[0].expected_iou and got[1].score < got[0].score
    assert set(got[0].consistency) == set(CHANGES)


def values(scores: UnlabeledScores) -> list[float]:
    return [
        *scores.consistency.values(),
        scores.ensemble_agreement,
        scores.neighborhood_density,
        scores.entropy,
    ]


def test_the_seed_decides_pixels_and_colors_and_nothing_else(dataset: FrameDataset) -> None:
    model = random_model(2)
    # No ego mask: 96 pixels are fewer than 100, so take a network of more pixels.
    model.spec = replace(model.spec, size_hw=(128, 192))
    first, again, other = (
        score_candidates(as_loaders(model), TargetFrames(dataset, 5), classes=ALL, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert values(first) == values(again) != values(other)
    assert first.neighborhood_density != other.neighborhood_density
    assert first.consistency["recolored"] != other.consistency["recolored"]
    assert first.consistency["larger"] == other.consistency["larger"]


def test_unreadable_frames_are_left_out(dataset: FrameDataset) -> None:
    dataset.pairs[2].image.write_bytes(b"nothing")
    frames = TargetFrames(dataset, 5)
    assert len(frames.at(SIZE)) == len(frames) == 4
    for pair in dataset.pairs:
        pair.image.write_bytes(b"")
    with pytest.raises(DataError, match="none of 5 target frames can be read"):
        TargetFrames(dataset, 9).at(SIZE)


def test_missing_classes() -> None:
    source = np.array([1.0, 0.8, 0.8, 0.009, 0.4, 0.0])
    target = np.array([0.9, 0.05, 0.04, 0.0, 0.0, 0.0])
    assert missing_classes(source, target).tolist() == [False, False, True, False, True, False]
