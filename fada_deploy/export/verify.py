"""Is the file the network? Compare what it says of real frames with a proof pack; knows no torch.

A proof pack holds a few frames as they were read, what the network was fed, and what it answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import GateError, ModelError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import resize_labels
from fada_deploy.runtime.segmenter import Segmenter

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Thresholds:
    """What a file may differ by: share of pixels with equal labels, and logit error.

    The logit error is the largest absolute difference, as a fraction of the largest |logit|.
    """

    equal_labels: float = 0.9999
    logit_error: float = 1e-4


@dataclass(frozen=True)
class Proof:
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
            np.savez_compressed(temporary, frames=self.frames, logits=self.logits, labels=self.labels)

    @classmethod
    def load(cls, path: Path) -> Proof:
        """Read a pack; raise `ModelError` when it is none."""
        try:
            with np.load(path, allow_pickle=False) as pack:
                return cls(pack["frames"], pack["logits"], pack["labels"])
        except (OSError, KeyError, ValueError) as error:
            raise ModelError(f"{path}: not a proof pack ({error})") from None

    def classes(self, share: float = 0.01) -> int:
        """Return how many classes hold more than `share` of the pixels."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return int((counts > share * self.labels.size).sum())


@dataclass(frozen=True)
class Verification:
    """How far one backend's answers are from the network's.

    `equal_labels` is from the frame on, at each frame's own size; `logit_error` is None for a file
    whose head gives labels alone.
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

    def refusals(self, allowed: Thresholds) -> list[str]:
        """Say by how much each threshold is missed; nothing when the file is the network."""
        found = []
        if not self.equal_labels >= allowed.equal_labels:
            found.append(
                f"{self.equal_labels:.4%} of labels equal the network's, {allowed.equal_labels:.2%} are needed "
                f"(worst: proof frame {self.worst_frame})"
            )
        if self.logit_error is not None and not self.logit_error <= allowed.logit_error:
            found.append(
                f"logits differ by {self.logit_error:.2e} of the largest, {allowed.logit_error:.0e} is allowed"
            )
        return found


def verify(
    model: Path, proof: Proof, *, frames: Sequence[Frame], labels: Sequence[NDArray[np.uint8]], backend: str
) -> Verification:
    """Run `model` on a backend and compare it with the network's answers.

    `frames` are the proof's frames as they were read and `labels` the network's label maps at their
    own size, so that resizing and upsampling are proven too.
    """
    # Two at a time where the file allows it, so that a dynamic batch is proven to be one.
    with Segmenter(model, backend=backend, device="cpu", batch=2) as segmenter:
        equal = [
            float((said == truth).mean()) for said, truth in zip(segmenter.labels(frames), labels, strict=True)
        ]
        error = None
        if segmenter.metadata.head == "logits":
            said = segmenter.logits(list(proof.frames))
            scale = max(float(np.abs(proof.logits).max()), 1e-6)
            error = float(np.abs(said - proof.logits).max()) / scale
    sizes = np.array([t.size for t in labels], np.float64)
    share = float((np.array(equal) * sizes).sum() / sizes.sum())
    return Verification(backend, len(labels), proof.classes(), share, error, int(np.argmin(equal)))


def own_size(labels: Sequence[NDArray[np.uint8]], frames: Sequence[Frame]) -> list[NDArray[np.uint8]]:
    """Return label maps made at the network's size as a labels head gives them at each frame's size."""
    return [resize_labels(m, f.shape[:2]) for m, f in zip(labels, frames, strict=True)]


def gate(found: Mapping[str, Verification], allowed: Thresholds) -> None:
    """Raise `GateError` when any backend's answers are not the network's."""
    refused = [f"{name}: {line}" for name, v in found.items() for line in v.refusals(allowed)]
    if refused:
        raise GateError("the exported file is not the network; nothing was written. " + "; ".join(refused))
