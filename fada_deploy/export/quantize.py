"""Quantize an fp32 ONNX file to int8 with Q/DQ nodes. Does not import torch.

CPUs and TensorRT need different int8 files: CPUs multiply unsigned activations by signed weights,
whereas TensorRT needs symmetric signed activations and biases that are not quantized.

Which layers stay in float32 is measured: each layer is quantized alone, the layers are sorted by
how much they change the logits, and the smallest number of the most sensitive layers that gives
nearly the best agreement with the fp32 file is kept in float32.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import TextIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
import onnx
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, ModelError, UsageError
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.system import require_package, usable_cores
from fada_deploy.export.options import CALIBRATION_METHODS
from fada_deploy.inspection.onnx_graph import LAYER_OPERATORS
from fada_deploy.runtime.backends.onnx_file import read_metadata

Frames = NDArray[np.uint8]
# Frames that are not used for calibration but to choose the number of float32 layers.
_VALIDATION_FRAMES = 8
_SENSITIVITY_FRAMES = 2
# onnxruntime's calibrator keeps the activations of all frames that it gets at once.
_CALIBRATION_BATCH = 4
# Element-wise operators between layers are quantized too, which avoids conversions around them.
_QUANTIZED_OPERATORS = [
    *LAYER_OPERATORS, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat",
]  # fmt: skip
_FLOAT_LAYER_COUNTS = (0, 1, 2, 3, 4, 6, 8, 12)
# More float32 layers must gain at least this fraction of the pixels.
_MIN_GAIN = 1e-3
# By default, onnxruntime's entropy calibration has as many bins as quantization levels, which makes
# it equal to min-max.
_CALIBRATOR_OPTIONS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "percentile": {"percentile": 99.999},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
}
# Our names → members of onnxruntime's CalibrationMethod.
_CALIBRATORS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@dataclass(frozen=True)
class QuantizedModel:
    """An int8 graph and how it was made.

    `frames` is the number of calibration frames, `float_layers` has the names of the layers that
    stay in float32. `equal_labels` maps each number of float32 layers that was tried to the
    fraction of pixels whose label equals that of the fp32 file.
    """

    document: onnx.ModelProto
    hardware_target: str
    method: str
    frames: int
    float_layers: tuple[str, ...]
    equal_labels: dict[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization` entry of the metadata."""
        return {
            "calibration_method": self.method,
            "frames": self.frames,
            "float_layers": list(self.float_layers),
            "equal_labels_by_float_layers": {
                str(count): round(value, 6) for count, value in self.equal_labels.items()
            },
        }


def quantize(
    model: Path,
    frames: Frames,
    *,
    hardware_target: str,
    method: str = "percentile",
    float_layers: int | None = None,
) -> QuantizedModel:
    """Quantize an fp32 file with calibration `frames`, (N, H, W, 3) uint8 RGB at its input size.

    `hardware_target` is "cpu" or "tensorrt". `float_layers` layers stay in float32; None measures
    how many are needed. Raise `UsageError` for an unknown method, `DataError` for fewer than two
    frames, `ModelError` if the file is not fp32.
    """
    if method not in CALIBRATION_METHODS:
        raise UsageError(
            f"unknown calibration method {method!r}; use one of {', '.join(CALIBRATION_METHODS)}"
        )
    if len(frames) < 2:
        raise DataError(
            f"int8 calibration needs at least 2 frames, got {len(frames)}; name images or a video "
            "with --calibration"
        )
    metadata = read_metadata(model)
    if metadata.precision != "fp32":
        raise ModelError(f"{model} is already {metadata.precision}; quantize the fp32 file instead")
    with TemporaryDirectory() as folder, _silenced():
        quantizer = _Quantizer(model, Path(folder), frames, hardware_target, method, metadata.batch)
        ranking = quantizer.layers_by_sensitivity() if float_layers != 0 else []
        counts = (
            [n for n in _FLOAT_LAYER_COUNTS if n < len(quantizer.layers)]
            if float_layers is None
            else [float_layers]
        )
        equal_labels = {
            n: quantizer.equal_labels(quantizer.quantize(skip=ranking[:n])) for n in counts
        }
        best = max(equal_labels.values())
        count = next(n for n in counts if equal_labels[n] >= best - _MIN_GAIN)
        document = onnx.load(str(quantizer.quantize(skip=ranking[:count])))
    return QuantizedModel(
        document,
        hardware_target,
        method,
        len(quantizer.calibration_frames),
        tuple(ranking[:count]),
        equal_labels,
    )


