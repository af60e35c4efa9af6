"""Pictures of predictions for HTML pages, embedded as JPEG."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy.common.images import resize_frame
from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.runtime.overlay.blend import overlay
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor, sample_frames

FIGURE_WIDTH = 320

Image = NDArray[np.uint8]


def picture_rows(
    networks: Mapping[str, SegmentationModel],
    dataset: FrameDataset,
    device: torch.device,
    count: int,
) -> dict[str, Any]:
    """Return one row of figures per frame: the frame, each prediction and the ground truth."""
    indices, frames = sample_frames(dataset, count)
    columns = [("target frame", frames)]
    for heading, model in networks.items():
        predictor = Predictor(model, device)
        # One by one, so that memory does not depend on the number of frames.
        labels = [predictor.labels([frame])[0] for frame in frames]
        columns.append((heading, _overlays(frames, labels, model.spec.space.palette)))
    palette = dataset.space.palette
    if dataset.labeled:
        truth = [
            np.full(frame.shape[:2], IGNORE, np.uint8)
            if dataset.pairs[i].labels is None
            else dataset.labels(i)
            for i, frame in zip(indices, frames, strict=True)
        ]
        columns.append(("ground truth", _overlays(frames, truth, palette)))
    return {
        "rows": [
            [_figure(caption, images[row]) for caption, images in columns]
            for row in range(len(frames))
        ],
        "legend": [
            {"name": name, "color": f"rgb({r}, {g}, {b})"}
            for name, (r, g, b) in zip(dataset.space.names, palette.tolist(), strict=False)
        ],
    }


def _overlays(
    frames: Sequence[Image], labels: Sequence[Image], palette: NDArray[np.uint8]
) -> list[Image]:
    return [overlay(frame, each, palette, 0.6) for frame, each in zip(frames, labels, strict=True)]


def _figure(caption: str, image: Image) -> dict[str, Any]:
    height = round(image.shape[0] * FIGURE_WIDTH / image.shape[1])
    small = cv2.cvtColor(resize_frame(image, (height, FIGURE_WIDTH)), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    source = f"data:image/jpeg;base64,{b64encode(data.tobytes()).decode()}"
    return {"caption": caption, "source": source, "width": FIGURE_WIDTH, "height": height}
