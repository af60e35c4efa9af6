"""fp32 ONNX → int8 by Q/DQ nodes, calibrated on the target's own frames. Knows no torch.

CPUs and TensorRT want different int8. A CPU multiplies unsigned activations by signed weights; TensorRT takes
symmetric signed ones, and no quantized bias. Which layers stay in float is measured: each is quantized alone,
those that move the answers most are left out, as few as will do.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from fada_deploy.common.errors import DataError, MissingExtraError, ModelError, UsageError
from fada_deploy.common.system import usable_cores
from fada_deploy.runtime.backends.onnx_file import read_metadata

Frames = NDArray[np.uint8]
CALIBRATIONS = ("minmax", "percentile", "entropy")
# So many of the frames are kept back, to choose by what calibration has not seen.
_HELD_BACK = 8
_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# Element-wise operations between layers run in int8 too, or each would be converted twice.
_QUANTISED = [*_LAYERS, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat"]
_LEFT_OUT_STEPS = (0, 1, 2, 3, 4, 6, 8, 12)
# Leaving out more layers has to earn at least this share of pixels.
_WORTH = 1e-3
# onnxruntime's entropy calibration has as many bins as levels by default, which is min-max by another name.
_OPTIONS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "percentile": {"percentile": 99.999},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
}
_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@dataclass(frozen=True)
class Quantized:
    """An int8 network: for whom, how calibrated, and the share of pixels with equal labels by layers left out."""

    document: onnx.ModelProto
    hardware_target: str
    calibration: str
    frames: int
    left_out: tuple[str, ...]
    equal_labels: dict[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what the metadata tells of it."""
        return {
            "calibration": self.calibration,
            "frames": self.frames,
            "left_out": list(self.left_out),
            "equal_labels_by_left_out": {str(n): round(v, 6) for n, v in self.equal_labels.items()},
        }


def quantize(
    model: Path,
    frames: Frames,
    *,
    hardware_target: str,
    calibration: str = "percentile",
    leave_out: int | None = None,
) -> Quantized:
    """Quantize a float32 file on `frames` (N, H, W, 3) uint8 RGB at the network's input size.

    `leave_out` layers stay in float32, by default as many as measurement says. Raise `UsageError` for an
    unknown calibration, `DataError` for too few frames, `ModelError` for a file that is not float32.
    """
    if calibration not in CALIBRATIONS:
        raise UsageError(f"no calibration {calibration!r}; there are {', '.join(CALIBRATIONS)}")
    if len(frames) < 2:
        raise DataError(
            f"int8 is calibrated on the target's frames, and {len(frames)} is too few; give --frames"
        )
    metadata = read_metadata(model)
    if metadata.precision != "fp32":
        raise ModelError(f"{model}: is {metadata.precision} already; int8 is made of the fp32 file")
    with TemporaryDirectory() as folder, _quiet():
        work = _Work(model, Path(folder), frames, hardware_target, calibration, metadata.batch)
        order = work.by_sensitivity() if leave_out != 0 else []
        steps = (
            [n for n in _LEFT_OUT_STEPS if n < len(work.layers)]
            if leave_out is None
            else [leave_out]
        )
        equal: dict[int, float] = {}
        for count in steps:
            equal[count] = work.equal_labels(work.quantized(leave=order[:count]))
        chosen = next(n for n in steps if equal[n] >= max(equal.values()) - _WORTH)
        document = onnx.load(str(work.quantized(leave=order[:chosen])))
    return Quantized(
        document, hardware_target, calibration, len(work.known), tuple(order[:chosen]), equal
    )


