"""The color changes of a batch in PyTorch, against those of single frames in OpenCV and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_config
from torch import Tensor

import fada_deploy
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.data import open_dataset
from fada_deploy.training.data import loader as loader_module
from fada_deploy.training.data.augmentation import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    Augmentation,
    Photometry,
    apply_photometry,
    draw_photometry,
)
from fada_deploy.training.data.color_change import ColorChange, draw_color_change
from fada_deploy.training.data.color_kernels import change_batch, change_colors
from fada_deploy.training.data.loader import BatchLoader, Sample
from fada_deploy.training.data.run_data import RunData
from fada_deploy.training.data.samples import CroppedSourceSamples, SourceSamples
from fada_deploy.training.data.transforms import apply_jitter, draw_jitter
from fada_deploy.training.run import train
from fada_deploy.training.stage_config import DistillStage

IDENTITY = Photometry(np.eye(3), 0.0, 1.0, 0.0, 0.0, 0)
NO_JITTER = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Five frames of a street, with a size that is no multiple of a JPEG block."""
    path = Path(fada_deploy.__file__).parent / "samples" / "street.mp4"
    with av.open(str(path)) as container:
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack([frame[:151, :213] for frame in decoded[::12][:5]])


def changed(frames: np.ndarray, changes: list[ColorChange]) -> np.ndarray:
    """Return what the kernels make of frames."""
    return change_colors(torch.from_numpy(frames), changes).numpy()


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(brightness=0.5, contrast=0.5, saturation=0.5, channel_gain=0.17),
        Augmentation(gamma=0.5),
        Augmentation(blur=0.7),
    ],
    ids=["colors", "gamma", "blur"],
)
def test_photometry_is_that_of_opencv(frames: np.ndarray, augmentation: Augmentation) -> None:
    drawn = [draw_photometry(augmentation, np.random.default_rng(i)) for i in range(len(frames))]
    rng = np.random.default_rng(0)
    want = [apply_photometry(f, p, rng) for f, p in zip(frames, drawn, strict=True)]
    got = changed(frames, [ColorChange(p, (), 0) for p in drawn])
    error = np.abs(got.astype(int) - np.stack(want))
    assert error.max() <= 1 and error.mean() < 0.05
    # The largest error leaves most of the change.
    assert np.abs(got.astype(int) - frames).mean() > 0.4


@pytest.mark.parametrize("quality", [10, 40, 75, 95])
def test_jpeg_is_close_to_that_of_libjpeg(frames: np.ndarray, quality: int) -> None:
    change = replace(IDENTITY, jpeg_quality=quality)
    want = [apply_photometry(frame, change, np.random.default_rng(0)) for frame in frames]
    got = changed(frames, [ColorChange(change, (), 0)] * len(frames))
    error, loss = (np.abs(x.astype(int) - np.stack(want)).mean() for x in (got, frames))
    # Rounded differently by libjpeg, which computes with integers.
    assert error < 0.5 and (quality == 95 or error < 0.2 * loss)


def test_jpeg_compresses_only_the_frames_that_were_drawn(frames: np.ndarray) -> None:
    qualities = [0, 30, 0, 60, 0]
    got = changed(
        frames, [ColorChange(replace(IDENTITY, jpeg_quality=q), (), 0) for q in qualities]
    )
    for quality, before, after in zip(qualities, frames, got, strict=True):
        assert np.array_equal(before, after) == (quality == 0)


def test_noise_depends_on_the_seed_of_the_frame_alone() -> None:
    gray = np.full((3, 200, 200, 3), 128, np.uint8)
    changes = [ColorChange(replace(IDENTITY, noise_std=std), (), 7) for std in (2.0, 5.0, 0.0)]
    noisy = changed(gray, changes)
    deviations = [frame.astype(float).std() for frame in noisy]
    # Rounding adds a variance of 1/12.
    assert deviations[0] == pytest.approx((4 + 1 / 12) ** 0.5, rel=0.02)
    assert deviations[1] == pytest.approx((25 + 1 / 12) ** 0.5, rel=0.02)
    assert deviations[2] == 0 and abs(noisy[1].mean() - 128) < 0.05
    np.testing.assert_array_equal(changed(gray[:1], changes[1:2])[0], noisy[1])
    other = changed(gray[:1], [replace(changes[1], noise_seed=8)])
    assert not np.array_equal(other[0], noisy[1])


