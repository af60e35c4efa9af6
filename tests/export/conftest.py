"""An export of a trained network, which the tests of precisions, engines and verification share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fada_deploy.cli import main
from fada_deploy.common.images import resize_frame
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.export.exporter import export


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the fp32 file of either head of a trained network; copy before you change one."""
    weights = trained / "source" / "weights.safetensors"
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for head in ("logits", "labels"):
        made[head] = export(
            weights, folder / head / "model.onnx", head=head, say=lambda line: None
        ).model
    return made


@pytest.fixture(scope="session")
def calibration(streets: Path) -> np.ndarray:
    """Return target frames at the network's size, (16, H, W, 3)."""
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="train", space=CITYSCAPES_19)
    return np.stack([resize_frame(dataset.image(i), (128, 192)) for i in range(16)])


@pytest.fixture
def fada() -> Callable[..., int]:
    """Return a function that runs a command line and returns its exit code."""

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        return int(caught.value.code or 0)

    return run
