"""The small protocol that every engine speaks, and what one run of it gives."""

from __future__ import annotations

import importlib
import os
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
from fada_deploy.runtime.kernels.upsample import confidence_from_logits, labels_from_logits
from fada_deploy.runtime.overlay.blend import overlay

Frames = NDArray[np.uint8]


class Prediction:
    """What the network said about a batch; label maps and confidence are made when asked.

    This is the shared implementation for engines whose output lies in ordinary memory. `output` is
    what the head gave: logits (B, K, h, w) float, or labels (B, H, W) uint8.
    """

    def __init__(self, output: NDArray[np.generic], metadata: ModelMetadata) -> None:
        self._output = output
        self._metadata = metadata

    def __len__(self) -> int:
        return len(self._output)

    def __getitem__(self, index: int) -> Prediction:
        """Return the prediction of one frame, a batch of one."""
        return Prediction(
            self._output[index : index + 1] if index >= 0 else self._output[[index]], self._metadata
        )

    def logits(self) -> NDArray[np.float32]:
        """Return (B, K, h, w) float32 at the network's own resolution; raise `ModelError` for head `labels`."""
        if self._metadata.head != "logits":
            raise ModelError(
                "this model has head `labels`, so no logits; export it with --head logits"
            )
        return self._output.astype(np.float32, copy=False)

    def labels(self, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class indices (B, H, W) uint8 at any size."""
        if self._metadata.head == "labels":
            return np.stack(
                [resize_labels(m.astype(np.uint8, copy=False), size_hw) for m in self._output]
            )
        corners = self._metadata.align_corners
        labels = np.empty((len(self), *size_hw), np.uint8)
        for z, into in zip(self.logits(), labels, strict=True):
            labels_from_logits(z, size_hw, align_corners=corners, out=into)
        return labels

    def confidence(self, size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return the winning class's softmax probability (B, H, W) float32 at any size.

        Raise `ModelError` for head `labels`.
        """
        corners = self._metadata.align_corners
        return np.stack(
            [confidence_from_logits(z, size_hw, align_corners=corners) for z in self.logits()]
        )

    def overlay(
        self, frames_bhwc: Frames, palette: NDArray[np.uint8], alpha: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return labels (B, H, W) and pictures (B, H, W, 3) uint8: the frames with the classes' colors over them.

        Frames (B, H, W, 3) uint8 may have any size; `palette` (256, 3) uint8 is in their channel order.
        """
        labels = self.labels((frames_bhwc.shape[1], frames_bhwc.shape[2]))
        drawn = [overlay(f, m, palette, alpha) for f, m in zip(frames_bhwc, labels, strict=True)]
        return labels, np.stack(drawn)


class Backend(Protocol):
    """An opened model on an engine and a device; safe to use from several threads.

    `parallel` calls of `submit` run side by side; more wait for their turn.
    """

    name: str
    device: str
    metadata: ModelMetadata
    parallel: int

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB at the network's input size.

        With a fixed batch N, at most N frames are taken and fewer are padded. Raise `ModelError` or
        `UsageError`.
        """
        ...

    def close(self) -> None:
        """Let the engine go."""
        ...


def cuda_index(device: str) -> int | None:
    """Return N of `cuda:N` (0 for `cuda`), None for `cpu` and `auto`; raise `UsageError` otherwise."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and (number or "0").isdigit():
        return int(number or "0")
    if device not in ("auto", "cpu"):
        raise UsageError(f"no device {device!r}; there are auto, cpu and cuda[:N]")
    return None


def cuda_unavailable(engine: str, device: str, have: str) -> DeviceError:
    """Return the error for a CUDA device that was asked for and is not to be had."""
    return DeviceError(
        f"{device} is not to be had: {engine} here runs on {have}; take --device cpu, or install what CUDA needs: "
        "pip install 'fada_deploy[gpu]' (and not [cpu] beside it)"
    )


def import_engine(package: str, extra: str) -> Any:
    """Import an engine's package; raise `MissingExtraError` if it is not there, `DeviceError` if it is broken."""
    # ONNX Runtime writes a device's id and a database of what it did into the user's cache unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise MissingExtraError(package, extra) from None
    except ImportError as error:
        raise broken_engine(package, error) from None


def closed_model(where: str) -> ModelError:
    """Return the error for a model that is asked after it was closed."""
    return ModelError(
        f"{where}: is closed already; use it inside its `with` block, or open it again"
    )


def broken_engine(engine: str, error: ImportError) -> DeviceError:
    """Return the error for an engine that is installed but does not load, as when a library is missing."""
    return DeviceError(
        f"{engine} is installed but does not load ({one_line(error)}); install it again"
    )


def batch_for(frames_bhwc: Frames, metadata: ModelMetadata) -> Frames:
    """Check frames against the contract and pad a short batch with its last frame."""
    expected = (*metadata.input_size_hw, 3)
    if frames_bhwc.dtype != np.uint8 or frames_bhwc.ndim != 4 or frames_bhwc.shape[1:] != expected:
        raise UsageError(
            f"the model takes uint8 frames of shape (B, {', '.join(map(str, expected))}), "
            f"not {frames_bhwc.dtype} {frames_bhwc.shape}"
        )
    count, batch = len(frames_bhwc), metadata.batch
    if count == 0 or (batch is not None and count > batch):
        allowed = "at least 1 frame" if batch is None else f"1 to {batch} frames"
        raise UsageError(f"the model takes {allowed} at once, not {count}")
    if batch is None or count == batch:
        return np.ascontiguousarray(frames_bhwc)
    return np.concatenate([frames_bhwc, np.repeat(frames_bhwc[-1:], batch - count, axis=0)])


def prediction_of(
    output: NDArray[np.generic], count: int, metadata: ModelMetadata, where: str
) -> Prediction:
    """Drop the padding and check the output's shape against the contract."""
    return Prediction(checked_output(output, count, metadata, where), metadata)


def checked_output(output: Any, count: int, metadata: ModelMetadata, where: str) -> Any:
    """Return an array, wherever it lies, without its padding; raise `ModelError` when it breaks the contract."""
    output = output[:count]
    if metadata.head == "logits":
        good = output.ndim == 4 and output.shape[1] == metadata.label_space.num_classes
        expected = f"(B, {metadata.label_space.num_classes}, h, w)"
    else:
        good = output.shape[1:] == metadata.input_size_hw
        expected = f"(B, {', '.join(map(str, metadata.input_size_hw))})"
    if not good or len(output) != count:
        raise ModelError(
            f"{where}: gives {output.shape} where its metadata says head `{metadata.head}`, {expected}; "
            "export it again"
        )
    return output
