"""Class Center Distance against its definition over all features, and its invariances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.training.reporting.class_center_distance import (
    ClassMoments,
    collect_moments,
    evenly_spaced,
)
from fada_deploy.training.weights.checkpoints import load_model

K, C = 4, 6


def definition(features: np.ndarray, classes: np.ndarray, *, squared: bool) -> dict[int, float]:
    """Compute the CCD by its definition, from features (N, C) and their classes (N,)."""
    present = sorted(set(classes.tolist()))
    center = {k: features[classes == k].mean(0) for k in present}
    result = {}
    for i in present:
        spread = np.mean([np.sum((x - center[i]) ** 2) for x in features[classes == i]])
        gaps = [np.linalg.norm(center[i] - center[j]) for j in present if j != i]
        result[i] = float(np.mean([spread / (d**2 if squared else d) for d in gaps]))
    return result


@pytest.mark.parametrize("squared", [True, False])
def test_moments_give_the_distance_of_the_definition(squared: bool) -> None:
    rng = np.random.default_rng(0)
    # Far from the origin, where sums of squares lose precision; class 2 does not occur.
    frames = [
        (rng.normal(100, 1, (C, 5, 7)).astype(np.float32), rng.choice([0, 1, 3, 255], (5, 7)))
        for _ in range(4)
    ]
    moments = ClassMoments(K, C)
    for features, labels in frames:
        moments.add(torch.from_numpy(features), torch.from_numpy(labels))
    features = np.concatenate([f.reshape(C, -1).T for f, _ in frames]).astype(np.float64)
    classes = np.concatenate([y.ravel() for _, y in frames])
    expected = definition(features[classes < K], classes[classes < K], squared=squared)
    actual = moments.distances(squared=squared)
    assert np.isnan(actual[2]) and set(expected) == {0, 1, 3}
    np.testing.assert_allclose([actual[k] for k in expected], list(expected.values()), rtol=1e-8)


def test_class_with_a_single_feature_is_not_compared() -> None:
    moments = ClassMoments(K, C)
    features = torch.randn(C, 1, 5, generator=torch.Generator().manual_seed(0))
    moments.add(features, torch.tensor([[0, 0, 1, 1, 3]]))
    assert np.isnan(moments.distances()).tolist() == [False, False, True, True]
    # A distance among fewer classes averages over fewer centers.
    moments.add(features, torch.tensor([[3, 3, 255, 255, 255]]))
    pair = np.array([True, True, False, False])
    assert np.isnan(moments.distances(among=pair)).tolist() == [False, False, True, True]
    assert not np.allclose(moments.distances(among=pair)[:2], moments.distances()[:2])


def test_squared_distance_is_invariant_to_the_scale_of_the_features() -> None:
    """The squared form is the default, because networks differ in the scale of their features."""
    rng = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(C, 6, 6, generator=rng),
        torch.randint(0, K, (6, 6), generator=rng),
    )
    distances = {}
    for scale in (1.0, 10.0):
        moments = ClassMoments(K, C)
        moments.add(features * scale, labels)
        distances[scale] = (moments.distances(), moments.distances(squared=False))
    np.testing.assert_allclose(distances[1.0][0], distances[10.0][0])
    np.testing.assert_allclose(10 * distances[1.0][1], distances[10.0][1])


def test_features_are_matched_with_the_labels_at_their_position(
    trained: Path, streets: Path
) -> None:
    model, _ = load_model(trained / "source" / "weights.safetensors")
    frames = open_dataset("cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19)
    moments, failed = collect_moments(model, [frames], frames=2, device=torch.device("cpu"))
    assert failed == ()
    collected, classes = [], []
    for i in (0, len(frames) - 1):
        frame, labels = frames.pair(i)
        with torch.inference_mode():
            features = model.features(torch.from_numpy(frame)[None])[0].numpy()
        h, w = features.shape[1:]
        # The label of the center pixel of each 8×8 cell.
        middle = labels[4::8, 4::8][:h, :w]
        collected.append(features.reshape(len(features), -1).T)
        classes.append(middle.ravel())
    x, y = np.concatenate(collected).astype(np.float64), np.concatenate(classes)
    expected = definition(x[y < 19], y[y < 19], squared=True)
    actual, present = moments.distances(), sorted(expected)
    assert np.flatnonzero(~np.isnan(actual)).tolist() == present
    np.testing.assert_allclose(actual[present], [expected[k] for k in present], rtol=1e-6)


def test_evenly_spaced_includes_both_ends() -> None:
    assert evenly_spaced(10, 3) == [0, 4, 9]
    assert evenly_spaced(3, 0) == [0, 1, 2]
    assert evenly_spaced(2, 9) == [0, 1]


def test_unreadable_frames_are_skipped_and_reported(trained: Path, streets: Path) -> None:
    model, _ = load_model(trained / "source" / "weights.safetensors")
    frames = open_dataset("cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19)
    bad = replace(frames.pairs[0], image=Path("gone.png"))
    dataset = replace(frames, pairs=[bad, frames.pairs[1]])
    moments, failed = collect_moments(model, [dataset], frames=0, device=torch.device("cpu"))
    assert len(failed) == 1 and "gone.png" in failed[0]
    assert moments.count.sum() > 0


def test_labels_without_two_classes_raise_data_error(blocks: Path, trained: Path) -> None:
    model, _ = load_model(trained / "source" / "weights.safetensors")
    frames = open_dataset(str(blocks / "source.toml"), None, split="val", space=CITYSCAPES_19)
    unlabeled = replace(
        frames, pairs=frames.pairs[:1], read_labels=lambda path: np.full((64, 96), 255, np.uint8)
    )
    with pytest.raises(DataError, match="at least 2 classes"):
        collect_moments(model, [unlabeled], frames=1, device=torch.device("cpu"))
