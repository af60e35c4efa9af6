"""Styles of target frames on source frames, compared with OpenCV and NumPy's Fourier transform."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.data.recordings import open_recordings
from fada_deploy.training.data.samples import CroppedSourceSamples
from fada_deploy.training.data.style import (
    STYLES,
    StyleTransfer,
    match_statistics,
    swap_amplitude,
)
from fada_deploy.training.stage_config import DistillStage


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    """Return a dark smooth frame and a bright one of the same odd size."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 75, 101, 3), dtype=np.uint8)
    dark, bright = (cv2.GaussianBlur(frame, (0, 0), 4) for frame in frames)
    return dark // 2 + 20, bright // 2 + 110


def test_statistics_are_those_of_the_style(images: tuple[np.ndarray, np.ndarray]) -> None:
    frame, style = images
    got, want = (
        cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        for image in (match_statistics(frame, style), style)
    )
    np.testing.assert_allclose(got.mean(0), want.mean(0), atol=0.5)
    np.testing.assert_allclose(got.std(0), want.std(0), atol=0.5)
    assert np.abs(match_statistics(frame, frame).astype(int) - frame).max() <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.05, 0.09])
def test_amplitude_equals_the_transform_of_the_whole_frame(
    images: tuple[np.ndarray, np.ndarray], fraction: float
) -> None:
    """FDA as published: shift the spectrum, exchange its center, keep the phase."""
    frame, style = images
    own, other = (np.fft.fftshift(np.fft.fft2(i, axes=(0, 1)), axes=(0, 1)) for i in images)
    amplitude, phase = np.abs(own), np.angle(own)
    height, width = frame.shape[:2]
    b = int(fraction * min(height, width))
    rows = slice(height // 2 - b, height // 2 + b + 1)
    columns = slice(width // 2 - b, width // 2 + b + 1)
    amplitude[rows, columns] = np.abs(other)[rows, columns]
    spectrum = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(0, 1))
    want = np.fft.ifft2(spectrum, axes=(0, 1)).real
    got = swap_amplitude(frame, style, fraction=fraction)
    assert np.abs(got - np.clip(want, 0, 255)).max() <= 0.5 + 1e-6
    assert abs(got.mean() - style.mean()) < 2, "the lowest frequency is the mean"
    np.testing.assert_array_equal(swap_amplitude(frame, frame, fraction=fraction), frame)


@pytest.mark.parametrize("name", STYLES)
def test_half_of_the_frames_change_and_an_unreadable_style_is_skipped(
    name: str, blocks: Path, images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    target = open_dataset(str(blocks / "target.toml"), None, split="train", space=CITYSCAPES_19)
    transfer, frame = StyleTransfer(name, target), images[0]
    results = [transfer(frame, np.random.default_rng(seed)) for seed in range(60)]
    changed = [not np.array_equal(result, frame) for result in results]
    assert 18 <= sum(changed) <= 42 and all(result.shape == frame.shape for result in results)
    again = [transfer(frame, np.random.default_rng(seed)) for seed in range(60)]
    np.testing.assert_array_equal(results, again)

    broken = tmp_path / "frames"
    broken.mkdir()
    assert cv2.imwrite(str(broken / "a.png"), frame)
    frames, _ = open_recordings(
        broken, cache=tmp_path / "cache", space=CITYSCAPES_19, on_error=lambda error: None
    )
    (broken / "a.png").write_bytes(b"")
    unreadable = StyleTransfer(name, frames)
    for seed in range(10):
        assert unreadable(frame, np.random.default_rng(seed)) is frame


def test_source_frames_of_the_distillation_get_the_style(blocks: Path) -> None:
    source, target = (
        open_dataset(str(blocks / f"{domain}.toml"), None, split="train", space=CITYSCAPES_19)
        for domain in ("source", "target")
    )
    stage = DistillStage(size=(64, 96), crop=(48, 64))
    plain = CroppedSourceSamples(source, stage)
    styled = CroppedSourceSamples(source, stage, style=StyleTransfer("statistics", target))
    darker = 0
    for seed in range(20):
        (frame, labels, _), (other, same, _) = (
            s(0, np.random.default_rng(seed)) for s in (plain, styled)
        )
        assert frame.shape == other.shape == (48, 64, 3) and labels.shape == same.shape
        darker += other.mean() < 0.85 * frame.mean()  # as the frames of the target are
    assert 4 <= darker <= 16
