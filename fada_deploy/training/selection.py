"""Choose the stage of a run that is best on the target, without labels of the target.

The candidates are the finished stages, their checkpoints, and the weights of `--start`. The one
with the highest score is chosen. The score combines how little the labels change when frames are
mirrored, resized or recolored with the IoU that the probabilities predict. Both are means over
classes, so that a network that has lost classes does not win. docs/results compares the score with
other criteria.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, ModelError
from fada_deploy.common.files import sha256
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.runs import BUILTIN_FILE, STAGES, WEIGHTS, all_weights
from fada_deploy.common.selection import (
    PARTS,
    START,
    TABLE_HEADER,
    CandidateDocument,
    ConsistencyDocument,
    SelectionDocument,
    describe_choice,
    read_selection,
    table_rows,
    write_selection,
)
from fada_deploy.common.tables import format_table
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.data.source_check import SOURCE_CLASSES, read_class_pixels
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.unlabeled_scores import (
    TargetFrames,
    UnlabeledScores,
    missing_classes,
    score_candidates,
)
from fada_deploy.training.weights.checkpoints import load_model, read_provenance

logger = logging.getLogger(__name__)

# Enough frames for stable criteria, few enough to take a small part of the time of training.
MAX_FRAMES = 40


@dataclass(frozen=True)
class Candidate:
    """Weights that can be chosen."""

    name: str
    stage: str
    iteration: int | None
    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path, *, name: str | None = None) -> Candidate:
        """Describe a weights file; by default its name is `STAGE` or `STAGE/ITERATION`."""
        provenance = read_provenance(path)
        stage, iteration = (
            str(provenance.get("stage", path.parent.name)),
            provenance.get("iteration"),
        )
        if name is None:
            name = path.parent.name if path.name == WEIGHTS else f"{stage}/{path.stem}"
        return cls(name, stage, iteration, path, sha256(path))


def select_stage(
    run: Path,
    frames: FrameDataset,
    *,
    start: Path | None,
    seed: int,
    device: torch.device,
    minimum: int = 2,
) -> SelectionDocument | None:
    """Choose a stage of a run, write `selection.json` and log the result.

    Args:
        run: Folder of the run.
        frames: The training frames of the target; their labels are not read.
        start: The weights that the run started from, if it has no source stage of its own.
        seed: Seed of the pixels and colors.
        device: Where the networks run.
        minimum: How many candidates are worth the time.

    An up-to-date `selection.json` is kept. Return None if there are fewer than `minimum`
    candidates, or if no frame can be read.
    """
    candidates = _candidates(run, start)
    if len(candidates) < minimum:
        return None
    document = _up_to_date(run, candidates)
    if document is None:
        try:
            document = _measure(run, candidates, frames, seed, device)
        except DataError as error:
            logger.warning("no stage is chosen: %s", error)
            return None
        write_selection(run, document)
    _log(document, start)
    return document


def choose(
    candidates: Sequence[Candidate],
    scores: Sequence[UnlabeledScores],
    source_fractions: NDArray[np.float64],
    space: LabelSpace,
    *,
    run: Path,
    frames: int,
) -> SelectionDocument:
    """Return the document of scored candidates, in training order.

    The candidate with the highest score is the best; of equal ones, the last.
    """
    order = range(len(candidates))
    best = max(order, key=lambda i: (scores[i].score, i))
    own = [i for i in order if candidates[i].name != START]
    chosen = max(own, key=lambda i: (scores[i].score, i))
    parts = [each.consistency | {"expected_iou": each.expected_iou} for each in scores]
    agreeing = [part for part in PARTS if max(order, key=lambda i: (parts[i][part], i)) == best]
    missing = [missing_classes(source_fractions, each.frame_fractions) for each in scores]
    document: dict[str, Any] = {
        "frames": frames,
        "chosen": candidates[chosen].name,
        "best": candidates[best].name,
        "agreeing": tuple(agreeing),
    }
    # The network before adaptation. A checkpoint may not have learned the classes yet.
    first = next((i for i in order if "/" not in candidates[i].name), 0)
    documents = tuple(
        _candidate_document(candidates[i], scores[i], missing[i], missing[first], space, run)
        for i in order
    )
    return SelectionDocument(**document, candidates=documents)


def source_frame_fractions(run: Path, num_classes: int) -> NDArray[np.float64]:
    """Return the fraction of a run's source frames that contain each class, (K,).

    All are 0 if the run has not read its source, so that no class counts as missing. Raise
    `DataError` if the file is damaged.
    """
    path = run / SOURCE_CLASSES
    if not path.is_file():
        return np.zeros(num_classes)
    return np.asarray((read_class_pixels(path) > 0).mean(0), np.float64)


def _candidates(run: Path, start: Path | None) -> list[Candidate]:
    """Return the candidates of a run in training order."""
    candidates = [] if start is None else [Candidate.read(start, name=START)]
    for path in all_weights(run):
        try:
            candidates.append(Candidate.read(path))
        except ModelError as error:
            logger.warning("%s; it is left out of the choice of a stage", error)
    return candidates


def _up_to_date(run: Path, candidates: Sequence[Candidate]) -> SelectionDocument | None:
    """Return the stored document if it describes just these candidates."""
    try:
        document = read_selection(run)
    except ModelError as error:
        logger.warning("%s", error)
        return None
    if document is None:
        return None
    stored = [(each.name, each.sha256) for each in document.candidates]
    return document if stored == [(each.name, each.sha256) for each in candidates] else None


def _measure(
    run: Path,
    candidates: Sequence[Candidate],
    frames: FrameDataset,
    seed: int,
    device: torch.device,
) -> SelectionDocument:
    source_fractions = source_frame_fractions(run, frames.space.num_classes)
    target = TargetFrames(frames, MAX_FRAMES)
    shown = source_fractions > 0
    total = len(candidates) * min(MAX_FRAMES, len(frames))
    with progress_bar(total, "choosing a stage") as progress:
        scores = score_candidates(
            [partial(_load, candidate.path, device) for candidate in candidates],
            target,
            classes=shown if shown.any() else np.ones_like(shown),
            seed=seed,
            on_frame=progress.update,
        )
    return choose(candidates, scores, source_fractions, frames.space, run=run, frames=len(target))


def _load(path: Path, device: torch.device) -> SegmentationModel:
    return load_model(path, device)[0]


def _candidate_document(
    candidate: Candidate,
    scores: UnlabeledScores,
    missing: NDArray[np.bool_],
    missing_first: NDArray[np.bool_],
    space: LabelSpace,
    run: Path,
) -> CandidateDocument:
    is_start = candidate.name == START
    names = np.array(space.names)
    path = candidate.path if is_start else candidate.path.relative_to(run)
    return CandidateDocument(
        name=candidate.name,
        stage=candidate.stage,
        iteration=candidate.iteration,
        weights=path.as_posix(),
        sha256=candidate.sha256,
        score=scores.score,
        consistency=scores.mean_consistency,
        consistency_by_change=ConsistencyDocument(**scores.consistency),
        expected_iou=scores.expected_iou,
        ensemble_agreement=scores.ensemble_agreement,
        neighborhood_density=scores.neighborhood_density,
        mirror_agreement=scores.mirror_agreement,
        entropy=scores.entropy,
        class_fractions=dict(zip(space.names, scores.class_fractions.tolist(), strict=True)),
        missing_classes=tuple(names[missing].tolist()),
        vanished_classes=tuple(names[missing & ~missing_first].tolist()),
    )


def _log(document: SelectionDocument, start: Path | None) -> None:
    logger.info(
        "criteria on %d target frames, without labels:\n%s",
        document.frames,
        format_table(TABLE_HEADER, table_rows(document), indent="  "),
    )
    logger.info("%s", describe_choice(document))
    if document.best == START:
        logger.warning(
            "the weights that this run started from look better on the target than any of its "
            "stages; to keep them, use %s",
            "--model builtin"
            if start == BUILTIN_FILE
            else f"`fada export {shlex.quote(str(start))} --out model.onnx`",
        )
    elif document.chosen.split("/")[0] == STAGES[0] and any(
        each.name.split("/")[0] in STAGES[1:] for each in document.candidates
    ):
        logger.warning(
            "no later stage looks better on the target than the stage source, so adaptation may "
            "have made the network worse"
        )
    collapsed = [
        f"{each.name}: {', '.join(each.vanished_classes)}"
        for each in document.candidates
        if each.vanished_classes
    ]
    if collapsed:
        logger.warning(
            "the predictions on the target no longer contain some classes that the source shows "
            "(%s)",
            "; ".join(collapsed),
        )
