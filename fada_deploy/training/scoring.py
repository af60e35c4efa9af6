"""Score the weights of a finished stage on the target's labeled validation frames."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from fada_deploy.common.files import write_text
from fada_deploy.common.metrics import is_scores
from fada_deploy.common.runs import SCORES, STAGES, WEIGHTS
from fada_deploy.data.base import FrameDataset
from fada_deploy.evaluation import evaluate
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import size_fingerprint
from fada_deploy.training.predict import Predictor, describe_views
from fada_deploy.training.weights.checkpoints import load_model

logger = logging.getLogger(__name__)


def stage_scores(
    folder: Path, config: RunConfig, frames: FrameDataset, device: torch.device
) -> dict[str, Any]:
    """Return the scores of the stage in `folder`, from its `scores.json` if that is up to date.

    It is up to date if it is newer than the weights, and the frames and labels have the sizes in
    bytes that they had.

    The document holds the scores of `Scores.to_dict` and: `input` ("WIDTHxHEIGHT"), `views` (a
    description of the averaged views), `frames` (their number), `failed` (error lines of
    unreadable frames) and `sizes` (a hash of the sizes of the files). Raise `DataError` if no frame
    can be read.
    """
    path, weights = folder / SCORES, folder / WEIGHTS
    sizes = size_fingerprint({"val": frames})
    if path.is_file() and path.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
        document = _read_scores(path)
        if document is None:
            logger.warning("%s is damaged; the stage is scored again", path)
        elif document.get("sizes") == sizes:
            return document
    document = {**compute_scores(weights, config, frames, device), "sizes": sizes}
    write_text(path, json.dumps(document, indent=2))
    return document


def _read_scores(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document if is_scores(document) else None


def compute_scores(
    weights: Path, config: RunConfig, frames: FrameDataset, device: torch.device
) -> dict[str, Any]:
    """Evaluate a weights file; return the document of `stage_scores`, without `sizes`."""
    model, _ = load_model(weights, device)
    predictor = Predictor(model, device, scales=config.test_scales, flip=config.test_flip)
    evaluation = evaluate(predictor.labels, frames)
    height, width = model.spec.size_hw
    return {
        "input": f"{width}x{height}",
        "views": describe_views(config.test_scales, config.test_flip),
        "frames": evaluation.frames,
        "failed": list(evaluation.failed),
        **evaluation.scores.to_dict(),
    }


def describe_scores(stage: str, scores: dict[str, Any], config: RunConfig) -> str:
    """Return one line with the mIoU of a stage.

    The published score belongs to the last stage of the run and is shown with that one only.
    """
    is_last = stage == [s for s in STAGES if s in config.stages][-1]
    published = (
        f" (published: {config.published:.1f})" if is_last and config.published is not None else ""
    )
    views = f", {scores['views']}" if scores["views"] else ""
    return (
        f"{stage}: mIoU {100 * scores['miou']:.1f} %{published} on {scores['frames']} frames "
        f"at {scores['input']}{views}"
    )
