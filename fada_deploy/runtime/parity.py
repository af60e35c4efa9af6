"""Is the file the network? Compare what an opened model says of real frames with a reference outputs.

A pack (`model.reference.npz`, beside an export) holds a few real frames at the network's size and what the
trained network answered. Whatever is built from the export later, anywhere, is proven against it.
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
from fada_deploy.runtime.backends.base import Backend


@dataclass(frozen=True)
class Tolerance:
    """What a file may differ by: the share of pixels with equal labels, and the logit error.

    The logit error is the largest absolute difference, as a fraction of the largest |logit|.
    """

    equal_labels: float = 0.9999
    logit_error: float = 1e-4


# What each precision is held to unless told otherwise. Half precision moves borders between classes by a
# pixel here and there; int8 is a network of its own, and a labeled data set should judge it too.
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(0.997, 0.02),
    "bf16": Tolerance(0.98, 0.1),
    "int8": Tolerance(0.93, 0.5),
}


@dataclass(frozen=True)
class ReferenceOutputs:
    """Reference answers of the trained network.

    `frames` (N, H, W, 3) uint8 RGB at the network's input size, `logits` (N, K, h, w) float32,
    `labels` (N, H, W) uint8 at the input size.
    """

    frames: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Write the pack atomically."""
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary, frames=self.frames, logits=self.logits, labels=self.labels
            )

    @classmethod
    def load(cls, path: Path) -> ReferenceOutputs:
        """Read a pack; raise `ModelError` when it is none."""
        try:
            with np.load(path, allow_pickle=False) as pack:
                return cls(pack["frames"], pack["logits"], pack["labels"])
        except FileNotFoundError:
            raise ModelError(
                f"{path}: no such reference outputs; it lies beside what `fada export` writes"
            ) from None
        except (OSError, KeyError, ValueError) as error:
            raise ModelError(f"{path}: not a reference outputs ({error})") from None

    @classmethod
    def of(cls, model: Path, metadata: ModelMetadata) -> ReferenceOutputs:
        """Return the pack that a model was exported with; raise `ModelError` when it is missing or another."""
        path = reference_path(model)
        reference = cls.load(path)
        known = metadata.hashes.get("reference")
        if known is not None and sha256(path) != known:
            raise ModelError(
                f"{path}: is not the reference outputs that {model.name} was exported with; export again"
            )
        return reference

    def classes(self, share: float = 0.01) -> int:
        """Return how many classes hold more than `share` of the pixels."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return int((counts > share * self.labels.size).sum())


def reference_path(model: Path) -> Path:
    """Return where a model's pack lies: `model.reference.npz` beside `model.onnx`, `model.fp16.engine` and others."""
    stem = model.with_suffix("")
    if stem.suffix.removeprefix(".").split("-")[0] in PRECISIONS:
        stem = stem.with_suffix("")
    return stem.with_name(f"{stem.name}.reference.npz")


@dataclass(frozen=True)
class ParityResult:
    """How far one backend's answers are from the network's.

    `logit_error` is None for a file whose head gives labels alone.
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
        """Say it in a line."""
        error = (
            ""
            if self.logit_error is None
            else f", largest logit error {self.logit_error:.1e} of the largest"
        )
        return (
            f"{self.equal_labels:.4%} of labels equal the network's on {self.frames} frames{error}"
        )

    def refusals(self, allowed: Tolerance) -> list[str]:
        """Say by how much each threshold is missed; nothing when the file is the network."""
        found = []
        if not self.equal_labels >= allowed.equal_labels:
            found.append(
                f"{self.equal_labels:.4%} of labels equal the network's, {allowed.equal_labels:.2%} are needed "
                f"(worst: reference frame {self.worst_frame})"
            )
        if self.logit_error is not None and not self.logit_error <= allowed.logit_error:
            found.append(
                f"logits differ by {self.logit_error:.2e} of the largest, {allowed.logit_error:.0e} is allowed"
            )
        return found


def compare(backend: Backend, reference: ReferenceOutputs) -> ParityResult:
    """Run an opened model on the pack's frames and compare labels at the input's size, and logits."""
    # Two at a time where the file allows it, so that a dynamic batch is proven to be one.
    step = min(2, backend.metadata.batch or 2)
    size = backend.metadata.input_size_hw
    if reference.frames.shape[1:3] != size:
        raise ModelError(
            f"the reference outputs's frames are {reference.frames.shape[1:3]}, the model takes {size}"
        )
    equal: list[float] = []
    errors: list[float] = []
    for start in range(0, len(reference.frames), step):
        chosen = slice(start, start + step)
        answer = backend.submit(reference.frames[chosen])
        same = answer.labels(size) == reference.labels[chosen]
        equal += same.mean(axis=(1, 2)).tolist()
        if backend.metadata.head == "logits":
            errors.append(float(np.abs(answer.logits() - reference.logits[chosen]).max()))
    scale = max(float(np.abs(reference.logits).max()), 1e-6)
    error = max(errors) / scale if errors else None
    return ParityResult(
        backend.name,
        len(equal),
        reference.classes(),
        float(np.mean(equal)),
        error,
        int(np.argmin(equal)),
    )


def gate(
    found: Mapping[str, ParityResult], allowed: Tolerance, *, lost: str = "nothing was written"
) -> None:
    """Raise `ToleranceError` when any backend's answers are not the network's; `lost` says what comes of it."""
    refused = [f"{name}: {line}" for name, v in found.items() for line in v.refusals(allowed)]
    if refused:
        raise ToleranceError(f"the file is not the network; {lost}. " + "; ".join(refused))
