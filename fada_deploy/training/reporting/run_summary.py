"""What a run's folder tells of it: settings, numbers and scores of every stage, the discriminator's health."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.errors import FadaError
from fada_deploy.common.runs import CONFIG, STAGES

# Between these D has something to learn, and something to teach.
_CHANCE, _SATURATED = 0.52, 0.98


@dataclass(frozen=True)
class RunSummary:
    """What a run's folder holds: settings, and each finished stage's numbers and scores."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, float]]]
    scores: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunSummary:
        """Read a run's folder; raise `FadaError` when it is none."""
        try:
            config = json.loads((folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError):
            raise FadaError(
                f"{folder}: no run; a run is what `fada train` makes under runs/"
            ) from None
        metrics, scores = {}, {}
        for stage in STAGES:
            if (path := folder / stage / "metrics.jsonl").is_file():
                metrics[stage] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if (path := folder / stage / "scores.json").is_file():
                scores[stage] = json.loads(path.read_text("utf-8"))
        return cls(folder, config, metrics, scores)


def discriminator_health(lines: Sequence[Mapping[str, float]]) -> str:
    """Say how the discriminator stood at the end of a stage: at chance, saturated, or between.

    Of `metrics.jsonl`'s lines, the last tenth. Empty where they do not tell.
    """
    shares = [line["discriminator_accuracy"] for line in lines if "discriminator_accuracy" in line]
    if not shares:
        return ""
    share = float(np.mean(shares[-max(1, len(shares) // 10) :]))
    said = f"at the end D puts {100 * share:.0f} % of the pixels into the right domain"
    if share < _CHANCE:
        return f"{said}, no more than chance: it has nothing left to tell apart, or has not learned (its rate)"
    if share > _SATURATED:
        return (
            f"{said}: it is saturated, and pulls hardly any more; a lower discriminator_lr may help"
        )
    return said
