"""Predict label maps with a trained network, for evaluation, pseudo-labels and parity checks."""

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
from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.training.interpolation import SizeHW, upsample
from fada_deploy.training.models.segmentation import SegmentationModel, find_backbone

Frame = NDArray[np.uint8]


def describe_views(scales: Sequence[float], flip: bool) -> str:
    """Return a description of the averaged views, empty for the single original view."""
    parts = []
    if tuple(scales) != (1.0,):
        parts.append(f"scales {', '.join(f'{s:g}' for s in scales)}")
    if flip:
        parts.append("horizontal flip")
    return " + ".join(parts)


def with_input_size(model: SegmentationModel, size_hw: SizeHW | None) -> SegmentationModel:
    """Return the network with another input size (height, width).

    Return `model` itself if `size_hw` is None or its own size.
    """
    if size_hw is None or size_hw == model.spec.size_hw:
        return model
    resized = SegmentationModel(replace(model.spec, size_hw=size_hw))
    resized.load_state_dict(model.state_dict())
    return resized.to(next(model.parameters()).device).eval()


def sample_frames(dataset: FrameDataset, count: int) -> tuple[list[int], list[Frame]]:
    """Return indices and images of up to `count` evenly spaced frames; skip unreadable ones."""
    indices, frames = [], []
    for i in evenly_spaced(len(dataset), count):
        try:
            frame = dataset.image(i) if dataset.pairs[i].labels is None else dataset.pair(i)[0]
        except DataError:
            continue
        indices.append(i)
        frames.append(frame)
    return indices, frames


class Predictor:
    """Predict label maps for RGB frames of any size, optionally averaged over several views.

    `scales` are factors of the network's input size; `flip` adds the mirrored frame. With more than
    one view, the class probabilities are averaged at the size of the frame. The model is put into
    evaluation mode.
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
        self._sizes = [scaled_size(model.spec.size_hw, scale, multiple) for scale in scales]
        self._flips = (False, True) if flip else (False,)

    def logits(self, frames: Sequence[Frame]) -> Tensor:
        """Return logits (B, K, h, w) at the network's own resolution, for the original view."""
        return self._forward(frames, self.model.spec.size_hw, flip=False)

    def labels(self, frames: Sequence[Frame], *, threshold: float = 0.0) -> list[NDArray[np.uint8]]:
        """Return one label map (H, W) uint8 of class indices per frame, at the frame's size.

        Pixels whose probability is below `threshold` are 255.
        """
        views = [(size_hw, flip) for size_hw in self._sizes for flip in self._flips]
        logits = [self._forward(frames, size_hw, flip=flip) for size_hw, flip in views]
        return [
            _label_map(
                [view[i : i + 1] for view in logits], (frame.shape[0], frame.shape[1]), threshold
            )
            for i, frame in enumerate(frames)
        ]

    @torch.inference_mode()
    def _forward(self, frames: Sequence[Frame], size_hw: SizeHW, *, flip: bool) -> Tensor:
        resized = np.stack([resize_frame(frame, size_hw) for frame in frames])
        batch = torch.from_numpy(resized).to(self.device)
        if not flip:
            logits: Tensor = self.model(batch)
            return logits
        return torch.flip(self.model(batch.flip(2)), dims=(3,))


def _label_map(views: Sequence[Tensor], size_hw: SizeHW, threshold: float) -> NDArray[np.uint8]:
    """Return the class of the highest mean probability over views (1, K, h, w)."""
    if len(views) == 1 and not threshold:
        # Softmax does not change the argmax.
        scores = upsample(views[0], size_hw)
    else:
        scores = torch.zeros((), device=views[0].device)
        for logits in views:
            scores = scores + F.softmax(upsample(logits, size_hw), dim=1)
    best, classes = scores.max(1)
    if threshold:
        classes = classes.masked_fill(best < threshold * len(views), IGNORE)
    return classes[0].to(torch.uint8).cpu().numpy()


def scaled_size(size_hw: SizeHW, scale: float, multiple: int) -> SizeHW:
    """Return the scaled size, rounded to a multiple and at least 8 multiples per side."""
    height, width = (max(8 * multiple, round(v * scale / multiple) * multiple) for v in size_hw)
    return height, width
