"""Self-distillation: the adapted network labels the target's training frames, a fresh student learns them.

`fada train --stages distill`. Arg-max pseudo-labels without a threshold, at each frame's own size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_indices, write_png
from fada_deploy.common.labels import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.batches import Sample
from fada_deploy.training.config import DistillStage
from fada_deploy.training.predict import Predictor
from fada_deploy.training.transforms import color_jitter, flip, scale_and_crop


def pseudo_path(folder: Path, index: int) -> Path:
    """Return where the pseudo-label of a frame lies."""
    return folder / f"{index:06d}.png"


def write_pseudo_labels(predictor: Predictor, frames: FrameDataset, folder: Path) -> None:
    """Label every frame into `folder` as PNG of indices; those already there are kept.

    A frame that cannot be read gets no file; training passes over it and names it.
    """
    waiting = [i for i in range(len(frames)) if not pseudo_path(folder, i).is_file()]
    for i in tqdm(waiting, desc="pseudo-labels", unit="frame", disable=None, file=sys.stderr):
        try:
            frame = frames.image(i)
        except DataError:
            continue
        labels = predictor.labels([frame])[0]
        write_png(pseudo_path(folder, i), np.where(frames.ego(labels.shape), np.uint8(IGNORE), labels))


class PseudoLabelled:
    """Loads a target frame with its pseudo-label, scaled, cropped, jittered and mirrored."""

    def __init__(self, frames: FrameDataset, folder: Path, stage: DistillStage) -> None:
        self._frames, self._folder, self._stage = frames, folder, stage

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample; raise `DataError` when its frame cannot be read."""
        stage = self._stage
        frame = self._frames.image(index)
        labels = read_indices(pseudo_path(self._folder, index)).astype(np.uint8)
        frame, labels = scale_and_crop(
            frame, labels, size_hw=stage.size, scale=stage.scale, crop_hw=stage.crop, rng=rng
        )
        return flip(color_jitter(frame, stage.jitter, rng), labels, stage.flip, rng)
