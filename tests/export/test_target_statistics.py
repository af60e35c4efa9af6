"""Target statistics of an export, compared with the network and with NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch.nn import functional as F

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.export.exporter import export_onnx
from fada_deploy.export.target_statistics import measure, summarize
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.training.predict import Predictor
from fada_deploy.training.weights.checkpoints import load_model


def test_mean_and_sample_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    fractions, confidences = rng.dirichlet(np.ones(5), 7), rng.uniform(0.2, 1, 7)
    statistics = summarize(fractions, confidences)
    mean = fractions.sum(0) / 7
    std = np.sqrt(((fractions - mean) ** 2).sum(0) / 6)
    assert statistics.frames == 7
    np.testing.assert_allclose(statistics.fraction_mean, mean, atol=1e-6)
    np.testing.assert_allclose(statistics.fraction_std, std, atol=1e-6)
    assert statistics.confidence_mean == pytest.approx(confidences.sum() / 7, abs=1e-6)
    assert statistics.confidence_std == pytest.approx(
        np.sqrt(((confidences - confidences.mean()) ** 2).sum() / 6), abs=1e-6
    )
    single = summarize(fractions[:1], None)
    assert (
        single.fraction_std == (0.0,) * 5
        and single.confidence_mean is None
        and single.confidence_std is None
    )


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_fractions_of_known_labels(tmp_path: Path, head: str) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head=head, batch=2)
    # Each image has four bands, of classes 0 1 2 3 and 1 2 3 4, with blurred borders.
    statistics = measure(model, [toy.scene(i)[0] for i in range(2)], backend="onnxruntime")
    expected = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]) / 4
    np.testing.assert_allclose(statistics.fraction_mean[:5], expected.mean(0), atol=0.05)
    np.testing.assert_allclose(statistics.fraction_std[:5], expected.std(0, ddof=1), atol=0.05)
    assert max(statistics.fraction_mean[5:]) < 0.03 and statistics.frames == 2
    # The logits of the toy model differ so much that the confidence is nearly 1 everywhere.
    assert statistics.confidence_mean == (None if head == "labels" else pytest.approx(1, abs=1e-3))


@pytest.mark.slow
def test_statistics_equal_those_of_the_network(
    trained: Path, streets: Path, tmp_path: Path
) -> None:
    weights = trained / "source" / "weights.safetensors"
    frames = streets / "cityscapes" / "leftImg8bit" / "train"
    exported = export_onnx(weights, tmp_path / "model.onnx", frames=frames)
    statistics = read_metadata(exported.model).target_statistics
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="train", space=CITYSCAPES_19)
    images = [dataset.image(i) for i in range(len(dataset))]
    predictor = Predictor(load_model(weights)[0], torch.device("cpu"))
    fractions = [np.bincount(m.ravel(), minlength=19) / m.size for m in predictor.labels(images)]
    confidences = []
    for image in images:
        probabilities = F.softmax(predictor.logits([image]), 1).amax(1)[None]
        full_size = F.interpolate(
            probabilities, image.shape[:2], mode="bilinear", align_corners=True
        )
        confidences.append(float(full_size.mean()))
    assert statistics is not None and statistics.frames == 16
    np.testing.assert_allclose(statistics.fraction_mean, np.mean(fractions, 0), atol=1e-4)
    np.testing.assert_allclose(statistics.fraction_std, np.std(fractions, 0, ddof=1), atol=1e-4)
    assert statistics.confidence_mean == pytest.approx(np.mean(confidences), abs=1e-4)
    assert statistics.confidence_std == pytest.approx(np.std(confidences, ddof=1), abs=1e-4)


@pytest.mark.slow
def test_statistics_are_measured_on_held_out_target_frames(exported: dict[str, Path]) -> None:
    logits, labels = (
        read_metadata(exported[head]).target_statistics for head in ("logits", "labels")
    )
    assert logits is not None and labels is not None
    # The target of the run has six held-out frames.
    assert logits.frames == labels.frames == 6
    assert logits.confidence_mean is not None and labels.confidence_mean is None
    np.testing.assert_allclose(logits.fraction_mean, labels.fraction_mean, atol=0.005)
    assert sum(logits.fraction_mean) == pytest.approx(1, abs=1e-4)
