"""Is the file the network? From the frame on, on labeled frames, and where it differs most; knows no torch.

`fada export` runs this before it writes, `fada verify MODEL` anywhere and any time after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    compare,
)
from fada_deploy.runtime.segmenter import Segmenter

Frame = NDArray[np.uint8]
_PICTURE_WIDTH = 480


@dataclass(frozen=True)
class VerificationLimits:
    """What a file is held to: thresholds in place of the precision's own, and a labeled data set.

    `max_miou_drop` is a fraction; it counts where there is a data set.
    """

    equal_labels: float | None = None
    logit_error: float | None = None
    dataset: FrameDataset | None = None
    max_miou_drop: float = 0.02

    @classmethod
    def in_percent(
        cls, equal_labels: float | None, logit_error: float | None
    ) -> VerificationLimits:
        """Return the gate that a command line asks for, which says percent."""
        return cls(None if equal_labels is None else equal_labels / 100, logit_error)

    def thresholds(self, precision: str) -> Tolerance:
        """Return what a file of a precision is held to."""
        own = TOLERANCES[precision]
        return Tolerance(
            own.equal_labels if self.equal_labels is None else self.equal_labels,
            own.logit_error if self.logit_error is None else self.logit_error,
        )


def verify(
    model: Path,
    reference: ReferenceOutputs,
    *,
    frames: Sequence[Frame],
    labels: Sequence[NDArray[np.uint8]],
    backend: str,
) -> ParityResult:
    """Run `model` on a backend and compare it with the network's answers, from the frame on.

    `frames` are the reference's frames as they were read and `labels` the network's label maps at their
    own size, so that resizing and upsampling are proven too.
    """
    # Two at a time where the file allows it, so that a dynamic batch is proven to be one.
    with Segmenter(model, backend=backend, device="cpu", batch=2) as segmenter:
        equal = [
            float((said == truth).mean())
            for said, truth in zip(segmenter.labels(frames, color="rgb"), labels, strict=True)
        ]
        at_input = compare(segmenter.backend, reference)
    sizes = np.array([t.size for t in labels], np.float64)
    share = float((np.array(equal) * sizes).sum() / sizes.sum())
    return replace(at_input, equal_labels=share, worst_frame=int(np.argmin(equal)))


def own_size(
    labels: Sequence[NDArray[np.uint8]], frames: Sequence[Frame]
) -> list[NDArray[np.uint8]]:
    """Return label maps made at the network's size as a labels head gives them at each frame's size."""
    return [resize_labels(m, f.shape[:2]) for m, f in zip(labels, frames, strict=True)]


def verify_file(
    model: Path, reference: ReferenceOutputs, backends: Sequence[str], *, device: str = "auto"
) -> dict[str, ParityResult]:
    """Compare a file with its reference outputs on each of the backends."""
    found = {}
    for name in backends:
        backend = open_backend(model, backend=name, device=device, allow_unverified=True)
        try:
            found[name] = compare(backend, reference)
        finally:
            backend.close()
    return found


@dataclass(frozen=True)
class AccuracyCheck:
    """A file beside its float32 original on labeled frames: mIoU of both, and the class that lost most."""

    frames: int
    miou: float
    baseline: float
    worst_class: str
    worst_change: float

    @property
    def change(self) -> float:
        """How much the mIoU changed, negative where it fell."""
        return self.miou - self.baseline

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {**asdict(self), "change": self.change}

    def text(self) -> str:
        """Say it in a line."""
        return (
            f"mIoU {100 * self.miou:.2f} on {self.frames} labeled frames, {100 * self.change:+.2f} against fp32; "
            f"worst class {self.worst_class} {100 * self.worst_change:+.2f}"
        )

    def check(self, max_drop: float) -> None:
        """Raise `ToleranceError` when the mIoU fell by more than `max_drop` (0 … 1)."""
        if not -self.change <= max_drop:
            raise ToleranceError(f"{self.text()}; a drop of {100 * max_drop:.2f} points is allowed")


def judge(
    model: Path,
    baseline: Path,
    dataset: FrameDataset,
    *,
    backend: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> AccuracyCheck:
    """Score a file and its float32 original on labeled frames with one backend."""
    scores = []
    for path in (baseline, model):
        # An engine's original is no engine.
        engine = backend if path.suffix == model.suffix else "auto"
        with Segmenter(path, backend=engine) as segmenter:
            result = evaluate(partial(segmenter.labels, color="rgb"), dataset, progress=progress)
        scores.append(result.scores)
    before, after = (s.iou for s in scores)
    both = ~(np.isnan(before) | np.isnan(after))
    change = np.where(both, after - before, np.inf)
    worst = int(change.argmin())
    names = dataset.space.names
    return AccuracyCheck(
        result.frames, scores[1].miou, scores[0].miou, names[worst], float(change[worst])
    )


def draw_worst(backend: Backend, reference: ReferenceOutputs, index: int, path: Path) -> None:
    """Draw a reference frame as the network labels it, as the file does, and where they differ (PNG)."""
    frame = reference.frames[index]
    size, palette = backend.metadata.input_size_hw, backend.metadata.label_space.palette
    said = backend.submit(frame[None]).labels(size)[0]
    differs = frame // 3
    differs[said != reference.labels[index]] = (255, 40, 40)
    drawn = [
        ("network", overlay(frame, reference.labels[index], palette, 0.6)),
        (f"file on {backend.name}", overlay(frame, said, palette, 0.6)),
        (f"differs: {(said != reference.labels[index]).mean():.3%}", differs),
    ]
    scale = _PICTURE_WIDTH / size[1]
    panels = []
    for title, picture in drawn:
        shown = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        titled = cv2.copyMakeBorder(shown, 28, 0, 2, 2, cv2.BORDER_CONSTANT, value=(24, 24, 24))
        cv2.putText(
            titled, title, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (238, 238, 238), 1, cv2.LINE_AA
        )
        panels.append(titled)
    _, data = cv2.imencode(".png", cv2.cvtColor(np.hstack(panels), cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def try_draw(model: Path, reference: ReferenceOutputs, worst: ParityResult, path: Path) -> bool:
    """Draw the worst frame where the backend still opens; say whether it did."""
    try:
        backend = open_backend(model, backend=worst.backend, allow_unverified=True)
    except (DeviceError, MissingExtraError):
        return False
    try:
        draw_worst(backend, reference, worst.worst_frame, path)
    finally:
        backend.close()
    return True
