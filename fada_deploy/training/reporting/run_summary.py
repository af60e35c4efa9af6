"""Summary of a run folder: settings, metrics and scores of each stage, discriminator health."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metrics import is_scores
from fada_deploy.common.runs import CONFIG, METRICS, SCORES, STAGES, not_a_run

# Below the first accuracy the discriminator is no better than chance; above the second its loss has
# almost no gradient.
_CHANCE, _SATURATED = 0.52, 0.98
# Part of the time of a stage above which waiting for frames is reported.
_MUCH_WAITING = 0.2


@dataclass(frozen=True)
class RunSummary:
    """The contents of a run folder.

    Attributes:
        folder: The folder.
        config: The settings of the run, as in `config.json`.
        metrics: Stage → lines of its `metrics.jsonl`, one per logged iteration.
        scores: Stage → its `scores.json`, for stages that were scored.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, float]]]
    scores: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunSummary:
        """Read a run folder; raise `ModelError` if it is not a run or a file of it is damaged."""
        config_path = folder / CONFIG
        if not config_path.is_file():
            raise ModelError(not_a_run(folder))
        metrics, scores = {}, {}
        for stage in STAGES:
            if (path := folder / stage / METRICS).is_file():
                # A process that was killed has not finished its last line.
                complete = (line for line in _read(path).splitlines(True) if line.endswith("\n"))
                lines = map(_parse_line, complete)
                metrics[stage] = [line for line in lines if line is not None]
            if (path := folder / stage / SCORES).is_file():
                scores[stage] = _parse(_read(path), path)
                if not is_scores(scores[stage]):
                    raise ModelError(
                        f"{path}: not the scores of a stage; delete it, and score the stage again "
                        f"with `fada train --resume {shlex.quote(str(folder))}`"
                    )
        return cls(folder, _parse(_read(config_path), config_path), metrics, scores)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    # Not read_json: metrics of a diverged run contain NaN, which the report must show.
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path}: found {text.strip()[:40]}, expected a table")
    return document


def _parse_line(text: str) -> dict[str, float] | None:
    """Return a line of metrics, None for a damaged one, which the training drops as well."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def discriminator_health(lines: Sequence[Mapping[str, float]]) -> str:
    """Return one line about the discriminator at the end of a stage, "" without its accuracy.

    `lines` are the metrics of the stage. The accuracy is averaged over the last tenth of them, and
    reported as no better than chance, as saturated, or as it is.
    """
    accuracies = [
        line["discriminator_accuracy"] for line in lines if "discriminator_accuracy" in line
    ]
    if not accuracies:
        return ""
    accuracy = float(np.mean(accuracies[-max(1, len(accuracies) // 10) :]))
    text = f"final discriminator accuracy {100 * accuracy:.0f} % (50 % is chance)"
    if accuracy < _CHANCE:
        return (
            f"{text}: the domains are aligned, or the discriminator has not learned; check "
            "discriminator_lr"
        )
    if accuracy > _SATURATED:
        return (
            f"{text}: the discriminator is saturated and gives almost no gradient; a lower "
            "discriminator_lr may help"
        )
    return text


def waiting_for_frames(lines: Sequence[Mapping[str, float]]) -> str:
    """Return a sentence if a stage spent a large part of its time waiting for frames, else ""."""
    waits = [line["loader_wait"] for line in lines if "loader_wait" in line]
    if not waits or (wait := float(np.mean(waits))) <= _MUCH_WAITING:
        return ""
    return (
        f"{100 * wait:.0f} % of the time was spent waiting for frames; keep decoded frames with "
        "--cache GIB, resize the files to the size of the run, or use more CPU cores"
    )
