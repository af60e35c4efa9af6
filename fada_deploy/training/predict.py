"""The network as a function from frames to label maps, for evaluation, pseudo-labels and reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.interpolation import upsample
from fada_deploy.training.models.segmentation import SegmentationModel, find_backbone

Frame = NDArray[np.uint8]


def describe_views(scales: Sequence[float], flip: bool) -> str:
    """Say which views are averaged; nothing for the one plain view."""
    parts = [] if tuple(scales) == (1.0,) else [f"scales {', '.join(f'{s:g}' for s in scales)}"]
    return " + ".join([*parts, "mirror images"] if flip else parts)


def with_input_size(model: SegmentationModel, size_hw: tuple[int, int] | None) -> SegmentationModel:
    """Return the network with another input size; the same one when it has it, or None is asked for."""
    if size_hw is None or size_hw == model.spec.size_hw:
        return model
    resized = SegmentationModel(replace(model.spec, size_hw=size_hw))
    resized.load_state_dict(model.state_dict())
    return resized.to(next(model.parameters()).device).eval()


def sample_frames(frames: FrameDataset, count: int) -> tuple[list[int], list[Frame]]:
    """Return evenly spaced frames that can be read, and their numbers."""
    chosen, pictures = [], []
    for i in np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int).tolist():
        try:
            picture = frames.pair(i)[0] if frames.labeled else frames.image(i)
        except DataError:
            continue
        chosen.append(i)
        pictures.append(picture)
    return chosen, pictures


class Predictor:
    """`predict(frames)`: RGB frames of any size → label maps (H, W) uint8 at each frame's own size.

    With `scales` (factors of the network's input size) and `flip` the class probabilities of several
    views are averaged at the frame's size, as the papers' multi-scale scores are.
    """

    def __init__(
        self,
        model: SegmentationModel,
        device: torch.device,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self.model, self.device = model.eval(), device
        multiple = find_backbone(model.spec.backbone).multiple
        self._sizes = [_scaled(model.spec.size_hw, scale, multiple) for scale in scales]
        self._mirrored = (False, True) if flip else (False,)

    def logits(self, frames: Sequence[Frame]) -> Tensor:
        """Return float32 logits (B, K, h, w) at the network's own resolution, of the unscaled view."""
        return self._run(frames, self.model.spec.size_hw, mirrored=False)

    def labels(self, frames: Sequence[Frame]) -> list[NDArray[np.uint8]]:
        """Return label maps, each at its frame's own size."""
        views = [(size, mirrored) for size in self._sizes for mirrored in self._mirrored]
        logits = [self._run(frames, size, mirrored=mirrored) for size, mirrored in views]
        return [_winner([z[i : i + 1] for z in logits], frame) for i, frame in enumerate(frames)]

    @torch.inference_mode()
    def _run(self, frames: Sequence[Frame], size_hw: tuple[int, int], *, mirrored: bool) -> Tensor:
        resized = torch.from_numpy(np.stack([resize_frame(f, size_hw) for f in frames])).to(
            self.device
        )
        if not mirrored:
            logits: Tensor = self.model(resized)
            return logits
        return torch.flip(self.model(resized.flip(2)), dims=(3,))


def _winner(views: Sequence[Tensor], frame: Frame) -> NDArray[np.uint8]:
    """Return the class of the highest mean probability at the frame's size."""
    size_hw = (frame.shape[0], frame.shape[1])
    if len(views) == 1:
        # Softmax keeps the order.
        votes = upsample(views[0], size_hw)
    else:
        votes = torch.zeros((), device=views[0].device)
        for logits in views:
            votes = votes + F.softmax(upsample(logits, size_hw), dim=1)
    return votes.argmax(1)[0].to(torch.uint8).cpu().numpy()


def _scaled(size_hw: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    height, width = (max(8 * multiple, round(v * scale / multiple) * multiple) for v in size_hw)
    return height, width
