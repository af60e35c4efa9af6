"""The runs of a comparison: which methods there are, and the settings of each run.

Every seed has one source stage, from which all methods start. There are two exceptions: `cycada`
has a source stage of its own, and `source`, the baseline, trains on the source alone for as many
iterations as source stage and method have together.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import UsageError
from fada_deploy.training.config import RunConfig
from fada_deploy.training.methods.alignment import METHODS, check_backbone
from fada_deploy.training.recipes import ROUNDS
from fada_deploy.training.run_queue import Job
from fada_deploy.training.stage_config import with_length, without_rounds

logger = logging.getLogger(__name__)

# Runs beside the alignment methods.
SOURCE, NO_ADVERSARY = "source", "none"
# The method that trains a source stage of its own.
CYCADA = "cycada"
# Self-training without alignment: name → settings of the stage.
SELF_TRAINING: dict[str, dict[str, Any]] = {
    "selftrain": {},
    "st": {**ROUNDS, "threshold_per_class": False},
    "cbst": ROUNDS,
    "crst": {**ROUNDS, "regularizer": 0.1},
    "proda": {"prototypes": True},
}
# Appended to the name of a method: alignment and self-training in the same iterations.
COMBINED = "+selftrain"
# The run of each seed that the methods start from.
_START = "source-stage"

ALL = (
    SOURCE, NO_ADVERSARY, *METHODS, *SELF_TRAINING, f"fada{COMBINED}", f"clan{COMBINED}",
)  # fmt: skip


def parse_methods(text: str, backbone: str) -> tuple[str, ...]:
    """Return the methods of a comma-separated list, or all that a backbone supports for "all".

    Raise `UsageError` for a method that is unknown or not supported.
    """
    if text.strip() == "all":
        return tuple(name for name in ALL if _supported(name, backbone))
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        method = name.removesuffix(COMBINED)
        if method not in METHODS and name not in (SOURCE, NO_ADVERSARY, *SELF_TRAINING):
            raise UsageError(
                f"--methods: unknown method {name!r}; choose from all, {', '.join(ALL)}, or "
                f"another method with {COMBINED}"
            )
        if method in METHODS:
            check_backbone(method, backbone)
    if not names:
        raise UsageError("--methods: no method is named")
    return names


def _supported(name: str, backbone: str) -> bool:
    method = name.removesuffix(COMBINED)
    try:
        if method in METHODS:
            check_backbone(method, backbone)
    except UsageError:
        logger.warning("%s is left out, because %s does not support it", name, backbone)
        return False
    return True


def with_budget(config: RunConfig, budget: int | None) -> RunConfig:
    """Return settings whose stages divide a number of iterations equally.

    Without a budget, self-training gets the iterations of the adversarial stage.
    """
    if budget is None:
        selftrain = with_length(config.selftrain, config.adversarial.iterations)
        return replace(config, selftrain=selftrain)
    if budget < 2:
        raise UsageError(f"--budget must be at least 2 iterations, got {budget}")
    lengths = {"source": budget - budget // 2, "adversarial": budget // 2}
    lengths["selftrain"] = lengths["adversarial"]
    changes = {}
    for stage, iterations in lengths.items():
        changes[stage] = with_length(getattr(config, stage), iterations)
    return replace(config, **changes)


def start_job(config: RunConfig, out: Path, seed: int) -> Job:
    """Return the run of a seed that trains the source stage from which the methods start."""
    settings = replace(config, seed=seed, stages=("source",), method="source", start=None)
    return Job(out / f"seed{seed}" / _START, settings)


def method_job(config: RunConfig, out: Path, method: str, start: Job) -> Job:
    """Return the run of a method, with the seed of the source stage `start`."""
    seed = start.config.seed
    folder = out / f"seed{seed}" / method
    if method == SOURCE:
        total = config.source.iterations + config.adversarial.iterations
        source = with_length(config.source, total)
        return Job(folder, replace(start.config, source=source))
    if method.removesuffix(COMBINED) == CYCADA:
        # Its source stage reads translated frames, so it is not shared.
        combined = method.endswith(COMBINED)
        own = replace(
            config, seed=seed, method=CYCADA, style="cyclegan", start=None,
            stages=("source", "selftrain" if combined else "adversarial"),
            selftrain=replace(without_rounds(config.selftrain), align=combined),
        )  # fmt: skip
        return Job(folder, own)
    # The last weights of the source stage, even if the run has checkpoints to choose from.
    after = replace(config, seed=seed, start=str((start.folder / "source").resolve()))
    if method == NO_ADVERSARY:
        adversarial = replace(config.adversarial, adversarial_weight=0.0)
        after = replace(after, method="feature", adversarial=adversarial)
    elif method.removesuffix(COMBINED) in METHODS:
        after = replace(after, method=method.removesuffix(COMBINED))
    if method in SELF_TRAINING or method.endswith(COMBINED):
        changes = {"align": method.endswith(COMBINED), **SELF_TRAINING.get(method, {})}
        selftrain = replace(without_rounds(config.selftrain), **changes)
        return Job(folder, replace(after, stages=("selftrain",), selftrain=selftrain), start.folder)
    return Job(folder, replace(after, stages=("adversarial",)), start.folder)
