"""Exports of a trained network, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fada_deploy.cli import main
from fada_deploy.common.images import resize_frame
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.export.exporter import export_onnx


@pytest.fixture(scope="session")
def exported(
    trained: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> dict[str, Path]:
    """Return the fp32 files of a trained network by head; copy a file before changing it."""
    weights, heads = trained / "source" / "weights.safetensors", ("logits", "labels")

    def export(folder: Path) -> None:
        for head in heads:
            export_onnx(weights, folder / head / "model.onnx", head=head)

    folder = made_once("exported", export)
    return {head: folder / head / "model.onnx" for head in heads}


@pytest.fixture(scope="session")
def calibration(streets: Path) -> np.ndarray:
    """Return target frames at the network's input size, (8, H, W, 3) uint8 RGB."""
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="train", space=CITYSCAPES_19)
    return np.stack([resize_frame(dataset.image(i), (128, 192)) for i in range(8)])


@pytest.fixture
def fada() -> Callable[..., int]:
    """Return a function that runs `fada …` and returns the exit code."""

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        return int(caught.value.code or 0)

    return run
