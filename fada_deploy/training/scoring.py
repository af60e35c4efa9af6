"""Score the weights of a finished stage on the target's labeled validation frames."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fada_deploy.common.files import write_text
from fada_deploy.common.metrics import is_scores
from fada_deploy.common.runs import SCORES, STAGES, WEIGHTS
from fada_deploy.data.base import FrameDataset
from fada_deploy.evaluation import evaluate
from fada_deploy.training.config import RunConfig
from fada_deploy.training.predict import Predictor, describe_views
from fada_deploy.training.weights.checkpoints import load_model

logger = logging.getLogger(__name__)


def stage_scores(
    folder: Path, config: RunConfig, frames: FrameDataset, device: torch.device
) -> dict[str, Any]:
    """Return the scores of the stage in `folder`, from its `scores.json` if that is up to date.

    It is up to date if it is newer than the weights, and no frame or label file has changed since.

    The document holds the scores of `Scores.to_dict` and: `input` ("WIDTHxHEIGHT"), `views` (a
    description of the averaged views), `frames` (their number), `failed` (error lines of
    unreadable frames) and `files` (a hash of the sizes and times of frames and labels). Raise
    `DataError` if no frame can be read.
    """
    path, weights = folder / SCORES, folder / WEIGHTS
    files = _hash_of_files(frames)
    if path.is_file() and path.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
        document = _read_scores(path)
        if document is None:
            logger.warning("%s is damaged; the stage is scored again", path)
        elif document.get("files", files) == files:
            return document
    document = {**compute_scores(weights, config, frames, device), "files": files}
    write_text(path, json.dumps(document, indent=2))
    return document


def _hash_of_files(frames: FrameDataset) -> str:
    digest = hashlib.sha256()
    for pair in frames.pairs:
        for path in (pair.image, pair.labels):
            with suppress(OSError):
                if path is not None:
                    status = path.stat()
                    digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_scores(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document if is_scores(document) else None


def compute_scores(
    weights: Path, config: RunConfig, frames: FrameDataset, device: torch.device
) -> dict[str, Any]:
    """Evaluate a weights file; return the document of `stage_scores`, without `files`."""
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
