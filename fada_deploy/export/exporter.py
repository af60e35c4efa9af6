"""Export a weights file to ONNX and verify it against the network. Needs torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fada_deploy._version import __version__
from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.common.files import remove_old_partial, rename_flushed, sha256, temporary_path
from fada_deploy.common.images import resize_frame
from fada_deploy.common.metadata import HEADS, ModelMetadata
from fada_deploy.common.portable import shared_provenance
from fada_deploy.common.system import require_package
from fada_deploy.data.base import evenly_spaced
from fada_deploy.export import target_statistics
from fada_deploy.export.calibration_frames import target_frames, target_of
from fada_deploy.export.onnx_metadata import replace_metadata
from fada_deploy.export.to_onnx import write_onnx
from fada_deploy.export.verify import Frame, resize_to_frames, verify_on_frames
from fada_deploy.runtime.backends import ONNX_BACKENDS
from fada_deploy.runtime.parity import (
    ParityResult,
    ReferenceOutputs,
    Tolerance,
    reference_path,
    require_parity,
)
from fada_deploy.training.interpolation import upsample
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor, with_input_size
from fada_deploy.training.weights.checkpoints import load_model

logger = logging.getLogger(__name__)

REFERENCE_FRAMES = 6


@dataclass(frozen=True)
class ExportedModel:
    """An fp32 ONNX file, its reference outputs, and its parity result by backend.

    `provenance` is that of the weights, with the paths of this machine.
    """

    model: Path
    reference: Path
    metadata: ModelMetadata
    verification: dict[str, ParityResult]
    provenance: dict[str, Any]


def export_onnx(
    weights: Path,
    out: Path,
    *,
    head: str = "logits",
    size_hw: tuple[int, int] | None = None,
    batch: int | None = None,
    frames: Path | None = None,
    tolerance: Tolerance | None = None,
) -> ExportedModel:
    """Export a weights file to `out` (.onnx) and write its reference outputs next to it.

    The file is compared with the network on each installed backend before it is saved.

    Args:
        weights: Weights file of a finished stage.
        out: Path of the ONNX file.
        head: "logits" or "labels".
        size_hw: Input size of the network; None for the size it was trained at.
        batch: Fixed batch size; None for a dynamic one.
        frames: Images or video for the reference outputs; None for the target of the run.
        tolerance: What may differ; None for the tolerance of fp32.

    Raises:
        ToleranceError: The outputs of a backend differ too much; nothing is written.
        DataError: There are no frames for the reference outputs.
        UsageError: `head`, `out` or `size_hw` is not allowed.
        MissingExtraError: `onnx`, `onnxscript` or every backend is missing.
    """
    backends = _check_requirements(head, out)
    trained, provenance = load_model(weights)
    model = with_input_size(trained, size_hw)
    metadata = _initial_metadata(model, weights, provenance, head, batch)
    measured_frames = target_frames(
        target_of(weights, provenance), model.spec.space, frames,
        count=target_statistics.NUM_FRAMES, held_out=True, purpose="reference outputs",
    )  # fmt: skip
    shown = evenly_spaced(len(measured_frames), REFERENCE_FRAMES)
    images = [measured_frames[i] for i in shown]
    reference, labels = make_reference_outputs(model, images)
    if head == "labels":
        labels = resize_to_frames(list(reference.labels), images)
    _warn_about_few_classes(reference)
    height, width = model.spec.size_hw
    logger.info("exporting %s at %dx%d with head %s", weights, width, height, head)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_old_partial(out.parent)
    draft = temporary_path(out)
    draft_reference = reference_path(draft)
    try:
        write_onnx(model, metadata, draft)
        results = {
            b: verify_on_frames(draft, reference, frames=images, labels=labels, backend=b)
            for b in backends
        }
        require_parity(results, tolerance or Tolerance())
        statistics = target_statistics.measure(draft, measured_frames, backend=backends[0])
        reference.save(draft_reference)
        metadata = replace(
            metadata,
            hashes={**metadata.hashes, "reference": sha256(draft_reference)},
            verification={name: result.to_dict() for name, result in results.items()},
            target_statistics=statistics,
        )
        replace_metadata(draft, metadata)
        rename_flushed(draft_reference, reference_path(out))
        rename_flushed(draft, out)
    finally:
        draft.unlink(missing_ok=True)
        draft_reference.unlink(missing_ok=True)
    return ExportedModel(out, reference_path(out), metadata, results, provenance)


def _initial_metadata(
    model: SegmentationModel,
    weights: Path,
    provenance: dict[str, Any],
    head: str,
    batch: int | None,
) -> ModelMetadata:
    """Return the metadata of a file that has not been verified yet."""
    return ModelMetadata(
        label_space=model.spec.space,
        input_size_hw=model.spec.size_hw,
        head=head,
        align_corners=model.align_corners,
        batch=batch,
        hashes={"weights": sha256(weights)},
        provenance=shared_provenance(provenance, weights.parent.parent),
        versions={"fada_deploy": __version__, "torch": torch.__version__, "onnx": version("onnx")},
    )


def _check_requirements(head: str, out: Path) -> list[str]:
    """Return the installed backends for ONNX files; raise if an export cannot work."""
    if head not in HEADS:
        raise UsageError(f"unknown head {head!r}; use one of {', '.join(HEADS)}")
    if out.suffix != ".onnx":
        raise UsageError(f"the output file must end with .onnx, got {out}")
    for package in ("onnx", "onnxscript"):
        require_package(package, "export")
    backends = [name for name in ONNX_BACKENDS if find_spec(name) is not None]
    if not backends:
        # Without a backend the file could not be verified.
        raise MissingExtraError("onnxruntime", "export")
    return backends


def _warn_about_few_classes(reference: ReferenceOutputs) -> None:
    if (classes := reference.count_classes()) < 2:
        logger.warning(
            "the network predicts only %d class in the reference frames, so the parity check is "
            "weak; name other frames with --calibration",
            classes,
        )


def make_reference_outputs(
    model: SegmentationModel, frames: Sequence[Frame]
) -> tuple[ReferenceOutputs, list[Frame]]:
    """Run the network on frames, (H, W, 3) uint8 RGB of any size.

    Return the outputs at the network's input size, and the label maps at each frame's own size.
    """
    predictor = Predictor(model, torch.device("cpu"))
    size = model.spec.size_hw
    logits = torch.cat([predictor.logits([f]) for f in frames])
    labels = torch.cat([upsample(z[None], size).argmax(1) for z in logits]).to(torch.uint8)
    reference = ReferenceOutputs(
        np.stack([resize_frame(f, size) for f in frames]), logits.numpy(), labels.numpy()
    )
    return reference, predictor.labels(frames)
