"""Compare an opened model with the reference outputs of the trained network.

The reference outputs (`model.reference.npz` beside an export) hold a few real frames at the
network's input size and the logits and labels that the trained network gave for them. Every file
that is later built from the export, on any machine, is compared with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import ModelError, ToleranceError
from fada_deploy.common.files import atomic_path, sha256
from fada_deploy.common.metadata import PRECISIONS, ModelMetadata
from fada_deploy.common.runs import REFERENCE_SUFFIX
from fada_deploy.runtime.backends.base import Backend


@dataclass(frozen=True)
class Tolerance:
    """How much a file may differ from the trained network.

    Attributes:
        equal_labels: Smallest fraction of pixels with equal labels.
        logit_error: Largest absolute difference of the logits, relative to the largest |logit|.
    """

    equal_labels: float = 0.9999
    logit_error: float = 1e-4


# Default tolerance by precision. Half precision moves class boundaries by single pixels. An int8
# network should also be checked on labeled data.
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(0.997, 0.02),
    "bf16": Tolerance(0.98, 0.1),
    "int8": Tolerance(0.93, 0.5),
}


@dataclass(frozen=True, eq=False)
class ReferenceOutputs:
    """Outputs of the trained network for a few frames.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB at the network's input size.
        logits: (N, K, h, w) float32.
        labels: (N, H, W) uint8 at the input size.
    """

    frames: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary, frames=self.frames, logits=self.logits, labels=self.labels
            )

    @classmethod
    def load(cls, path: Path) -> ReferenceOutputs:
        """Read a file of reference outputs; raise `ModelError` if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["frames"], arrays["logits"], arrays["labels"])
        except FileNotFoundError:
            raise ModelError(
                f"{path}: no such file of reference outputs; `fada export` writes it beside a model"
            ) from None
        # A damaged archive raises errors of zipfile, zlib and NumPy, which share no base class.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"{path}: not a file of reference outputs ({reason})") from None

    @classmethod
    def for_model(cls, model: Path, metadata: ModelMetadata) -> ReferenceOutputs:
        """Return the reference outputs that a model was exported with.

        Raise `ModelError` if the file is missing, or if its hash is not the one in the metadata.
        """
        path = reference_path(model)
        if not path.is_file():
            raise ModelError(
                f"{model} has no reference outputs beside it ({path.name}); copy that file from "
                "the folder of the export, or export the model again"
            )
        reference = cls.load(path)
        expected = metadata.hashes.get("reference")
        if expected is not None and sha256(path) != expected:
            raise ModelError(
                f"{path} does not hold the reference outputs that {model.name} was exported with; "
                "export the model again"
            )
        return reference

    def count_classes(self, min_fraction: float = 0.01) -> int:
        """Return the number of classes that cover more than `min_fraction` of the pixels."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return int((counts > min_fraction * self.labels.size).sum())


def reference_path(model: Path) -> Path:
    """Return the path of a model's reference outputs.

    All files made from one export share them: `model.onnx`, `model.int8-cpu.onnx` and
    `model.fp16.engine` use `model.reference.npz`.
    """
    stem = model.with_suffix("")
    if stem.suffix.removeprefix(".").split("-")[0] in PRECISIONS:
        stem = stem.with_suffix("")
    return stem.with_name(f"{stem.name}{REFERENCE_SUFFIX}")


@dataclass(frozen=True)
class ParityResult:
    """How far the outputs of one backend are from the reference outputs.

    Attributes:
        backend: Name of the backend.
        frames: Number of compared frames.
        classes: Number of classes that cover more than 1 % of the reference labels.
        equal_labels: Fraction of pixels with equal labels, 0 to 1.
        logit_error: Largest absolute difference of the logits, relative to the largest |logit|;
            None for a model with the head `labels`.
        worst_frame: Number of the frame with the fewest equal labels.
    """

    backend: str
    frames: int
    classes: int
    equal_labels: float
    logit_error: float | None
    worst_frame: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return asdict(self)

    def text(self) -> str:
        """Return a one-line summary."""
        error = (
            ""
            if self.logit_error is None
            else f", largest logit error {self.logit_error:.1e} of the largest logit"
        )
        frames = f"{self.frames} frame{'s' * (self.frames != 1)}"
        return f"{self.equal_labels:.4%} equal labels on {frames}{error}"

    def violations(self, tolerance: Tolerance) -> list[str]:
        """Return one line per exceeded tolerance; empty if the outputs agree."""
        lines = []
        # `not >=` instead of `<`, because NaN must count as a violation.
        if not self.equal_labels >= tolerance.equal_labels:
            lines.append(
                f"{self.equal_labels:.4%} equal labels, at least {tolerance.equal_labels:.2%} "
                f"required (worst: reference frame {self.worst_frame})"
            )
        if self.logit_error is not None and not self.logit_error <= tolerance.logit_error:
            lines.append(
                f"logit error {self.logit_error:.2e} of the largest logit, at most "
                f"{tolerance.logit_error:.0e} allowed"
            )
        return lines


def compare_with_reference(backend: Backend, reference: ReferenceOutputs) -> ParityResult:
    """Run an opened model on the reference frames and compare its labels and logits.

    Raise `ModelError` if the frames do not have the model's input size.
    """
    # Two frames per call where the file allows it, so that a dynamic batch is checked as well.
    step = min(2, backend.metadata.batch or 2)
    size_hw = backend.metadata.input_size_hw
    if reference.frames.shape[1:3] != size_hw:
        height, width = reference.frames.shape[1:3]
        raise ModelError(
            f"the reference frames are {width}x{height}, but the model takes "
            f"{size_hw[1]}x{size_hw[0]}"
        )
    equal_fractions: list[float] = []
    max_errors: list[float] = []
    for start in range(0, len(reference.frames), step):
        chunk = slice(start, start + step)
        prediction = backend.submit(reference.frames[chunk])
        equal = prediction.labels(size_hw) == reference.labels[chunk]
        equal_fractions += equal.mean(axis=(1, 2)).tolist()
        if backend.metadata.head == "logits":
            error = np.abs(prediction.logits() - reference.logits[chunk])
            max_errors.append(float(error.max()))
    scale = max(float(np.abs(reference.logits).max()), 1e-6)
    return ParityResult(
        backend=backend.name,
        frames=len(equal_fractions),
        classes=reference.count_classes(),
        equal_labels=float(np.mean(equal_fractions)),
        logit_error=max(max_errors) / scale if max_errors else None,
        worst_frame=int(np.argmin(equal_fractions)),
    )


def require_parity(
    results: Mapping[str, ParityResult],
    tolerance: Tolerance,
    *,
    consequence: str = "nothing was written",
) -> None:
    """Raise `ToleranceError` if any backend exceeds the tolerance.

    `consequence` says in the message what happened to the file.
    """
    lines = [
        f"{name}: {line}"
        for name, result in results.items()
        for line in result.violations(tolerance)
    ]
    if lines:
        raise ToleranceError(
            f"the outputs differ from those of the trained network; {consequence}: "
            f"{'; '.join(lines)}"
        )
