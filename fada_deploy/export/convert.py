"""From the fp32 file to another precision, proven before it gets its name: needs neither torch nor the run.

`fada export RUN --precision fp16,int8` and `fada export model.onnx --precision int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, ModelError, ToleranceError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.images import resize_frame
from fada_deploy.common.metadata import PRECISIONS, ModelMetadata
from fada_deploy.data.base import FrameDataset
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.precision import check_precision, to_half
from fada_deploy.export.quantize import quantize
from fada_deploy.export.verify import (
    AccuracyCheck,
    VerificationLimits,
    judge,
    try_draw,
    verify_file,
)
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ParityResult, ReferenceOutputs, gate

Say = Callable[[str], None]
Frame = NDArray[np.uint8]
# Each precision's own thresholds.
_OWN = VerificationLimits()


@dataclass(frozen=True)
class Calibration:
    """How int8 is made: the method, how many layers stay in float (None: measured), and frames when asked for.

    `frames` gives RGB frames of any size.
    """

    frames: Callable[[], Sequence[Frame]]
    method: str = "percentile"
    leave_out: int | None = None


@dataclass(frozen=True)
class ConvertedModel:
    """A file that was written, what it computes in, and how it compared."""

    model: Path
    metadata: ModelMetadata
    layers: Mapping[str, int]
    verification: Mapping[str, ParityResult]
    judgment: AccuracyCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            "model": str(self.model),
            "precision": self.metadata.precision,
            "hardware_target": self.metadata.hardware_target,
            "layers": dict(self.layers),
            "verification": {name: v.to_dict() for name, v in self.verification.items()},
            "labeled": None if self.judgment is None else self.judgment.to_dict(),
        }


def converted_path(model: Path, precision: str, hardware_target: str = "any") -> Path:
    """Return where a derived file lies: `model.fp16.onnx`, `model.int8-cpu.onnx` beside `model.onnx`."""
    kind = precision if hardware_target == "any" else f"{precision}-{hardware_target}"
    return model.with_name(f"{model.stem}.{kind}{model.suffix}")


def derive(
    model: Path,
    precision: str,
    *,
    hardware_target: str = "any",
    calibration: Calibration | None = None,
    allowed: VerificationLimits = _OWN,
    say: Say,
) -> ConvertedModel:
    """Write `model` (fp32) in another precision beside it, when it passes the gate.

    Raise `ToleranceError` when it does not, and leave a picture of the worst reference frame in its place.
    """
    metadata, reference = _original(model, precision)
    out = converted_path(model, precision, hardware_target)
    draft = out.with_name(f".{out.stem}.partial.onnx")
    document, left_out, about = _converted(model, metadata, precision, hardware_target, calibration)
    layers = check_precision(document, precision, left_out=left_out)
    metadata = replace(
        metadata,
        precision=precision,
        hardware_target=hardware_target,
        quantization=about,
        verification=None,
        hashes={**metadata.hashes, "fp32": sha256(model)},
    )
    picture = out.with_suffix(".worst.png")
    try:
        save_onnx(document, metadata, draft)
        backends = runnable_backends(draft)
        if not backends:
            say(
                f"note: nothing here runs {precision}, so {out.name} is not verified: its verification is not_run"
            )
        found = verify_file(draft, reference, backends)
        judgment = None
        try:
            gate(found, allowed.thresholds(precision))
            if allowed.dataset is not None and backends:
                judgment = _judged(draft, model, allowed.dataset, backends[0])
                judgment.check(allowed.max_miou_drop)
        except ToleranceError as error:
            worst = min(found.values(), key=lambda v: v.equal_labels)
            shown = (
                f"; the worst frame is drawn in {picture}"
                if try_draw(draft, reference, worst, picture)
                else ""
            )
            raise ToleranceError(f"{out.name}: {error}{shown}") from None
        metadata = replace(metadata, verification=_findings(found, judgment))
        save_onnx(document, metadata, draft)
        draft.replace(out)
        picture.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)
    return ConvertedModel(out, metadata, layers, found, judgment)


def _original(model: Path, precision: str) -> tuple[ModelMetadata, ReferenceOutputs]:
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    metadata = read_metadata(model)
    if metadata.precision != "fp32":
        raise ModelError(
            f"{model}: is {metadata.precision} already; give the fp32 file it was made of"
        )
    return metadata, ReferenceOutputs.of(model, metadata)


def _converted(
    model: Path,
    metadata: ModelMetadata,
    precision: str,
    hardware_target: str,
    calibration: Calibration | None,
) -> tuple[Any, Sequence[str], dict[str, Any] | None]:
    """Return the graph in the precision, the layers left out of it, and what there is to tell."""
    import onnx

    if precision != "int8":
        return to_half(onnx.load(str(model)), precision), (), None
    if calibration is None:
        raise DataError("int8 is calibrated on the target's frames; give --frames")
    frames = np.stack([resize_frame(f, metadata.input_size_hw) for f in calibration.frames()])
    made = quantize(
        model,
        frames,
        hardware_target=hardware_target,
        calibration=calibration.method,
        leave_out=calibration.leave_out,
    )
    return made.document, made.left_out, made.to_dict()


def _judged(model: Path, baseline: Path, dataset: FrameDataset, backend: str) -> AccuracyCheck:
    return judge(model, baseline, dataset, backend=backend)


def _findings(found: Mapping[str, ParityResult], judgment: AccuracyCheck | None) -> dict[str, Any]:
    findings: dict[str, Any] = {name: v.to_dict() for name, v in found.items()}
    if judgment is not None:
        findings["labeled"] = judgment.to_dict()
    return findings
