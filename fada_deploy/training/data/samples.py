"""Samples of a batch: one frame with its labels, resized and augmented.

Each class here is the `load` function of a `BatchLoader`: it takes a frame index and a random
generator that is seeded for the position in the training, and raises `DataError` if the frame
cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import read_indices
from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.data.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    augment_geometry,
)
from fada_deploy.training.data.color_change import change_frame, draw_color_change
from fada_deploy.training.data.loader import Sample
from fada_deploy.training.data.style import StyleTransfer
from fada_deploy.training.data.transforms import flip, scale_and_crop
from fada_deploy.training.stage_config import DistillStage, Jitter, SizeHW


@dataclass(frozen=True)
class SourceSamples:
    """Labeled source frames: augmented, resized to `size_hw`, color-jittered, mirrored at random.

    `mirror` is the probability of a horizontal flip besides that of the augmentation. `style` gives
    some frames the style of the target. With `colors_later`, the loader changes the colors of the
    whole batch on its device.
    """

    frames: FrameDataset
    size_hw: SizeHW
    jitter: Jitter
    mirror: float = 0.0
    augmentation: Augmentation = NO_AUGMENTATION
    style: StyleTransfer | None = None
    colors_later: bool = False

    @property
    def ego(self) -> NDArray[np.bool_] | None:
        """The ego mask, (H, W) bool at `size_hw`; None if there is none or a zoom would move it."""
        if self.frames.ego_mask is None or self.augmentation != NO_AUGMENTATION:
            return None
        return self.frames.ego_mask_at(self.size_hw)

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the frame and its labels."""
        frame, labels = self.frames.pair(index, _cached_hw(self.size_hw, self.augmentation))
        frame, labels = augment_geometry(frame, labels, self.size_hw, self.augmentation, rng)
        if self.style is not None:
            frame = self.style(frame, rng)
        return _recolored(
            frame, labels, self.augmentation, self.jitter, self.mirror, rng, later=self.colors_later
        )


def _recolored(
    frame: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    augmentation: Augmentation,
    jitter: Jitter,
    mirror: float,
    rng: np.random.Generator,
    *,
    later: bool,
) -> Sample:
    """Return a sample with other colors, or what changes them `later`, mirrored at random."""
    change = draw_color_change(augmentation, jitter, rng)
    if later:
        return Sample(*flip(frame, labels, mirror, rng), change)
    return Sample(*flip(change_frame(frame, change), labels, mirror, rng))


def _cached_hw(size_hw: SizeHW, augmentation: Augmentation) -> SizeHW | None:
    """Return the size in which frames are read and cached; a zoom needs that of their files."""
    return size_hw if augmentation.zoom == (1.0, 1.0) else None


@dataclass(frozen=True)
class TargetSamples:
    """Target frames, zoomed, mirrored and resized to `size_hw`; their labels are never read.

    The target gets the geometric augmentation of the source, so that the discriminator cannot tell
    the domains apart by it, and keeps its colors. Frames with an ego mask are only resized, since
    a zoom would move the car's own body.
    """

    frames: FrameDataset
    size_hw: SizeHW
    augmentation: Augmentation = NO_AUGMENTATION

    @property
    def ego(self) -> NDArray[np.bool_] | None:
        """The mask of the car's own body, (H, W) bool at `size_hw`; None if there is none."""
        return None if self.frames.ego_mask is None else self.frames.ego_mask_at(self.size_hw)

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the frame, and labels that are 255 (ignore) everywhere."""
        augmentation = NO_AUGMENTATION if self.frames.ego_mask is not None else self.augmentation
        frame = self.frames.image(index, _cached_hw(self.size_hw, augmentation))
        ignored = np.full(frame.shape[:2], IGNORE, np.uint8)
        return Sample(*augment_geometry(frame, ignored, self.size_hw, augmentation, rng))


@dataclass(frozen=True)
class CroppedSourceSamples:
    """Labeled source frames with the scale, crop and colors of pseudo-labeled target frames."""

    frames: FrameDataset
    stage: DistillStage
    augmentation: Augmentation = NO_AUGMENTATION
    style: StyleTransfer | None = None
    colors_later: bool = False

    # The labels already ignore the car's own body, which moves with the crop.
    ego: None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a crop of the frame and of its labels."""
        frame, labels = _cropped(*self.frames.pair(index), self.stage, rng)
        if self.style is not None:
            frame = self.style(frame, rng)
        stage = self.stage
        return _recolored(
            frame, labels, self.augmentation, stage.jitter, stage.flip, rng, later=self.colors_later
        )


def _cropped(
    frame: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    stage: DistillStage,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return scale_and_crop(
        frame, labels, size_hw=stage.size, scale=stage.scale, crop_hw=stage.crop, rng=rng
    )


def pseudo_label_path(folder: Path, index: int) -> Path:
    """Return the path of the pseudo-label of a frame."""
    return folder / f"{index:06d}.png"


@dataclass(frozen=True)
class PseudoLabeledSamples:
    """Target frames with their pseudo-labels: scaled, cropped, augmented in color, mirrored."""

    frames: FrameDataset
    folder: Path
    stage: DistillStage
    augmentation: Augmentation = NO_AUGMENTATION
    colors_later: bool = False

    # The pseudo-labels already ignore the car's own body, which moves with the crop.
    ego: None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a crop of the frame and of its pseudo-label."""
        frame, stage = self.frames.image(index), self.stage
        # After the frame, whose error is the reason if there is no pseudo-label.
        labels = read_indices(pseudo_label_path(self.folder, index)).astype(np.uint8)
        frame, labels = _cropped(frame, labels, stage, rng)
        return _recolored(
            frame, labels, self.augmentation, stage.jitter, stage.flip, rng, later=self.colors_later
        )
