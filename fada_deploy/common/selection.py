"""`selection.json`: which weights of a run were chosen without labels of the target, and why.

`fada train` writes the file. `fada export` and the other commands that take a run read it.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from fada_deploy.common.documents import read_json
from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import write_text

SELECTION = "selection.json"
# The name of the weights that `--start` gave, among the candidates.
START = "start"

# The parts of the score: the consistency for each change of the frames, and the expected IoU.
Part = Literal["mirrored", "smaller", "larger", "recolored", "expected_iou"]
PARTS: tuple[Part, ...] = get_args(Part)

_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
_AtLeastZero = Annotated[float, msgspec.Meta(ge=0)]


class ConsistencyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Mean IoU of the labels of target frames with those of the changed frames, by change.

    Attributes:
        mirrored: Mirrored frames.
        smaller: Frames of 3/4 of the width and height.
        larger: Frames of 3/2 of the width and height.
        recolored: Frames with other colors, blur and noise.
    """

    mirrored: _Fraction
    smaller: _Fraction
    larger: _Fraction
    recolored: _Fraction


class CandidateDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The weights of a stage or a checkpoint, and what they predict on the target.

    Attributes:
        name: The stage, `STAGE/ITERATION` for a checkpoint, or `start` for the weights of
            `--start`.
        stage: The stage that trained the weights.
        iteration: The last iteration; null if unknown.
        weights: The weights file; relative to the run, unless the candidate is `start`.
        sha256: SHA-256 of the weights file.
        score: (consistency² · expected_iou)^(1/3); the candidate with the highest is chosen.
        consistency: The mean of `consistency_by_change`.
        consistency_by_change: Consistency for each change of the frames.
        expected_iou: Mean IoU that the probabilities predict for their labels.
        ensemble_agreement: Fraction of pixels with the label of the averaged candidates.
        neighborhood_density: Soft neighborhood density in nats.
        mirror_agreement: Fraction of pixels whose label does not change if the frame is mirrored.
        entropy: Mean entropy of the class probabilities in nats.
        class_fractions: Fraction of the target's pixels by class.
        missing_classes: Classes that the source shows and the predictions on the target lack.
        vanished_classes: The missing classes that `start` or else the first stage predicts.
    """

    name: str
    stage: str
    iteration: int | None
    weights: str
    sha256: str
    score: _Fraction
    consistency: _Fraction
    consistency_by_change: ConsistencyDocument
    expected_iou: _Fraction
    ensemble_agreement: _Fraction
    neighborhood_density: _AtLeastZero
    mirror_agreement: _Fraction
    entropy: _AtLeastZero
    class_fractions: dict[str, _Fraction]
    missing_classes: tuple[str, ...]
    vanished_classes: tuple[str, ...]


class SelectionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates of a run in training order, and the chosen one.

    Attributes:
        version: Version of this format.
        frames: Number of target frames that were used, without their labels.
        chosen: Name of the chosen candidate, which is never `start`.
        best: Name of the best candidate; differs from `chosen` only if that is `start`.
        agreeing: The parts of the score by which alone `best` is also the best.
        candidates: The candidates in training order.
    """

    version: Literal[1] = 1
    frames: Annotated[int, msgspec.Meta(ge=1)]
    chosen: str
    best: str
    agreeing: tuple[Part, ...]
    candidates: Annotated[tuple[CandidateDocument, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Raise `ModelError` if `chosen` or `best` is not a candidate, or two have one name."""
        names = [each.name for each in self.candidates]
        if len(set(names)) < len(names) or self.chosen not in names or self.best not in names:
            raise ModelError(
                f"found chosen {self.chosen!r} and best {self.best!r}, expected two of the "
                f"different names {', '.join(names)}"
            )

    @property
    def chosen_candidate(self) -> CandidateDocument:
        """The candidate with the name `chosen`."""
        return next(each for each in self.candidates if each.name == self.chosen)


TABLE_HEADER = (
    "stage", "score %", "consistency %", "expected IoU %", "ensemble %", "density", "mirror %",
    "entropy", "missing classes",
)  # fmt: skip


def table_rows(document: SelectionDocument) -> list[list[str]]:
    """Return the rows of a table of the candidates, below `TABLE_HEADER`."""
    return [
        [
            each.name,
            f"{100 * each.score:.1f}",
            f"{100 * each.consistency:.1f}",
            f"{100 * each.expected_iou:.1f}",
            f"{100 * each.ensemble_agreement:.1f}",
            f"{each.neighborhood_density:.2f}",
            f"{100 * each.mirror_agreement:.1f}",
            f"{each.entropy:.2f}",
            str(len(each.missing_classes)),
        ]
        for each in document.candidates
    ]


def describe_choice(document: SelectionDocument) -> str:
    """Return one line with the chosen candidate, why, and how sure that is."""
    agreeing = f"{len(document.agreeing)} of {len(PARTS)} parts of the score"
    if document.best == document.chosen:
        return (
            f"chosen without labels: {document.chosen} (highest score of this run; {agreeing} "
            "agree)"
        )
    return (
        f"chosen without labels: {document.chosen} (highest score of this run, but "
        f"{document.best} is better; {agreeing} agree)"
    )


def read_selection(run: Path) -> SelectionDocument | None:
    """Read the `selection.json` of a run, None if it has none.

    Raise `ModelError` if the file is damaged.
    """
    path = run / SELECTION
    if not path.is_file():
        return None
    return read_json(
        path.read_bytes(),
        SelectionDocument,
        where=str(path),
        remedy=f"delete it and run `fada train --resume {shlex.quote(str(run))}`, which writes it "
        "again",
        file_names=True,
    )


def write_selection(run: Path, document: SelectionDocument) -> None:
    """Write the `selection.json` of a run atomically."""
    text = json.dumps(msgspec.to_builtins(document), indent=2)
    write_text(run / SELECTION, text + "\n")
