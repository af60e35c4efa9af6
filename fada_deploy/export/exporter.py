"""`fada export`: weights → ONNX file and reference outputs, both written only when they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fada_deploy import __version__
from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.images import resize_frame
from fada_deploy.common.metadata import HEADS, ModelMetadata
from fada_deploy.export import target_statistics
from fada_deploy.export.calibration_frames import target_frames
from fada_deploy.export.onnx_metadata import stamp
from fada_deploy.export.to_onnx import write_onnx
from fada_deploy.export.verify import Frame, own_size, verify
from fada_deploy.runtime.backends import ONNX_BACKENDS
from fada_deploy.runtime.parity import (
    ParityResult,
    ReferenceOutputs,
    Tolerance,
    gate,
    reference_path,
)
from fada_deploy.training.interpolation import upsample
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor, with_input_size
from fada_deploy.training.weights.checkpoints import load_model

REFERENCE_FRAMES = 6
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """The files that were written and how each backend compared."""

    model: Path
    reference: Path
    metadata: ModelMetadata
    verification: dict[str, ParityResult]


def export(
    weights: Path,
    out: Path,
    *,
    head: str = "logits",
    size_hw: tuple[int, int] | None = None,
    batch: int | None = None,
    frames: Path | None = None,
    thresholds: Tolerance | None = None,
    say: Say = print,
) -> Exported:
    """Export a weights file to `out` (.onnx), proven against the network on real frames.

    `size_hw` is the network's input, by default the one it was trained for; `batch` None is dynamic;
    `frames` holds pictures or video to prove on, by default the run's own target. Raise `ToleranceError`
    when a backend's answers are not the network's, and write nothing.
    """
    if head not in HEADS:
        raise UsageError(f"no head {head!r}; there are {', '.join(HEADS)}")
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: an ONNX file ends in .onnx")
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "export")
    backends = [name for name in ONNX_BACKENDS if find_spec(name) is not None]
    if not backends:
        # With nothing to run the file on, nothing would be proven.
        raise MissingExtraError("onnxruntime", "export")
    trained, provenance = load_model(weights)
    model = with_input_size(trained, size_hw)
    metadata = ModelMetadata(
        label_space=model.spec.space,
        input_size_hw=model.spec.size_hw,
        head=head,
        align_corners=model.align_corners,
        batch=batch,
        hashes={"weights": sha256(weights)},
        provenance=provenance,
        versions={"fada_deploy": __version__, "torch": torch.__version__, "onnx": version("onnx")},
    )
    seen = target_frames(
        provenance,
        model.spec.space,
        frames,
        count=target_statistics.FRAMES,
        held_out=True,
        purpose="reference",
        say=say,
    )
    chosen = np.linspace(0, len(seen) - 1, min(REFERENCE_FRAMES, len(seen))).round().astype(int)
    pictures = [seen[i] for i in chosen.tolist()]
    reference, labels = make_reference_outputs(model, pictures)
    if head == "labels":
        labels = own_size(list(reference.labels), pictures)
    if reference.classes() < 2:
        say(
            f"note: the network sees {reference.classes()} class in the reference frames, so the reference is weak"
        )

    say(f"exporting {weights} at {model.spec.size_hw[1]}x{model.spec.size_hw[0]}, head {head}")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.stem}.partial.onnx")
    draft_reference = reference_path(draft)
    try:
        write_onnx(model, metadata, draft)
        found = {
            b: verify(draft, reference, frames=pictures, labels=labels, backend=b) for b in backends
        }
        gate(found, thresholds or Tolerance())
        # Proven to be the network, the file speaks for it, and as the runtime does.
        said = target_statistics.measure(draft, seen, backend=backends[0])
        reference.save(draft_reference)
        hashes = {**metadata.hashes, "reference": sha256(draft_reference)}
        verified = {name: v.to_dict() for name, v in found.items()}
        metadata = replace(metadata, hashes=hashes, verification=verified, target_statistics=said)
        stamp(draft, metadata)
        draft_reference.replace(reference_path(out))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
        draft_reference.unlink(missing_ok=True)
    return Exported(out, reference_path(out), metadata, found)


def make_reference_outputs(
    model: SegmentationModel, frames: Sequence[Frame]
) -> tuple[ReferenceOutputs, list[Frame]]:
    """Return the network's answers on frames, and its label maps at each frame's own size."""
    predictor = Predictor(model, torch.device("cpu"))
    size = model.spec.size_hw
    logits = torch.cat([predictor.logits([f]) for f in frames])
    at_input = torch.cat([upsample(z[None], size).argmax(1) for z in logits]).to(torch.uint8)
    reference = ReferenceOutputs(
        np.stack([resize_frame(f, size) for f in frames]), logits.numpy(), at_input.numpy()
    )
    return reference, predictor.labels(frames)
