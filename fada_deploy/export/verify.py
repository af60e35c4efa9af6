"""Compare exported files with the trained network. Does not import torch.

`fada export` verifies each file before it is saved under its final name; `fada verify` repeats the
check on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DeviceError, MissingExtraError, ToleranceError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import resize_labels
from fada_deploy.data.base import FrameDataset
from fada_deploy.evaluation import evaluate
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import Backend
from fada_deploy.runtime.overlay.blend import overlay
from fada_deploy.runtime.parity import (
    TOLERANCES,
    ParityResult,
    ReferenceOutputs,
    Tolerance,
    compare_with_reference,
)
from fada_deploy.runtime.segmenter import Segmenter

Frame = NDArray[np.uint8]
_PANEL_WIDTH = 480


@dataclass(frozen=True)
class VerificationLimits:
    """Tolerances and data of a verification.

    Attributes:
        equal_labels: Fraction of pixels whose label must equal that of the network; None for the
            tolerance of the file's precision.
        logit_error: Largest logit error, as a fraction of the largest absolute logit; None for the
            tolerance of the file's precision.
        dataset: Labeled data on which a file is compared with its fp32 baseline; None for no
            accuracy check.
        max_miou_drop: Largest drop of the mIoU on `dataset`, as a fraction.
    """

    equal_labels: float | None = None
    logit_error: float | None = None
    dataset: FrameDataset | None = None
    max_miou_drop: float = 0.02

    def tolerance(self, precision: str) -> Tolerance:
        """Return the tolerance for a file of `precision`."""
        default = TOLERANCES[precision]
        return Tolerance(
            default.equal_labels if self.equal_labels is None else self.equal_labels,
            default.logit_error if self.logit_error is None else self.logit_error,
        )


def verify_on_frames(
    model: Path,
    reference: ReferenceOutputs,
    *,
    frames: Sequence[Frame],
    labels: Sequence[NDArray[np.uint8]],
    backend: str,
) -> ParityResult:
    """Compare an ONNX file with the network, including resizing and upsampling.

    `frames` are the original frames of `reference`, (H, W, 3) uint8 RGB; `labels` are the network's
    label maps at the frames' own sizes.
    """
    # A batch of two also verifies that a dynamic batch size works.
    with Segmenter(model, backend=backend, device="cpu", batch=2) as segmenter:
        equal_labels = [
            float((predicted == expected).mean())
            for predicted, expected in zip(
                segmenter.labels(frames, color="rgb"), labels, strict=True
            )
        ]
        at_input_size = compare_with_reference(segmenter.backend, reference)
    sizes = np.array([label_map.size for label_map in labels], np.float64)
    fraction = float((np.array(equal_labels) * sizes).sum() / sizes.sum())
    return replace(at_input_size, equal_labels=fraction, worst_frame=int(np.argmin(equal_labels)))


def resize_to_frames(
    labels: Sequence[NDArray[np.uint8]], frames: Sequence[Frame]
) -> list[NDArray[np.uint8]]:
    """Resize label maps to the sizes of their frames, as the runtime does for head `labels`."""
    return [resize_labels(m, f.shape[:2]) for m, f in zip(labels, frames, strict=True)]


def verify_file(
    model: Path, reference: ReferenceOutputs, backends: Sequence[str], *, device: str = "auto"
) -> dict[str, ParityResult]:
    """Compare a file with its reference outputs on each backend; return the results by backend."""
    results = {}
    for name in backends:
        backend = open_backend(model, backend=name, device=device, allow_unverified=True)
        try:
            results[name] = compare_with_reference(backend, reference)
        finally:
            backend.close()
    return results


@dataclass(frozen=True)
class AccuracyCheck:
    """The mIoU of a file and of its fp32 baseline on the same labeled frames.

    All values are fractions. `worst_change` is the change of the IoU of `worst_class`, the class
    that lost most.
    """

    frames: int
    miou: float
    baseline: float
    worst_class: str
    worst_change: float

    @property
    def change(self) -> float:
        """Change of the mIoU; negative if the file is less accurate."""
        return self.miou - self.baseline

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {**asdict(self), "change": self.change}

    def text(self) -> str:
        """Return the result as one line, in percentage points."""
        text = (
            f"mIoU {100 * self.miou:.2f} on {self.frames} labeled frames, "
            f"{100 * self.change:+.2f} compared with fp32"
        )
        worst_change = f"{100 * self.worst_change:+.2f}"
        if self.worst_change >= 0 or worst_change == "-0.00":
            return text
        return f"{text}; worst class {self.worst_class} ({worst_change})"

    def check(self, max_drop: float) -> None:
        """Raise `ToleranceError` if the mIoU fell by more than `max_drop`, a fraction."""
        if not -self.change <= max_drop:
            raise ToleranceError(f"{self.text()}; allowed drop: {100 * max_drop:.2f} points")


def check_accuracy(
    model: Path,
    baseline: Path,
    dataset: FrameDataset,
    *,
    backend: str = "auto",
    device: str | int = "auto",
) -> AccuracyCheck:
    """Score a file and its fp32 baseline on labeled frames, both on `backend` and `device`."""
    evaluations = []
    for path in (baseline, model):
        # The baseline of a TensorRT engine is an ONNX file, which needs another backend.
        name, where = (backend, device) if path.suffix == model.suffix else ("auto", "auto")
        with Segmenter(path, backend=name, device=where) as segmenter:
            predict = partial(segmenter.labels, color="rgb")
            evaluations.append(evaluate(predict, dataset, description=f"scoring {path.name}"))
    before, after = (evaluation.scores for evaluation in evaluations)
    in_both = ~(np.isnan(before.iou) | np.isnan(after.iou))
    change = np.where(in_both, after.iou - before.iou, np.inf)
    worst = int(change.argmin())
    return AccuracyCheck(
        evaluations[1].frames,
        after.miou,
        before.miou,
        dataset.space.names[worst],
        float(change[worst]),
    )


def save_comparison(backend: Backend, reference: ReferenceOutputs, index: int, path: Path) -> None:
    """Save a PNG of one reference frame: labels of the network, labels of the file, differences."""
    frame, expected = reference.frames[index], reference.labels[index]
    size, palette = backend.metadata.input_size_hw, backend.metadata.label_space.palette
    predicted = backend.submit(frame[None]).labels(size)[0]
    differs = predicted != expected
    differences = frame // 3
    differences[differs] = (255, 40, 40)
    images = [
        ("network", overlay(frame, expected, palette, 0.6)),
        (f"file on {backend.name}", overlay(frame, predicted, palette, 0.6)),
        (f"differs: {differs.mean():.3%}", differences),
    ]
    panels = [_titled(image, title, _PANEL_WIDTH / size[1]) for title, image in images]
    _, png = cv2.imencode(".png", cv2.cvtColor(np.hstack(panels), cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(png.tobytes())


def _titled(image: Frame, title: str, scale: float) -> Frame:
    resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    panel = cv2.copyMakeBorder(resized, 28, 0, 2, 2, cv2.BORDER_CONSTANT, value=(24, 24, 24))
    cv2.putText(
        panel, title, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (238, 238, 238), 1, cv2.LINE_AA
    )
    return panel.astype(np.uint8, copy=False)


def try_save_comparison(
    model: Path, reference: ReferenceOutputs, result: ParityResult, path: Path
) -> bool:
    """Save `save_comparison` of the worst frame of `result`.

    Return False if the backend of `result` cannot be opened.
    """
    try:
        backend = open_backend(model, backend=result.backend, allow_unverified=True)
    except (DeviceError, MissingExtraError):
        return False
    try:
        save_comparison(backend, reference, result.worst_frame, path)
    finally:
        backend.close()
    return True
