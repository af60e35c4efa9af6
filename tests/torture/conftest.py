"""Inputs that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy


@pytest.fixture(scope="session")
def noise_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 60 frames that compress badly; `toy.onnx` lies beside it."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 128, 3), dtype=np.uint8) for _ in range(60)]
    toy.color_model(folder / "toy.onnx")
    return toy.write_video(folder / "noise.mp4", noise)
