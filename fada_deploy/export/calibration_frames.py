"""Frames of the target domain for reference outputs and int8 calibration. Does not import torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.runs import CHECKPOINTS, CONFIG, STAGES
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.recordings import open_recordings
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target

logger = logging.getLogger(__name__)


def target_frames(
    provenance: Mapping[str, Any],
    space: LabelSpace,
    path: Path | None,
    *,
    count: int,
    held_out: bool,
    purpose: str,
) -> list[NDArray[np.uint8]]:
    """Return up to `count` evenly spaced frames, (H, W, 3) uint8 RGB.

    They come from the images or video at `path`, or, if that is None, from the target of the run
    that `provenance` describes: from its held-out frames if `held_out` and if there are any,
    otherwise from its training frames. Frames that cannot be read are skipped with a warning that
    names `purpose`. Raise `DataError` if no frame can be read.
    """

    def skip(error: DataError) -> None:
        logger.warning("skipped a frame for the %s: %s", purpose, error)

    dataset: FrameDataset
    # Frames of videos are extracted into this folder, so they are read before it is deleted.
    with TemporaryDirectory() as cache:
        try:
            if path is not None:
                dataset, _ = open_recordings(path, cache=Path(cache), space=space, on_error=skip)
            else:
                config = RunConfig.from_dict(provenance["config"])
                train_set, validation = open_target(config, Path(cache), space, skip)
                dataset = validation if held_out and validation is not None else train_set
        except (FadaError, KeyError) as error:
            reason = "the file names no run" if isinstance(error, KeyError) else error
            raise DataError(
                f"no frames for the {purpose} ({reason}); name images or a video with --calibration"
            ) from None
        indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        frames: list[NDArray[np.uint8]] = []
        for i in indices.tolist():
            try:
                frames.append(dataset.image(i))
            except DataError as error:
                skip(error)
    if not frames:
        raise DataError(
            f"none of {len(indices)} frames for the {purpose} could be read; name other images or "
            "another video with --calibration"
        )
    return frames


def local_provenance(file: Path, provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the provenance with the settings of the run that a file is in, if there is one.

    Unlike those in an exported file, they say where the data is.
    """
    folder = file.absolute().parent
    if folder.name == CHECKPOINTS:
        folder = folder.parent
    if folder.name not in ("export", *STAGES):
        return provenance
    try:
        config = json.loads((folder.parent / CONFIG).read_text("utf-8"))
        RunConfig.from_dict(config)
    except (OSError, ValueError, FadaError):
        return provenance
    return {**provenance, "config": config}
