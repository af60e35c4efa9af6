"""Class Center Distance against its formula with every feature at hand, and its invariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.training.reporting.class_center_distance import (
    ClassMoments,
    evenly_spaced,
    measure,
)
from fada_deploy.training.weights.checkpoints import load_model

K, C = 4, 6


def definition(features: np.ndarray, classes: np.ndarray, *, squared: bool) -> dict[int, float]:
    """CCD from its definition, over all features at once: (N, C) and (N,)."""
    present = sorted(set(classes.tolist()))
    center = {k: features[classes == k].mean(0) for k in present}
    result = {}
    for i in present:
        spread = np.mean([np.sum((x - center[i]) ** 2) for x in features[classes == i]])
        apart = [np.linalg.norm(center[i] - center[j]) for j in present if j != i]
        result[i] = float(np.mean([spread / (d**2 if squared else d) for d in apart]))
    return result


@pytest.mark.parametrize("squared", [True, False])
def test_streamed_moments_give_the_definition(squared: bool) -> None:
    rng = np.random.default_rng(0)
    # Far from the origin, where sums of squares lose digits; class 2 never occurs.
    frames = [
        (rng.normal(100, 1, (C, 5, 7)).astype(np.float32), rng.choice([0, 1, 3, 255], (5, 7)))
        for _ in range(4)
    ]
    moments = ClassMoments(K, C)
    for features, labels in frames:
        moments.add(torch.from_numpy(features), torch.from_numpy(labels))
    features = np.concatenate([f.reshape(C, -1).T for f, _ in frames]).astype(np.float64)
    classes = np.concatenate([y.ravel() for _, y in frames])
    want = definition(features[classes < K], classes[classes < K], squared=squared)
    got = moments.distances(squared=squared)
    assert np.isnan(got[2]) and set(want) == {0, 1, 3}
    np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-8)


def test_a_class_of_one_feature_has_no_spread_and_is_left_out() -> None:
    moments = ClassMoments(K, C)
    features = torch.randn(C, 1, 5, generator=torch.Generator().manual_seed(0))
    moments.add(features, torch.tensor([[0, 0, 1, 1, 3]]))
    assert np.isnan(moments.distances()).tolist() == [False, False, True, True]
    # Among fewer classes there are fewer centers to be far from.
    moments.add(features, torch.tensor([[3, 3, 255, 255, 255]]))
    pair = np.array([True, True, False, False])
    assert np.isnan(moments.distances(among=pair)).tolist() == [False, False, True, True]
    assert not np.allclose(moments.distances(among=pair)[:2], moments.distances()[:2])


def test_squared_distance_does_not_change_with_the_features_scale() -> None:
    """Why the squared form is the default: networks of unlike feature scale compare."""
    rng = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(C, 6, 6, generator=rng),
        torch.randint(0, K, (6, 6), generator=rng),
    )
    found = {}
    for scale in (1.0, 10.0):
        moments = ClassMoments(K, C)
        moments.add(features * scale, labels)
        found[scale] = (moments.distances(), moments.distances(squared=False))
    np.testing.assert_allclose(found[1.0][0], found[10.0][0])
    np.testing.assert_allclose(10 * found[1.0][1], found[10.0][1])


def test_a_networks_features_are_taken_where_its_labels_are(trained: Path, streets: Path) -> None:
    model, _ = load_model(trained / "source" / "weights.safetensors")
    frames = open_dataset("cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19)
    moments = measure(model, [frames], frames=2, device=torch.device("cpu"))
    kept, classes = [], []
    for i in (0, len(frames) - 1):
        frame, labels = frames.pair(i)
        with torch.inference_mode():
            features = model.features(torch.from_numpy(frame)[None])[0].numpy()
        h, w = features.shape[1:]
        # The label of the pixel at the middle of each cell of 8×8.
        middle = labels[4::8, 4::8][:h, :w]
        kept.append(features.reshape(len(features), -1).T)
        classes.append(middle.ravel())
    x, y = np.concatenate(kept).astype(np.float64), np.concatenate(classes)
    want = definition(x[y < 19], y[y < 19], squared=True)
    got = moments.distances()
    assert np.flatnonzero(~np.isnan(got)).tolist() == sorted(want)
    np.testing.assert_allclose(got[sorted(want)], [want[k] for k in sorted(want)], rtol=1e-6)


def test_frames_are_spread_evenly_and_a_data_set_of_nothing_is_said(
    blocks: Path, trained: Path
) -> None:
    assert (
        evenly_spaced(10, 3) == [0, 4, 9]
        and evenly_spaced(3, 0) == [0, 1, 2]
        and evenly_spaced(2, 9) == [0, 1]
    )
    model, _ = load_model(trained / "source" / "weights.safetensors")
    frames = open_dataset(str(blocks / "source.toml"), None, split="val", space=CITYSCAPES_19)
    blank = type(frames)(
        frames.name,
        "val",
        frames.space,
        frames.pairs[:1],
        lambda path: np.full((64, 96), 255, np.uint8),
    )
    with pytest.raises(DataError, match="fewer than two classes"):
        measure(model, [blank], frames=1, device=torch.device("cpu"))
