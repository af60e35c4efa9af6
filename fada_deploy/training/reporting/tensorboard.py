"""TensorBoard: a stage's numbers as they come, and now and then what its network sees on target frames.

`fada train --tensorboard`, then `tensorboard --logdir RUN/tensorboard`.
"""

from __future__ import annotations

from collections.abc import Mapping
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

if TYPE_CHECKING:
    from fada_deploy.training.loop import Parts


def require_tensorboard() -> None:
    """Raise `MissingExtraError` where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard") from None


class TensorBoardLogger:
    """Writes to `folder`, a folder a stage; `frames` are what the networks are shown on."""

    def __init__(
        self, folder: Path, frames: FrameDataset | None, device: torch.device, count: int = 3
    ) -> None:
        self._folder, self._device = folder, device
        self._frames = [] if frames is None else sample_frames(frames, count)[1]

    def callbacks(self, stage: str) -> dict[str, Any]:
        """Return a session's `watch` and `look` for a stage."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder / stage))

        def on_log(done: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, done)
            writer.flush()

        def on_visualize(done: int, parts: Parts) -> None:
            model, average = parts["model"], parts["average"]
            assert isinstance(model, SegmentationModel) and isinstance(average, AveragedWeights)
            # A copy: being looked at must not change what is being trained.
            shown = deepcopy(model)
            shown.load_state_dict(average.weights())
            predict, palette = Predictor(shown, self._device), shown.spec.space.palette
            for i, frame in enumerate(self._frames):
                drawn = overlay(frame, predict.labels([frame])[0], palette, 0.6)
                writer.add_image(f"target/{i}", np.hstack([frame, drawn]), done, dataformats="HWC")
            writer.flush()

        return {"on_log": on_log, "on_visualize": on_visualize}
