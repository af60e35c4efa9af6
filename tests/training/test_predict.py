"""Multi-scale prediction against an explicit average of class probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fada_deploy.common.images import resize_frame
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor, with_input_size
from fada_deploy.training.weights.checkpoints import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(trained: Path) -> SegmentationModel:
    return load_model(trained / "source" / "weights.safetensors")[0]


@pytest.fixture(scope="module")
def frame(streets: Path) -> np.ndarray:
    return open_dataset(
        "cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19
    ).image(0)


def test_averages_class_probabilities_at_frame_size(
    network: SegmentationModel, frame: np.ndarray
) -> None:
    frame = frame[:119, :173]  # not the size of the network's input
    total = np.zeros((19, 119, 173))
    # 192x128 scaled by 0.75, 1 and 1.25, rounded to multiples of 8.
    for size_hw in ((96, 144), (128, 192), (160, 240)):
        for flipped in (False, True):
            x = resize_frame(frame, size_hw)
            x = x[:, ::-1].copy() if flipped else x
            with torch.no_grad():
                logits = network(torch.from_numpy(x)[None])
            logits = logits.flip(3) if flipped else logits
            at_frame = F.interpolate(logits, (119, 173), mode="bilinear", align_corners=True)
            total += at_frame.softmax(1)[0].double().numpy()
    got = Predictor(network, CPU, scales=(0.75, 1.0, 1.25), flip=True).labels([frame])[0]
    assert (got == total.argmax(0)).mean() > 0.9999
    single = Predictor(network, CPU).labels([frame])[0]
    assert (got != single).mean() > 0.01, "the views must change some labels in this example"


def test_labels_frames_of_two_sizes_in_one_batch(
    network: SegmentationModel, frame: np.ndarray
) -> None:
    frames = [frame, frame[:100, :150]]
    together = Predictor(network, CPU, flip=True).labels(frames)
    for labels, each in zip(together, frames, strict=True):
        np.testing.assert_array_equal(labels, Predictor(network, CPU, flip=True).labels([each])[0])


def test_other_input_size_has_the_same_weights(network: SegmentationModel) -> None:
    assert (
        with_input_size(network, None) is network
        and with_input_size(network, (128, 192)) is network
    )
    larger = with_input_size(network, (192, 256))
    assert larger.spec.size_hw == (192, 256) and not larger.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, larger.state_dict()[name])
