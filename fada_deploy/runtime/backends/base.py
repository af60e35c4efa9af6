"""The interface of a backend, the outputs of one run, and functions that all backends share."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import (
    DeviceError,
    MissingExtraError,
    ModelError,
    UsageError,
    one_line,
)
from fada_deploy.common.images import resize_labels
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.kernels.upsample import confidence_from_logits, labels_from_logits

Frames = NDArray[np.uint8]


class Prediction:
    """The network's output for a batch; label maps and confidence are computed on demand.

    `output` is the output of the model's head in host memory: logits (B, K, h, w) float, or labels
    (B, H, W) uint8.
    """

    def __init__(self, output: NDArray[np.generic], metadata: ModelMetadata) -> None:
        self._output = output
        self._metadata = metadata

    def __len__(self) -> int:
        return len(self._output)

    def __getitem__(self, index: int) -> Prediction:
        """Return the prediction of one frame as a batch of one."""
        return Prediction(
            self._output[index : index + 1] if index >= 0 else self._output[[index]], self._metadata
        )

    def logits(self) -> NDArray[np.float32]:
        """Return logits (B, K, h, w) float32 at the network's output resolution.

        Raise `ModelError` if the model has head `labels`.
        """
        if self._metadata.head != "logits":
            raise ModelError(
                "this model has head `labels` and outputs no logits; export it with --head logits"
            )
        return self._output.astype(np.float32, copy=False)

    def labels(self, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class indices (B, H, W) uint8 at the given size.

        Raise `ModelError` if a logit is not finite.
        """
        if self._metadata.head == "labels":
            return np.stack(
                [resize_labels(m.astype(np.uint8, copy=False), size_hw) for m in self._output]
            )
        align_corners = self._metadata.align_corners
        labels = np.empty((len(self), *size_hw), np.uint8)
        for logits, target in zip(self.logits(), labels, strict=True):
            labels_from_logits(logits, size_hw, align_corners=align_corners, out=target)
        return labels

    def confidence(self, size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return the softmax probability of the winning class (B, H, W) float32 at the given size.

        Raise `ModelError` if the model has head `labels`.
        """
        align_corners = self._metadata.align_corners
        return np.stack(
            [
                confidence_from_logits(logits, size_hw, align_corners=align_corners)
                for logits in self.logits()
            ]
        )


class Backend(Protocol):
    """A model opened with an inference library on a device; safe to use from several threads.

    `parallel` calls of `submit` run at the same time; further calls wait.
    """

    name: str
    device: str
    metadata: ModelMetadata
    parallel: int

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB at the network's input size.

        A model with fixed batch N takes at most N frames; fewer are padded. Raise `UsageError` for
        frames that do not fit, `ModelError` if the run fails.
        """
        ...

    def close(self) -> None:
        """Release the model and its memory."""
        ...


def cuda_index(device: str | int) -> int | None:
    """Return the GPU number of a device: N for "cuda:N", "N" or N; 0 for "cuda".

    Return None for "cpu" and "auto". Raise `UsageError` for anything else.
    """
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    if isinstance(device, str):
        number = "0" if device == "cuda" else device.removeprefix("cuda:")
        if number.isascii() and number.isdigit():
            return int(number)
        if device in ("auto", "cpu"):
            return None
    raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")


def cuda_unavailable_error(backend: str, index: int, reason: str) -> DeviceError:
    """Return the error for a requested CUDA device that a backend cannot use."""
    missing = "no NVIDIA GPU was found, and " if find_gpu(index) is None else ""
    other = "install" if backend == "onnxruntime" else "use --backend onnxruntime with"
    return DeviceError(
        f"cuda:{index} is not available: {missing}{backend} {reason}; use --device cpu, or {other} "
        "CUDA support: pip install onnxruntime-gpu (and uninstall onnxruntime)"
    )


def import_backend(package: str, extra: str) -> Any:
    """Import the package of a backend.

    Raise `MissingExtraError` if it is not installed, `DeviceError` if it fails to load.
    """
    # Without this, ONNX Runtime writes a device id and a usage database to the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with _without_telemetry() if package == "openvino" else nullcontext():
            return importlib.import_module(package)
    except ModuleNotFoundError:
        raise MissingExtraError(package, extra) from None
    except ImportError as error:
        # For example a missing shared library.
        raise DeviceError(
            f"{package} is installed but does not load ({one_line(error)}); reinstall it"
        ) from None


_openvino_import = threading.Lock()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO as if its package for telemetry was not installed.

    With it, the import sends usage data to the Internet and stores an id in the home folder.
    """
    package = "openvino_telemetry"
    # Backends may be opened in several threads.
    with _openvino_import:
        if package in sys.modules:
            yield
            return
        sys.modules[package] = None  # type: ignore[assignment]  # an import raises ImportError
        try:
            yield
        finally:
            sys.modules.pop(package, None)


def closed_model_error(where: str) -> ModelError:
    """Return the error for a model that is used after it was closed."""
    return ModelError(f"{where} is closed; use it inside its `with` block, or open it again")


def pad_batch(frames_bhwc: Frames, metadata: ModelMetadata) -> Frames:
    """Check frames against the model's input and pad a short batch with its last frame.

    Raise `UsageError` if shape, dtype or number of frames do not fit.
    """
    expected = (*metadata.input_size_hw, 3)
    if frames_bhwc.dtype != np.uint8 or frames_bhwc.ndim != 4 or frames_bhwc.shape[1:] != expected:
        raise UsageError(
            f"frames must be uint8 of shape (B, {', '.join(map(str, expected))}), "
            f"got {frames_bhwc.dtype} {frames_bhwc.shape}"
        )
    count, batch = len(frames_bhwc), metadata.batch
    if count == 0 or (batch is not None and count > batch):
        allowed = "at least 1 frame" if batch is None else f"1 to {batch} frames"
        raise UsageError(f"a batch must have {allowed}, got {count}")
    if batch is None or count == batch:
        return np.ascontiguousarray(frames_bhwc)
    return np.concatenate([frames_bhwc, np.repeat(frames_bhwc[-1:], batch - count, axis=0)])


def unpad_output(output: Any, count: int, metadata: ModelMetadata, where: str) -> Any:
    """Return the first `count` items of an output array on any device.

    Raise `ModelError` if the shape differs from what the metadata describes.
    """
    output = output[:count]
    if metadata.head == "logits":
        valid = output.ndim == 4 and output.shape[1] == metadata.label_space.num_classes
        expected = f"(B, {metadata.label_space.num_classes}, h, w)"
    else:
        valid = output.shape[1:] == metadata.input_size_hw
        expected = f"(B, {', '.join(map(str, metadata.input_size_hw))})"
    if not valid or len(output) != count:
        raise ModelError(
            f"{where}: output has shape {output.shape}, but the metadata describes head "
            f"`{metadata.head}` with shape {expected}; export it again"
        )
    return output
