"""Convert an fp32 ONNX file to another precision and verify the result. Does not import torch.

Needs the `onnx` package, the fp32 file and its reference outputs, but not the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, ModelError, ToleranceError, UsageError
from fada_deploy.common.files import remove_old_partial, rename_flushed, sha256, temporary_path
from fada_deploy.common.images import resize_frame
from fada_deploy.common.metadata import PRECISIONS, ModelMetadata
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.precision import check_precision, to_half
from fada_deploy.export.quantize import quantize
from fada_deploy.export.verify import (
    AccuracyCheck,
    VerificationLimits,
    check_accuracy,
    try_save_comparison,
    verify_file,
)
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ParityResult, ReferenceOutputs, require_parity

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
_DEFAULT_LIMITS = VerificationLimits()


@dataclass(frozen=True)
class Calibration:
    """How int8 files are calibrated.

    `load_frames` is called when a file is quantized and returns frames, (H, W, 3) uint8 RGB of any
    size. `method` is "percentile", "minmax" or "entropy". `float_layers` is the number of layers
    that stay in float32; None measures how many are needed.
    """

    load_frames: Callable[[], Sequence[Frame]]
    method: str = "percentile"
    float_layers: int | None = None


@dataclass(frozen=True)
class ConvertedModel:
    """A converted file that was verified and saved.

    `layers` counts the layers with weights by the precision they compute in. `verification` is the
    parity result by backend; it is empty if no installed backend can run the precision.
    `accuracy` is None if there was no labeled data.
    """

    model: Path
    metadata: ModelMetadata
    layers: Mapping[str, int]
    verification: Mapping[str, ParityResult]
    accuracy: AccuracyCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            "model": str(self.model),
            "precision": self.metadata.precision,
            "hardware_target": self.metadata.hardware_target,
            "layers": dict(self.layers),
            "verification": {name: v.to_dict() for name, v in self.verification.items()},
            "labeled": None if self.accuracy is None else self.accuracy.to_dict(),
        }


def converted_path(model: Path, precision: str, hardware_target: str = "any") -> Path:
    """Return the path of a converted file.

    For `model.onnx`: `model.fp16.onnx`, or `model.int8-cpu.onnx` for a hardware target.
    """
    name = precision if hardware_target == "any" else f"{precision}-{hardware_target}"
    return model.with_name(f"{model.stem}.{name}{model.suffix}")


def convert_precision(
    model: Path,
    precision: str,
    *,
    hardware_target: str = "any",
    calibration: Calibration | None = None,
    limits: VerificationLimits = _DEFAULT_LIMITS,
) -> ConvertedModel:
    """Convert the fp32 file `model` to `precision` and save the result next to it.

    Raise `ToleranceError` if the result differs too much from the network. It is then not saved,
    and a PNG of the worst reference frame is written in its place. Raise `ModelError` if `model` is
    not an fp32 export with its reference outputs, `DataError` if int8 has no `calibration`.
    """
    baseline, reference = _read_baseline(model, precision)
    out = converted_path(model, precision, hardware_target)
    remove_old_partial(out.parent)
    draft = temporary_path(out)
    document, float_layers, quantization = _convert(
        model, baseline, precision, hardware_target, calibration
    )
    layers = check_precision(document, precision, float_layers=float_layers)
    metadata = replace(
        baseline,
        precision=precision,
        hardware_target=hardware_target,
        quantization=quantization,
        verification=None,
        hashes={**baseline.hashes, "fp32": sha256(model)},
    )
    comparison = out.with_suffix(".worst.png")
    try:
        save_onnx(document, metadata, draft)
        results, accuracy = _verify(draft, out, model, reference, metadata, limits, comparison)
        findings: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
        if accuracy is not None:
            findings["labeled"] = accuracy.to_dict()
        metadata = replace(metadata, verification=findings)
        save_onnx(document, metadata, draft)
        rename_flushed(draft, out)
        comparison.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)
    return ConvertedModel(out, metadata, layers, results, accuracy)


def _read_baseline(model: Path, precision: str) -> tuple[ModelMetadata, ReferenceOutputs]:
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    metadata = read_metadata(model)
    if metadata.precision != "fp32":
        raise ModelError(f"{model} is already {metadata.precision}; convert the fp32 file instead")
    return metadata, ReferenceOutputs.for_model(model, metadata)


def _convert(
    model: Path,
    metadata: ModelMetadata,
    precision: str,
    hardware_target: str,
    calibration: Calibration | None,
) -> tuple[Any, Sequence[str], dict[str, Any] | None]:
    """Return the converted graph, the names of its float32 layers, and how it was quantized."""
    import onnx

    if precision != "int8":
        return to_half(onnx.load(str(model)), precision), (), None
    if calibration is None:
        raise DataError("int8 needs frames of the target; name images or a video")
    frames = [resize_frame(f, metadata.input_size_hw) for f in calibration.load_frames()]
    quantized = quantize(
        model,
        np.stack(frames),
        hardware_target=hardware_target,
        method=calibration.method,
        float_layers=calibration.float_layers,
    )
    return quantized.document, quantized.float_layers, quantized.to_dict()


def _verify(
    draft: Path,
    out: Path,
    model: Path,
    reference: ReferenceOutputs,
    metadata: ModelMetadata,
    limits: VerificationLimits,
    comparison: Path,
) -> tuple[dict[str, ParityResult], AccuracyCheck | None]:
    """Return parity result and accuracy check; raise `ToleranceError` if a limit is exceeded."""
    backends = runnable_backends(draft)
    if not backends:
        logger.warning(
            "%s is not verified, because no installed backend runs %s",
            out.name,
            metadata.precision,
        )
    device = "cpu" if metadata.hardware_target == "cpu" else "auto"
    results = verify_file(draft, reference, backends, device=device)
    accuracy = None
    try:
        require_parity(results, limits.tolerance(metadata.precision))
        if limits.dataset is not None and backends:
            accuracy = check_accuracy(
                draft, model, limits.dataset, backend=backends[0], device=device
            )
            accuracy.check(limits.max_miou_drop)
    except ToleranceError as error:
        worst = min(results.values(), key=lambda result: result.equal_labels)
        saved = try_save_comparison(draft, reference, worst, comparison)
        hint = f"; see the worst frame in {comparison}" if saved else ""
        raise ToleranceError(f"{out.name}: {error}{hint}") from None
    return results, accuracy
