"""Self-distillation: the adapted network labels the target's training frames, a fresh student learns them.

`fada train --stages distill`. Arg-max pseudo-labels without a threshold, at each frame's own size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.training import distributed
from fada_deploy.training.data.samples import pseudo_path
from fada_deploy.training.predict import Predictor


def write_pseudo_labels(predictor: Predictor, frames: FrameDataset, folder: Path) -> None:
    """Label every frame into `folder` as PNG of indices; those already there are kept.

    A frame that cannot be read gets no file; training passes over it and names it.
    """
    mine = [i for i in range(len(frames)) if i % distributed.size() == distributed.rank()]
    waiting = [i for i in mine if not pseudo_path(folder, i).is_file()]
    silent = None if distributed.is_main() else True
    for i in tqdm(waiting, desc="pseudo-labels", unit="frame", disable=silent, file=sys.stderr):
        try:
            frame = frames.image(i)
        except DataError:
            continue
        labels = predictor.labels([frame])[0]
        write_png(
            pseudo_path(folder, i), np.where(frames.ego(labels.shape), np.uint8(IGNORE), labels)
        )
    distributed.wait()