class _Work:
    """One file being quantized: its layers, the ranges of its activations, and frames to judge by."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        frames: Frames,
        hardware_target: str,
        calibration: str,
        batch: int | None,
    ) -> None:
        try:
            from onnxruntime.quantization.shape_inference import quant_pre_process
        except ImportError:
            raise MissingExtraError("onnxruntime", "export") from None
        self._folder, self._made_for, self._calibration = folder, hardware_target, calibration
        self._batch = batch or 1
        held = min(_HELD_BACK, len(frames) // 2)
        self.known, self._unseen = frames[held:], frames[:held]
        self._prepared = folder / "prepared.onnx"
        # Folds normalization into convolutions, so that there is one layer to quantize and not three.
        quant_pre_process(str(model), str(self._prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(self._prepared)).graph.node
        self.layers = [node.name for node in nodes if node.op_type in _LAYERS]
        if not self.layers:
            raise ModelError(f"{model}: has no layer that int8 is for")
        # The input's normalization, and what decides between classes, are no layers.
        first = next(i for i, node in enumerate(nodes) if node.op_type in _LAYERS)
        last = max(i for i, node in enumerate(nodes) if node.op_type in _LAYERS)
        self._plain = [node.name for i, node in enumerate(nodes) if i < first or i > last]
        self._reference = self._run(model, self._unseen)
        self._ranges = self._calibrate()

    def _calibrate(self) -> Path:
        """Find the activations' ranges, once, whatever is quantized by them later; return their file."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

        calibrator = create_calibrator(
            self._prepared,
            _QUANTISED,
            augmented_model_path=str(self._folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod[_METHODS[self._calibration]],
            extra_options={
                "symmetric": self._made_for == "tensorrt",
                **_OPTIONS[self._calibration],
            },
        )
        with tqdm(
            total=len(self.known), desc="calibration", unit="frame", disable=None, file=sys.stderr
        ) as bar:
            # A few at a time: the calibrator keeps what it has not summed up.
            for start in range(0, len(self.known), 4):
                part = self.known[start : start + 4]
                calibrator.collect_data(_Reader(part, self._batch))
                bar.update(len(part))
        save_tensors_data(calibrator.compute_data(), self._folder / "ranges.json")
        return self._folder / "ranges.json"

    def by_sensitivity(self) -> list[str]:
        """Return the layers, the one that moves the answers most when it alone is quantized first."""
        frames = self._unseen[:2]
        moved = {}
        for layer in tqdm(
            self.layers, desc="sensitivity", unit="layer", disable=None, file=sys.stderr
        ):
            answers = self._run(self.quantized(only=layer), frames)
            moved[layer] = float(np.square(answers - self._reference[: len(frames)]).mean())
        return sorted(moved, key=lambda name: moved[name], reverse=True)

    def quantized(self, *, leave: Sequence[str] = (), only: str | None = None) -> Path:
        """Write the network with all layers but `leave` quantized, or with `only` one."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        signed = self._made_for == "tensorrt"
        out = self._folder / "quantized.onnx"
        quantize_static(
            self._prepared,
            out,
            None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[only] if only else None,
            nodes_to_exclude=[*self._plain, *leave],
            op_types_to_quantize=_QUANTISED,
            calibrate_method=CalibrationMethod[_METHODS[self._calibration]],
            extra_options={
                "ActivationSymmetric": signed,
                "WeightSymmetric": True,
                "QuantizeBias": not signed,
            },
            calibration_cache_path=self._ranges,
        )
        return out

    def equal_labels(self, path: Path) -> float:
        """Return the share of pixels whose class is the float network's, on frames that were not calibrated on."""
        answers = self._run(path, self._unseen)
        if answers.dtype == np.uint8:
            return float((answers == self._reference).mean())
        return float((answers.argmax(1) == self._reference.argmax(1)).mean())

    def _run(self, path: Path, frames: Frames) -> NDArray[Any]:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 4
        session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        answers = [
            session.run(None, feed)[0][:count] for feed, count in _feeds(frames, self._batch)
        ]
        return np.concatenate(answers).astype(
            np.float32 if answers[0].ndim == 4 else np.uint8, copy=False
        )


def _feeds(frames: Frames, batch: int) -> Iterator[tuple[dict[str, Frames], int]]:
    """Yield inputs of a fixed batch, the last one padded, and how many of its frames count."""
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        yield {"frames": padded}, len(part)


class _Reader:
    """Frames as the quantizer asks for them."""

    def __init__(self, frames: Frames, batch: int) -> None:
        self._feeds = _feeds(frames, batch)

    def get_next(self) -> dict[str, Frames] | None:
        feed = next(self._feeds, None)
        return None if feed is None else feed[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's own prints and advice away from the user."""
    logger: Callable[[int], None] = logging.disable
    with redirect_stdout(StringIO()):
        logger(logging.WARNING)
        try:
            yield
        finally:
            logger(logging.NOTSET)
