"""Self-distillation: the adapted network labels the target's training frames for a new student.

`fada train --stages distill`. The pseudo-labels are the argmax without a confidence threshold, at
the size of each frame.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import IGNORE
from fada_deploy.common.progress import progress_bar
from fada_deploy.data.base import FrameDataset
from fada_deploy.training import distributed
from fada_deploy.training.data.samples import pseudo_label_path
from fada_deploy.training.predict import Predictor


def write_pseudo_labels(predictor: Predictor, frames: FrameDataset, folder: Path) -> None:
    """Write the predicted class indices of every frame to `folder` as PNG; keep existing files.

    Unreadable frames get no file; the data loader skips and reports them later. Under `torchrun`
    the processes divide the frames among them.
    """
    own = range(distributed.rank(), len(frames), distributed.world_size())
    missing = [i for i in own if not pseudo_label_path(folder, i).is_file()]
    with progress_bar(len(missing), "pseudo-labels", unit="frame") as bar:
        for i in missing:
            bar.update()
            with suppress(DataError):
                write_pseudo_label(predictor, frames, folder, i)
    distributed.barrier()


def write_pseudo_label(predictor: Predictor, frames: FrameDataset, folder: Path, i: int) -> None:
    """Write the predicted class indices of a frame; raise `DataError` if it cannot be read."""
    labels = predictor.labels([frames.image(i)])[0]
    labels = np.where(frames.ego_mask_at(labels.shape), np.uint8(IGNORE), labels)
    write_png(pseudo_label_path(folder, i), labels)
