"""TensorBoard: the metrics of each stage, and predictions on a few target frames.

Written by `fada train --tensorboard`; shown by `tensorboard --logdir RUN/tensorboard`.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fada_deploy.common.errors import MissingExtraError
from fada_deploy.data.base import FrameDataset
from fada_deploy.runtime.overlay.blend import overlay
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import AveragedWeights
from fada_deploy.training.predict import Predictor, sample_frames

# How many frames predictions are drawn on.
_FRAMES = 3

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fada_deploy.training.loop import Metrics, TrainingState


def require_tensorboard() -> None:
    """Raise `MissingExtraError` if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard") from None


class TensorBoardLogger:
    """Write metrics and predictions of each stage to a subfolder of `folder`.

    Predictions are drawn on some frames spread evenly over `frames`; None draws none.
    """

    def __init__(self, folder: Path, frames: FrameDataset | None, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._frames = [] if frames is None else sample_frames(frames, _FRAMES)[1]
        self._writer: SummaryWriter | None = None

    def callbacks(self, stage: str) -> dict[str, Any]:
        """Return the `TrainingLoop` callbacks `on_log` and `on_visualize` of a stage."""
        self.close()

        def on_log(iteration: int, metrics: Metrics) -> None:
            writer = self._open(stage, iteration)
            for name, value in metrics.items():
                writer.add_scalar(name, value, iteration)
            writer.flush()

        def on_visualize(iteration: int, state: TrainingState) -> None:
            model, average = state["model"], state["average"]
            assert isinstance(model, SegmentationModel) and isinstance(average, AveragedWeights)
            # A copy, because prediction switches the network to evaluation mode.
            averaged_model = deepcopy(model)
            averaged_model.load_state_dict(average.weights())
            predictor = Predictor(averaged_model, self._device)
            palette = averaged_model.spec.space.palette
            writer = self._open(stage, iteration)
            for i, frame in enumerate(self._frames):
                drawn = overlay(frame, predictor.labels([frame])[0], palette, 0.6)
                writer.add_image(
                    f"target/{i}", np.hstack([frame, drawn]), iteration, dataformats="HWC"
                )
            writer.flush()

        return {"on_log": on_log, "on_visualize": on_visualize}

    def _open(self, stage: str, iteration: int) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A killed stage may have logged iterations after the state from which it resumes.
            self._writer = SummaryWriter(str(self._folder / stage), purge_step=iteration)
        return self._writer

    def close(self) -> None:
        """Close the files of a finished stage."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
