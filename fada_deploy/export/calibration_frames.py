"""The target's own frames that an export is proven and calibrated on. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.recordings import open_recordings
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target

Say = Callable[[str], None]


def target_frames(
    provenance: Mapping[str, Any],
    space: LabelSpace,
    frames: Path | None,
    *,
    count: int,
    held_out: bool,
    purpose: str,
    say: Say,
) -> list[NDArray[np.uint8]]:
    """Return `count` frames (H, W, 3) uint8 RGB spread evenly over `frames`, or over the run's own target.

    Of the target the held-out frames, or those it was trained on. Raise `DataError` when there are none;
    what cannot be read is said and left out.
    """

    def left_out(error: DataError) -> None:
        say(f"left out of the {purpose}: {error}")

    dataset: FrameDataset
    # Frames of recordings are sampled into a folder, and read before it goes.
    with TemporaryDirectory() as cache:
        try:
            if frames is not None:
                dataset, _ = open_recordings(
                    frames, cache=Path(cache), space=space, left_out=left_out
                )
            else:
                config = RunConfig.from_dict(provenance["config"])
                train_set, validation = open_target(config, Path(cache), space, say, left_out)
                dataset = validation if held_out and validation is not None else train_set
        except (FadaError, KeyError) as error:
            why = "it names no run" if isinstance(error, KeyError) else error
            raise DataError(
                f"no frames for the {purpose}, so nothing is written; give --frames. {why}"
            ) from None
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        found: list[NDArray[np.uint8]] = []
        for i in chosen.tolist():
            try:
                found.append(dataset.image(i))
            except DataError as error:
                left_out(error)
    if not found:
        raise DataError(
            f"no frame for the {purpose} could be read, so nothing is written; give --frames"
        )
    return found
