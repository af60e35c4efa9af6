"""The network as a function from frames to label maps, for evaluation, pseudo-labels and proof."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy.common.images import resize_frame
from fada_deploy.training.losses import upsample
from fada_deploy.training.models.segmenter import Segmenter

Frame = NDArray[np.uint8]


class Predictor:
    """`predict(frames)`: RGB frames of any size → label maps (H, W) uint8 at each frame's own size."""

    def __init__(self, model: Segmenter, device: torch.device) -> None:
        self.model, self.device = model.eval(), device

    def logits(self, frames: Sequence[Frame]) -> torch.Tensor:
        """Return float32 logits (B, K, h, w) at the network's own resolution."""
        resized = np.stack([resize_frame(f, self.model.spec.size_hw) for f in frames])
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.from_numpy(resized).to(self.device))
        return logits

    def labels(self, frames: Sequence[Frame]) -> list[NDArray[np.uint8]]:
        """Return label maps, each at its frame's own size."""
        return [
            upsample(z[None], (f.shape[0], f.shape[1])).argmax(1)[0].to(torch.uint8).cpu().numpy()
            for z, f in zip(self.logits(frames), frames, strict=True)
        ]
