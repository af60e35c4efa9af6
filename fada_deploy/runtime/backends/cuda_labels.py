"""Label maps computed on the GPU, so that labels cross the bus instead of the larger logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DeviceError, MissingExtraError, one_line
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import cuda_kernels as kernels
from fada_deploy.runtime.backends.base import Prediction, import_backend
from fada_deploy.runtime.backends.cuda_stream import CudaStream

INSTALL_CUPY = "pip install 'cupy-cuda13x[ctk]' or 'cupy-cuda12x[ctk]'"
# Interpolation weights are cached on the device for this many sizes; a video has one size.
_MAX_CACHED_SIZES = 8


class CudaLabeler:
    """The CUDA kernels, compiled for one stream's device."""

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        with stream.entered():
            module = stream.cupy.RawModule(
                code=kernels.CUDA + kernels.SOURCE, options=kernels.OPTIONS
            )
            self._find_unusable = module.get_function("find_unusable")
            self._label_pixels = module.get_function("label_pixels")
        self._taps: dict[tuple[Any, ...], list[Any]] = {}

    def to_host(self, array: Any) -> NDArray[Any]:
        """Return a copy of a device array in host memory."""
        return self._stream.to_host(array)[0]

    def labels(
        self, logits: Any, size_hw: tuple[int, int], *, align_corners: bool
    ) -> NDArray[np.uint8] | None:
        """Return labels (B, H, W) uint8 in host memory for logits (B, K, h, w) on the device.

        None if a logit is not finite or too large.
        """
        batch, classes, height, width = logits.shape
        with self._stream.entered():
            bad = self._stream.cupy.zeros(1, np.int32)
            self._launch(
                self._find_unusable,
                logits.size,
                (logits, np.int64(logits.size), kernels.LARGEST, bad),
            )
            labels = self._stream.cupy.empty((batch, *size_hw), np.uint8)
            shape = map(np.int32, (batch, classes, height, width, *size_hw))
            taps = self._device_taps((height, width), size_hw, align_corners)
            pixels = batch * size_hw[0] * size_hw[1]
            self._launch(self._label_pixels, pixels, (logits, *shape, *taps, labels))
        host_labels, host_bad = self._stream.to_host(labels, bad)
        return None if host_bad[0] else host_labels

    def _device_taps(
        self, from_hw: tuple[int, int], size_hw: tuple[int, int], align_corners: bool
    ) -> list[Any]:
        """Return the interpolation weights on the device, from the cache if possible."""
        key = (from_hw, size_hw, align_corners)
        if key not in self._taps:
            if len(self._taps) >= _MAX_CACHED_SIZES:
                self._taps.clear()
            taps = kernels.kernel_taps(from_hw, size_hw, align_corners=align_corners)
            self._taps[key] = [self._stream.to_device(array) for array in taps]
        return self._taps[key]

    def _launch(self, kernel: Any, count: int, arguments: tuple[Any, ...]) -> None:
        kernel((kernels.num_blocks(count),), (kernels.THREADS,), arguments)


def open_labeler(index: int, extra: str = "tensorrt") -> tuple[CudaStream, CudaLabeler]:
    """Return a stream on a GPU and the kernels compiled for it.

    Raise `MissingExtraError`, which names the extra that installs CuPy, if it is missing, and
    `DeviceError` if it does not work.
    """
    try:
        stream = CudaStream(import_backend("cupy", extra), index)
        return stream, CudaLabeler(stream)
    except MissingExtraError:
        raise
    except Exception as error:  # of the driver, the compiler or the library loader
        raise DeviceError(
            f"cupy does not work on cuda:{index} ({one_line(error)}); it must match the CUDA "
            f"version of the driver and needs NVRTC: {INSTALL_CUPY}"
        ) from None


class DevicePrediction(Prediction):
    """A prediction in GPU memory whose label maps are computed there.

    For logits, confidence and head `labels`, the output is copied to the host and handled by
    `Prediction`.
    """

    def __init__(self, output: Any, metadata: ModelMetadata, labeler: CudaLabeler) -> None:
        super().__init__(output, metadata)
        self._labeler = labeler

    def __getitem__(self, index: int) -> DevicePrediction:
        """Return the prediction of one frame as a batch of one."""
        index = range(len(self))[index]
        return DevicePrediction(self._output[index : index + 1], self._metadata, self._labeler)

    def _on_host(self) -> Prediction:
        return Prediction(self._labeler.to_host(self._output), self._metadata)

    def logits(self) -> NDArray[np.float32]:
        """Return logits (B, K, h, w) float32; see `Prediction.logits`."""
        return self._on_host().logits()

    def labels(self, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class indices (B, H, W) uint8 at the given size."""
        if self._metadata.head == "logits":
            align_corners = self._metadata.align_corners
            labels = self._labeler.labels(self._output, size_hw, align_corners=align_corners)
            if labels is not None:
                return labels
        # The host code raises the error for logits that are not finite.
        return self._on_host().labels(size_hw)

    def confidence(self, size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return the softmax probability of the winning class; see `Prediction.confidence`."""
        return self._on_host().confidence(size_hw)
