"""Frames of the target domain for reference outputs and int8 calibration. Does not import torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.runs import CHECKPOINTS, CONFIG, EXPORTS, STAGES, TARGET_FRAMES
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.data.recordings import is_sampled, open_recordings
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetOfRun:
    """The target of a run: its provenance, and the folder with the frames of its videos, if any."""

    provenance: Mapping[str, Any]
    frames: Path | None = None


def target_frames(
    target: TargetOfRun,
    space: LabelSpace,
    path: Path | None,
    *,
    count: int,
    held_out: bool,
    purpose: str,
) -> list[NDArray[np.uint8]]:
    """Return up to `count` evenly spaced frames, (H, W, 3) uint8 RGB.

    They come from the images or video at `path`, or, if that is None, from the target of a run:
    from its held-out frames if `held_out` and if there are any, otherwise from its training frames.
    Frames that cannot be read are skipped with a warning that names `purpose`. Raise `DataError` if
    no frame can be read.
    """

    def skip(error: DataError) -> None:
        logger.warning("skipped a frame for the %s: %s", purpose, error)

    dataset: FrameDataset
    # Frames of videos are extracted into this folder, so they are read before it is deleted.
    with TemporaryDirectory() as folder:
        cache = Path(folder)
        if path is None and target.frames is not None:
            _link_sampled(target.frames, cache)
        try:
            if path is not None:
                dataset, _ = open_recordings(path, cache=cache, space=space, on_error=skip)
            else:
                config = RunConfig.from_dict(target.provenance["config"])
                train_set, validation = open_target(config, cache, space, skip)
                dataset = validation if held_out and validation is not None else train_set
        except (FadaError, KeyError) as error:
            reason = "the file names no run" if isinstance(error, KeyError) else error
            raise DataError(
                f"no frames for the {purpose} ({reason}); name images or a video with --calibration"
            ) from None
        indices = evenly_spaced(len(dataset), count)
        frames: list[NDArray[np.uint8]] = []
        for i in indices:
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


def _link_sampled(frames: Path, cache: Path) -> None:
    """Link what a run has sampled completely into a folder; nothing is written into the run."""
    for entry in frames.iterdir():
        if entry.is_file() or is_sampled(entry):
            (cache / entry.name).symlink_to(entry.resolve())


def target_of(file: Path, provenance: Mapping[str, Any]) -> TargetOfRun:
    """Return the target of the run that a weights file or an exported file comes from.

    If the file is in the folder of a run, the settings are those of the run: unlike those in an
    exported file, they say where the data is.
    """
    folder = file.absolute().parent
    if folder.name == CHECKPOINTS:
        folder = folder.parent
    if folder.name not in (EXPORTS, *STAGES):
        return TargetOfRun(provenance)
    try:
        config = json.loads((folder.parent / CONFIG).read_text("utf-8"))
        RunConfig.from_dict(config)
    except (OSError, ValueError, FadaError):
        return TargetOfRun(provenance)
    frames = folder.parent / TARGET_FRAMES
    return TargetOfRun({**provenance, "config": config}, frames if frames.is_dir() else None)
