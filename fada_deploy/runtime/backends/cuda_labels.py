"""Label maps and finished pictures made on a GPU, so that only they cross the bus and not the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import cuda_kernels as kernels
from fada_deploy.runtime.backends.base import Frames, Prediction
from fada_deploy.runtime.backends.cuda_stream import CudaStream

# Sizes and palettes whose tables are kept on the device; a film has one of each.
_KEPT = 8


class CudaLabeler:
    """The kernels, on one lane."""

    def __init__(self, lane: CudaStream) -> None:
        self._lane = lane
        with lane.entered():
            module = lane.cupy.RawModule(
                code=kernels.CUDA + kernels.SOURCE, options=kernels.OPTIONS
            )
            self._find_unusable = module.get_function("find_unusable")
            self._label_pixels = module.get_function("label_pixels")
            self._paint_pixels = module.get_function("paint_pixels")
        self._tables: dict[tuple[Any, ...], list[Any]] = {}

    def to_host(self, array: Any) -> NDArray[Any]:
        """Return a device array as one in ordinary memory."""
        return self._lane.to_host(array)[0]

    def labels(
        self, logits: Any, size_hw: tuple[int, int], *, align_corners: bool
    ) -> NDArray[np.uint8] | None:
        """Return labels (B, H, W) uint8 of logits (B, K, h, w) on the device, None where not all are usable."""
        with self._lane.entered():
            head, pixels, bad = self._before(logits, size_hw, align_corners)
            labels = self._lane.cupy.empty((len(logits), *size_hw), np.uint8)
            self._launch(self._label_pixels, pixels, (*head, labels))
        found, flag = self._lane.to_host(labels, bad)
        return None if flag[0] else found

    def overlay(
        self,
        logits: Any,
        frames_bhwc: Frames,
        palette: NDArray[np.uint8],
        alpha: float,
        *,
        align_corners: bool,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Return labels, and frames (B, H, W, 3) uint8 with colors over them, None if not all are usable."""
        size_hw = (frames_bhwc.shape[1], frames_bhwc.shape[2])
        with self._lane.entered():
            head, pixels, bad = self._before(logits, size_hw, align_corners)
            labels = self._lane.cupy.empty((len(logits), *size_hw), np.uint8)
            frames = self._lane.to_device(frames_bhwc)
            pictures = self._lane.cupy.empty_like(frames)
            blend = self._blend(palette, logits.shape[1], alpha)
            self._launch(self._paint_pixels, pixels, (*head, frames, blend, labels, pictures))
        found, drawn, flag = self._lane.to_host(labels, pictures, bad)
        return None if flag[0] else (found, drawn)

    def _before(
        self, logits: Any, size_hw: tuple[int, int], align_corners: bool
    ) -> tuple[tuple[Any, ...], int, Any]:
        """OverlayStyle for unusable logits; return the kernels' first arguments, the number of pixels, and the flag."""
        batch, classes, height, width = logits.shape
        bad = self._lane.cupy.zeros(1, np.int32)
        self._launch(
            self._find_unusable, logits.size, (logits, np.int64(logits.size), kernels.LARGEST, bad)
        )
        key = (height, width, *size_hw, align_corners)
        taps = self._table(
            key, lambda: kernels.taps_of((height, width), size_hw, align_corners=align_corners)
        )
        shape = map(np.int32, (batch, classes, height, width, *size_hw))
        return (logits, *shape, *taps), batch * size_hw[0] * size_hw[1], bad

    def _blend(self, palette: NDArray[np.uint8], classes: int, alpha: float) -> Any:
        key = (palette.tobytes(), classes, alpha)
        return self._table(key, lambda: [kernels.blend_table(palette, classes, alpha)])[0]

    def _table(self, key: tuple[Any, ...], make: Any) -> list[Any]:
        """Return arrays on the device, made once."""
        if key not in self._tables:
            if len(self._tables) >= _KEPT:
                self._tables.clear()
            self._tables[key] = [self._lane.to_device(array) for array in make()]
        return self._tables[key]

    def _launch(self, kernel: Any, count: int, arguments: tuple[Any, ...]) -> None:
        kernel((kernels.blocks(count),), (kernels.THREADS,), arguments)


class DevicePrediction(Prediction):
    """A prediction that lies on a GPU, and whose label maps and pictures are made there.

    What is asked for otherwise (logits, confidence, head `labels`) is copied and made by the shared code.
    """

    def __init__(self, output: Any, metadata: ModelMetadata, painter: CudaLabeler) -> None:
        super().__init__(output, metadata)
        self._painter = painter

    def __getitem__(self, index: int) -> DevicePrediction:
        """Return the prediction of one frame, a batch of one."""
        index = range(len(self))[index]
        return DevicePrediction(self._output[index : index + 1], self._metadata, self._painter)

    def _copied(self) -> Prediction:
        return Prediction(self._painter.to_host(self._output), self._metadata)

    def logits(self) -> NDArray[np.float32]:
        """Return (B, K, h, w) float32; see `Prediction.logits`."""
        return self._copied().logits()

    def labels(self, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class indices (B, H, W) uint8 at any size."""
        if self._metadata.head == "logits":
            corners = self._metadata.align_corners
            labels = self._painter.labels(self._output, size_hw, align_corners=corners)
            if labels is not None:
                return labels
        # The shared code also knows what to say of logits that are not finite.
        return self._copied().labels(size_hw)

    def confidence(self, size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return the winning class's softmax probability; see `Prediction.confidence`."""
        return self._copied().confidence(size_hw)

    def overlay(
        self, frames_bhwc: Frames, palette: NDArray[np.uint8], alpha: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return labels (B, H, W) and pictures (B, H, W, 3) uint8; see `Prediction.overlay`."""
        if self._metadata.head == "logits":
            drawn = self._painter.overlay(
                self._output,
                frames_bhwc,
                palette,
                alpha,
                align_corners=self._metadata.align_corners,
            )
            if drawn is not None:
                return drawn
        return self._copied().overlay(frames_bhwc, palette, alpha)
