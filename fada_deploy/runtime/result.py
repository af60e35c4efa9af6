"""The segmentation of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.images import write_image
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.system import require_package
from fada_deploy.runtime.overlay.blend import class_fractions, colorize
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle

Image = NDArray[np.uint8]
RESULT_KINDS = ("overlay", "mask", "color")


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The labels of one frame, and where the frame comes from.

    Results compare and hash by identity.

    Attributes:
        labels: (H, W) uint8 class indices of `space`, at the frame's own size.
        frame: (H, W, 3) uint8 image in the channel order `color`. An array that was passed to
            `Segmenter.predict` is not copied: it changes with the caller's buffer.
        space: The label space of the model.
        captured: `time.monotonic()` when the frame was read.
        latency_s: Seconds from `captured` until the labels were ready, without the time that the
            result waited for the caller. In a list of images it counts from the call of `predict`.
        color: Channel order of `frame`, "rgb" or "bgr".
        source: Name of the source: the path of a file or folder, or `LiveSource.name`; "" for an
            image that was passed to `Segmenter.predict`.
        index: Number of the frame within the source, from 0. Each file of a glob is a source.
        item: Name of the frame within the source; "" if the source is a single image.
        pts: Presentation timestamp in units of `time_base`; None for still images.
        time_base: Seconds per unit of `pts`; None for still images.
        confidence: (H, W) float32 softmax probability of each pixel's class, from 1/K to 1, if
            requested.
        decoded: The PyAV frame that `frame` was converted from, if an overlay can be drawn in its
            YUV planes.
    """

    labels: Image
    frame: Image
    space: LabelSpace
    captured: float
    latency_s: float
    color: str = "rgb"
    source: str = ""
    index: int = 0
    item: str = ""
    pts: int | None = None
    time_base: Fraction | None = None
    confidence: NDArray[np.float32] | None = None
    decoded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # The PyAV frame cannot be pickled; without it an overlay is drawn in RGB.
        return {**self.__dict__, "decoded": None}

    def __repr__(self) -> str:
        height, width = self.labels.shape
        origin = f"{self.source!r} frame {self.index}, " if self.source else ""
        return f"Result({origin}{width}x{height}, latency {1000 * self.latency_s:.1f} ms)"

    @property
    def time_s(self) -> float | None:
        """Timestamp in seconds within the source; None for still images."""
        if self.pts is None or self.time_base is None:
            return None
        return float(self.pts * self.time_base)

    @property
    def fractions(self) -> dict[str, float]:
        """Fraction of the pixels of each class by class name, in label-space order; sums to 1."""
        values = class_fractions(self.labels, self.space.num_classes)
        return dict(zip(self.space.names, values.tolist(), strict=True))

    def overlay(self, style: OverlayStyle | None = None) -> Image:
        """Return the frame with the class colors blended over it, in the order `color`.

        The default style has no legend. For a video use one `OverlayRenderer`, which keeps the
        legend stable from frame to frame.
        """
        return OverlayRenderer(style or OverlayStyle(legend="none"), self.space).draw(self)

    def save(self, path: str | Path, *, kind: str = "overlay") -> Path:
        """Write an image file and return its path.

        Args:
            path: A .png, .jpg or .jpeg file; its folder is created.
            kind: "overlay": the frame with class colors. "mask": trainIds (H, W), PNG only.
                "color": the class colors alone.

        Raises:
            UsageError: The kind is unknown or does not fit the file suffix.
            DataError: The file cannot be written.
        """
        path = Path(path)
        if kind not in RESULT_KINDS:
            raise UsageError(f"kind must be one of {', '.join(RESULT_KINDS)}, got {kind!r}")
        if kind == "mask":
            if path.suffix.lower() != ".png":
                raise UsageError(f"{path}: a mask needs the suffix .png, because JPEG changes ids")
            image = np.asarray(cv2.LUT(self.labels, self.space.to_train_ids), np.uint8)
        elif kind == "color":
            image = colorize(self.labels, self.space.palette)
        else:
            image = self.overlay()
            if self.color == "bgr":
                image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        write_image(path, image)
        return path

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` with one mask (H, W) bool per class in the frame.

        Each detection has the bounding box of its mask, the class index as `class_id`, the class
        name as `data["class_name"]`, and the mean confidence if it was requested.

        Raises:
            MissingExtraError: The package `supervision` is not installed.
        """
        require_package("supervision", "supervision")
        from supervision import Detections

        present = np.unique(self.labels[self.labels < self.space.num_classes])
        masks = self.labels[None] == present[:, None, None]
        boxes = [cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]
        confidence = None
        if self.confidence is not None:
            confidence = np.array([float(self.confidence[mask].mean()) for mask in masks])
        return Detections(
            xyxy=np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], float).reshape(-1, 4),
            mask=masks,
            class_id=present.astype(int),
            confidence=confidence,
            data={"class_name": np.array([self.space.names[i] for i in present])},
        )
