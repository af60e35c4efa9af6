"""What an export says of its target's frames, against the network itself and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch.nn import functional as F

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.export.exporter import export
from fada_deploy.export.target_statistics import measure, summarize
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.training.predict import Predictor
from fada_deploy.training.weights.checkpoints import load_model


def test_the_figures_are_means_and_sample_deviations() -> None:
    rng = np.random.default_rng(0)
    fractions, sure = rng.dirichlet(np.ones(5), 7), rng.uniform(0.2, 1, 7)
    said = summarize(fractions, sure)
    mean = fractions.sum(0) / 7
    std = np.sqrt(((fractions - mean) ** 2).sum(0) / 6)
    assert said.frames == 7
    np.testing.assert_allclose(said.fraction_mean, mean, atol=1e-6)
    np.testing.assert_allclose(said.fraction_std, std, atol=1e-6)
    assert said.confidence_mean == pytest.approx(sure.sum() / 7, abs=1e-6)
    assert said.confidence_std == pytest.approx(
        np.sqrt(((sure - sure.mean()) ** 2).sum() / 6), abs=1e-6
    )
    single = summarize(fractions[:1], None)
    assert (
        single.fraction_std == (0.0,) * 5
        and single.confidence_mean is None
        and single.confidence_std is None
    )


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_known_labels_give_known_fractions(tmp_path: Path, head: str) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head=head, batch=2)
    # Bands of classes 0 1 2 3 and 1 2 3 4, a quarter of the picture each but for the blur between them.
    said = measure(model, [toy.scene(i)[0] for i in range(2)], backend="onnxruntime")
    want = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]) / 4
    np.testing.assert_allclose(said.fraction_mean[:5], want.mean(0), atol=0.05)
    np.testing.assert_allclose(said.fraction_std[:5], want.std(0, ddof=1), atol=0.05)
    assert max(said.fraction_mean[5:]) < 0.03 and said.frames == 2
    # Logits of squared colors are so far apart that it is sure of each block.
    assert said.confidence_mean == (None if head == "labels" else pytest.approx(1, abs=1e-3))


@pytest.mark.slow
def test_the_file_says_what_the_network_says(trained: Path, streets: Path, tmp_path: Path) -> None:
    weights = trained / "source" / "weights.safetensors"
    frames = streets / "cityscapes" / "leftImg8bit" / "train"
    said = read_metadata(
        export(weights, tmp_path / "model.onnx", frames=frames, say=lambda text: None).model
    )
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="train", space=CITYSCAPES_19)
    pictures = [dataset.image(i) for i in range(len(dataset))]
    predictor = Predictor(load_model(weights)[0], torch.device("cpu"))
    fractions = [np.bincount(m.ravel(), minlength=19) / m.size for m in predictor.labels(pictures)]
    sure = [
        float(F.interpolate(F.softmax(predictor.logits([p]), 1).amax(1)[None], p.shape[:2], mode="bilinear",
                            align_corners=True).mean())
        for p in pictures
    ]  # fmt: skip
    target_statistics = said.target_statistics
    assert target_statistics is not None and target_statistics.frames == 16
    np.testing.assert_allclose(target_statistics.fraction_mean, np.mean(fractions, 0), atol=1e-4)
    np.testing.assert_allclose(
        target_statistics.fraction_std, np.std(fractions, 0, ddof=1), atol=1e-4
    )
    assert target_statistics.confidence_mean == pytest.approx(np.mean(sure), abs=1e-4)
    assert target_statistics.confidence_std == pytest.approx(np.std(sure, ddof=1), abs=1e-4)


@pytest.mark.slow
def test_an_export_is_measured_on_its_target(exported: dict[str, Path]) -> None:
    logits, labels = (
        read_metadata(exported[head]).target_statistics for head in ("logits", "labels")
    )
    assert logits is not None and labels is not None
    # The held-out frames of the run's own target, of which there are six.
    assert logits.frames == labels.frames == 6
    assert logits.confidence_mean is not None and labels.confidence_mean is None
    np.testing.assert_allclose(logits.fraction_mean, labels.fraction_mean, atol=0.005)
    assert sum(logits.fraction_mean) == pytest.approx(1, abs=1e-4)