def test_jitter_is_that_of_a_single_frame(frames: np.ndarray) -> None:
    strength = (0.5, 0.5, 0.5, 0.2)
    for seed in range(4):
        jitter = [draw_jitter(strength, np.random.default_rng((seed, i))) for i in range(5)]
        want = np.stack([apply_jitter(f, steps) for f, steps in zip(frames, jitter, strict=True)])
        got = changed(frames, [ColorChange(None, steps, 0) for steps in jitter])
        error = np.abs(got.astype(int) - want)
        assert error.max() <= 1 and error.mean() < 0.01
        # In the first step at least, the frames have different changes.
        assert len({steps[0][0] for steps in jitter}) > 1


def test_none_changes_and_draws_nothing(frames: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert draw_color_change(NO_AUGMENTATION, NO_JITTER, rng) is None
    assert rng.bit_generator.state == state
    x = torch.from_numpy(frames)
    assert change_batch(x, [None] * len(frames)) is x


class Order:
    def __getitem__(self, position: int) -> int:
        return position % 3


def test_the_loader_changes_the_colors_of_a_batch(blocks: Path) -> None:
    """Up to rounding, batches are the same whether a sample or the loader changes the colors.

    Also what is drawn after the colors, such as the flip.
    """
    dataset = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13)
    # Without noise, whose random numbers differ, and JPEG, which amplifies rounding.
    augmentation = replace(AUGMENTATIONS["strong"], noise=0.0, jpeg=0.0, blur=0.0, gamma=0.0)
    stage = DistillStage(crop=(48, 64), size=(64, 96), jitter=(0.3, 0.3, 0.3, 0.1))

    def batch(samples: Callable[[int, np.random.Generator], Sample]) -> tuple[Tensor, Tensor]:
        loader = BatchLoader(samples, Order(), batch=3, seed=1, device=torch.device("cpu"))
        loaded = loader[1]
        loader.close()
        return loaded.frames_bhwc, loaded.labels

    for samples in (
        SourceSamples(dataset, (64, 96), stage.jitter, 0.5, augmentation),
        CroppedSourceSamples(dataset, replace(stage, flip=0.5), augmentation),
    ):
        now, labels = batch(samples)
        later, same_labels = batch(replace(samples, colors_later=True))
        assert torch.equal(labels, same_labels)
        error = (now.int() - later.int()).abs()
        assert error.max() <= 4 and error.float().mean() < 0.1


def test_samples_for_the_loader_have_the_original_colors(blocks: Path) -> None:
    dataset = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13)
    samples = SourceSamples(
        dataset, (64, 96), NO_JITTER, 1.0, AUGMENTATIONS["light"], colors_later=True
    )
    sample = samples(0, np.random.default_rng(3))
    unchanged = replace(samples, augmentation=replace(AUGMENTATIONS["light"], brightness=0.0))
    assert sample.colors is not None and sample.colors.photometry is not None
    assert not np.array_equal(sample.colors.photometry.matrix, np.eye(3))
    np.testing.assert_array_equal(sample.frame, unchanged(0, np.random.default_rng(3)).frame)
    plain = replace(samples, augmentation=NO_AUGMENTATION)(0, np.random.default_rng(3))
    assert plain.colors is None


def test_a_run_whose_loaders_change_the_colors_is_reproducible(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages, on a CPU as they run on a GPU."""
    calls = []

    def recorded(frames: Tensor, changes: list[ColorChange]) -> Tensor:
        calls.append(len(changes))
        return change_colors(frames, changes)

    monkeypatch.setattr(RunData, "_colors_later", True)
    monkeypatch.setattr(loader_module, "change_colors", recorded)
    stages = ("source", "adversarial", "selftrain", "distill")
    config = tiny_config(
        blocks,
        stages,
        "augment=strong",
        "distill.size=96x64",
        "distill.crop=96x64",
        "distill.source_weight=0.5",
        *(f"{stage}.iterations=2" for stage in stages),
    )
    weights = []
    for name in ("first", "again"):
        result = train(config, tmp_path / name, device=torch.device("cpu"))
        assert set(result.scores) == set(stages)
        weights.append(load_file(tmp_path / name / "distill" / "weights.safetensors"))
    # Source batches of four stages and pseudo-labeled batches of one, in two runs; loaders also
    # prepare batches that are not used.
    assert len(calls) >= 2 * 2 * 5 and set(calls) == {config.source.batch}
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