class _Quantizer:
    """A file that is being quantized: its layers, activation ranges and validation frames."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        frames: Frames,
        hardware_target: str,
        method: str,
        batch: int | None,
    ) -> None:
        require_package("onnxruntime", "export")
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._folder, self._method = folder, method
        self._symmetric = hardware_target == "tensorrt"
        self._batch = batch or 1
        split = min(_VALIDATION_FRAMES, len(frames) // 2)
        self.calibration_frames, self._validation_frames = frames[split:], frames[:split]
        self._prepared = folder / "prepared.onnx"
        # Folds batch normalization into the convolutions, so that fewer operations are quantized.
        quant_pre_process(str(model), str(self._prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(self._prepared)).graph.node
        indices = [i for i, node in enumerate(nodes) if node.op_type in LAYER_OPERATORS]
        self.layers = [nodes[i].name for i in indices]
        if not self.layers:
            raise ModelError(
                f"{model} has no layer to quantize (one of {', '.join(LAYER_OPERATORS)})"
            )
        # Input normalization, and upsampling and argmax after the last layer, stay in float32.
        self._outside_layers = [
            node.name for i, node in enumerate(nodes) if i < indices[0] or i > indices[-1]
        ]
        self._reference = self._run(model, self._validation_frames)
        self._ranges = self._calibrate()

    def _calibrate(self) -> Path:
        """Measure the ranges of the activations; return the file that contains them."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

        calibrator = create_calibrator(
            self._prepared,
            _QUANTIZED_OPERATORS,
            augmented_model_path=str(self._folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod[_CALIBRATORS[self._method]],
            extra_options={"symmetric": self._symmetric, **_CALIBRATOR_OPTIONS[self._method]},
        )
        frames = self.calibration_frames
        with progress_bar(len(frames), "calibrating int8", unit="frame") as bar:
            for start in range(0, len(frames), _CALIBRATION_BATCH):
                part = frames[start : start + _CALIBRATION_BATCH]
                calibrator.collect_data(_FrameReader(part, self._batch))
                bar.update(len(part))
        save_tensors_data(calibrator.compute_data(), self._folder / "ranges.json")
        return self._folder / "ranges.json"

    def layers_by_sensitivity(self) -> list[str]:
        """Return the layers, sorted by the error of the outputs (largest first).

        The error is measured with only that layer quantized: the mean squared error of logits, or
        the fraction of different labels.
        """
        frames = self._validation_frames[:_SENSITIVITY_FRAMES]
        errors = {}
        with progress_bar(len(self.layers), "measuring sensitivity", unit="layer") as bar:
            for layer in self.layers:
                outputs = self._run(self.quantize(only=layer), frames)
                reference = self._reference[: len(frames)]
                if outputs.dtype == np.uint8:
                    errors[layer] = float((outputs != reference).mean())
                else:
                    errors[layer] = float(np.square(outputs - reference).mean())
                bar.update()
        return sorted(errors, key=lambda name: errors[name], reverse=True)

    def quantize(self, *, skip: Sequence[str] = (), only: str | None = None) -> Path:
        """Write the file with all layers except `skip` quantized, or with the layer `only`."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        out = self._folder / "quantized.onnx"
        quantize_static(
            self._prepared,
            out,
            None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if self._symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[only] if only else None,
            nodes_to_exclude=[*self._outside_layers, *skip],
            op_types_to_quantize=_QUANTIZED_OPERATORS,
            calibrate_method=CalibrationMethod[_CALIBRATORS[self._method]],
            extra_options={
                "ActivationSymmetric": self._symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not self._symmetric,
            },
            calibration_cache_path=self._ranges,
        )
        return out

    def equal_labels(self, path: Path) -> float:
        """Return the fraction of pixels of the validation frames with the fp32 file's label."""
        outputs = self._run(path, self._validation_frames)
        if outputs.dtype == np.uint8:
            return float((outputs == self._reference).mean())
        return float((outputs.argmax(1) == self._reference.argmax(1)).mean())

    def _run(self, path: Path, frames: Frames) -> NDArray[Any]:
        """Return the outputs of a file: logits (N, K, h, w) float32 or labels (N, H, W) uint8."""
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 4
        session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = [
            session.run(None, feed)[0][:count] for feed, count in _feeds(frames, self._batch)
        ]
        dtype = np.float32 if outputs[0].ndim == 4 else np.uint8
        return np.concatenate(outputs).astype(dtype, copy=False)


def _feeds(frames: Frames, batch: int) -> Iterator[tuple[dict[str, Frames], int]]:
    """Yield inputs of `batch` frames and how many of them are not padding."""
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        padding = np.repeat(part[-1:], batch - len(part), axis=0)
        yield {"frames": np.concatenate([part, padding])}, len(part)


class _FrameReader:
    """Implements onnxruntime's CalibrationDataReader."""

    def __init__(self, frames: Frames, batch: int) -> None:
        self._feeds = _feeds(frames, batch)

    def get_next(self) -> dict[str, Frames] | None:
        feed = next(self._feeds, None)
        return None if feed is None else feed[0]


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what onnxruntime's quantizer prints and logs to the root logger, and no more."""
    root = logging.getLogger()
    of_others = _OfOthers()
    # The quantizer logs by `logging.info`, which would install a handler if there were none.
    handler = logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(of_others)
    try:
        with redirect_stdout(_OutputOfOthers(sys.stdout)):
            yield
    finally:
        root.removeFilter(of_others)
        root.removeHandler(handler)


class _OfOthers(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "onnxruntime" not in Path(record.pathname).parts


class _OutputOfOthers(TextIOBase):
    """A text file that drops what onnxruntime prints, in whichever thread."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "onnxruntime":
            return len(text)
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()
