"""What a batch is made of: one frame with its labels, resized and augmented.

Each loader is called with a frame's number and a generator seeded for its place in the order, and
raises `DataError` when the frame cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import read_indices, resize_frame, resize_labels
from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.config import DistillStage, Jitter, SizeHW
from fada_deploy.training.data.loader import Sample
from fada_deploy.training.data.transforms import color_jitter, flip, scale_and_crop


@dataclass(frozen=True)
class SourceSamples:
    """Labeled source frames at `size_hw`, jittered, and mirrored with a probability."""

    frames: FrameDataset
    size_hw: SizeHW
    jitter: Jitter
    mirror: float = 0.0

    @property
    def ego(self) -> NDArray[np.bool_] | None:
        """Where the car itself is in every sample, (H, W) bool, or None."""
        return None if self.frames.ego_mask is None else self.frames.ego(self.size_hw)

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample."""
        frame, labels = self.frames.pair(index)
        frame = color_jitter(resize_frame(frame, self.size_hw), self.jitter, rng)
        return flip(frame, resize_labels(labels, self.size_hw), self.mirror, rng)


@dataclass(frozen=True)
class TargetSamples:
    """Target frames at `size_hw`; their labels are never read."""

    frames: FrameDataset
    size_hw: SizeHW

    @property
    def ego(self) -> NDArray[np.bool_] | None:
        """Where the car itself is in every sample, (H, W) bool, or None."""
        return None if self.frames.ego_mask is None else self.frames.ego(self.size_hw)

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the frame with nothing but ignored labels."""
        frame = resize_frame(self.frames.image(index), self.size_hw)
        return frame, np.full(self.size_hw, IGNORE, np.uint8)


def pseudo_path(folder: Path, index: int) -> Path:
    """Return where the pseudo-label of a frame lies."""
    return folder / f"{index:06d}.png"


@dataclass(frozen=True)
class PseudoLabeled:
    """Target frames with their pseudo-labels, scaled, cropped, jittered and mirrored."""

    frames: FrameDataset
    folder: Path
    stage: DistillStage

    # The car itself is ignored in the pseudo-labels already, and moves with them.
    ego: None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample."""
        stage = self.stage
        frame = self.frames.image(index)
        labels = read_indices(pseudo_path(self.folder, index)).astype(np.uint8)
        frame, labels = scale_and_crop(
            frame, labels, size_hw=stage.size, scale=stage.scale, crop_hw=stage.crop, rng=rng
        )
        return flip(color_jitter(frame, stage.jitter, rng), labels, stage.flip, rng)
