"""Adapt an adapted network again, to a new target, and measure what it forgets.

`fada adapt` continues with the stage selftrain from a trained network: with the sources of its run,
or without any source. Afterwards the networks before and after are compared on both targets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fada_deploy.common.errors import DataError, FadaError, ModelError
from fada_deploy.common.files import write_text
from fada_deploy.common.runs import (
    BUILTIN,
    BUILTIN_FILE,
    CONFIG,
    TARGET_FRAMES,
    final_weights,
    new_run,
)
from fada_deploy.common.tables import format_table
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target
from fada_deploy.training.predict import Predictor, sample_frames
from fada_deploy.training.run_files import load_config
from fada_deploy.training.scoring import compute_scores
from fada_deploy.training.settings import REMEDY, change_settings
from fada_deploy.training.stage_config import with_length, without_rounds
from fada_deploy.training.weights.checkpoints import (
    load_model,
    read_label_space,
    read_provenance,
)

logger = logging.getLogger(__name__)

ADAPTATION = "adaptation.json"
# Frames on which the labels of both networks are compared where there are no labels.
_COMPARED_FRAMES = 50
# The average of the networks before and after is better on the new target than the network after,
# or nearly as good, and forgets less of the old one (docs/results, "Adapting the built-in model").
START_WEIGHT = 0.5


@dataclass(frozen=True)
class TargetComparison:
    """The networks before and after the adaptation on one target.

    Attributes:
        target: The target, as named in the settings.
        frames: Number of compared frames.
        miou_before: mIoU of the network before, 0 to 1; None without labels.
        miou_after: mIoU of the network after, 0 to 1; None without labels.
        agreement: Fraction of the pixels with the same label before and after; None with labels.
    """

    target: str
    frames: int
    miou_before: float | None = None
    miou_after: float | None = None
    agreement: float | None = None


def adaptation_config(
    model: Path,
    *,
    tgt: str,
    source_free: bool = False,
    iterations: int | None = None,
    start_weight: float | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    remedy: str = REMEDY,
) -> RunConfig:
    """Return the settings of a run that adapts the network `model` to the target `tgt`.

    They are those that the network was trained with, except for the target, the stages, the number
    of `iterations`, the `start_weight` of `model` in the result [0.5], and the changes in `options`
    and `settings`, which have the form of `make_config`. Raise `ModelError` if the weights file
    does not contain its settings, `UsageError` for invalid changes.
    """
    weights = final_weights(model)
    network, provenance = load_model(weights)
    document = provenance.get("config")
    if not isinstance(document, dict):
        raise ModelError(
            f"{weights} does not contain the settings of its training; use `fada train --start "
            f"{weights} --stages selftrain`"
        )
    previous = RunConfig.from_dict(
        document,
        where=str(weights),
        remedy="train the network again with this version of fada_deploy",
    )
    # The name of the built-in model is the same on every machine.
    start = str(BUILTIN if weights == BUILTIN_FILE else weights)
    weight = START_WEIGHT if start_weight is None else start_weight
    selftrain = replace(previous.selftrain, source_free=source_free, start_weight=weight)
    if iterations is not None:
        # A warm-up that is shortened in proportion damages the network in its first iterations.
        warmup = min(selftrain.warmup, iterations // 2)
        selftrain = replace(with_length(selftrain, iterations), warmup=warmup)
    style = "none" if source_free else previous.style
    if previous.method == "source":
        selftrain = replace(selftrain, align=False)
    if source_free:
        # The teacher does not change, so every round would have the same labels.
        selftrain = replace(without_rounds(selftrain), align=False, prototypes=False)
    config = replace(
        previous,
        tgt=tgt, tgt_root=None, ego_mask=None, start=start, stages=("selftrain",),
        backbone=network.spec.backbone, size=network.spec.size_hw, norm="auto", published=None,
        # No network is new, so its file of initial weights need not be on this machine.
        init="imagenet", init_norm=None,
        selftrain=selftrain, style=style,
    )  # fmt: skip
    return change_settings(config, options=options or {}, settings=settings, remedy=remedy)


def adaptation_folder(config: RunConfig, out: Path | None) -> Path:
    """Return the folder of a run of `fada adapt`: `out`, or a new one under `runs`.

    A run that was begun in `out` with the same settings is continued. Raise `UsageError` if `out`
    contains something else.
    """
    if out is not None and (out / CONFIG).is_file() and load_config(out) == config:
        return out
    return new_run(config.source_name, config.tgt, config.backbone, out)


def compare_targets(run: Path, config: RunConfig, device: torch.device) -> list[TargetComparison]:
    """Compare the networks before and after a run of `fada adapt` on the new and the old target.

    With labeled validation frames both mIoU are computed, and otherwise the agreement of their
    labels. A target that can no longer be opened is reported by a warning and left out. The result
    is also written to the run's `adaptation.json`.
    """
    assert config.start is not None, "a run of `fada adapt` has a start"
    before, after = final_weights(Path(config.start)), final_weights(run)
    old = RunConfig.from_dict(read_provenance(before)["config"])
    comparisons = []
    for name, settings in ((TARGET_FRAMES, config), ("previous_target_frames", old)):
        if name == "previous_target_frames" and (
            (settings.tgt, settings.tgt_root) == (config.tgt, config.tgt_root)
            or before == BUILTIN_FILE
        ):
            continue
        try:
            comparisons.append(_compare(before, after, settings, run / name, device))
        except FadaError as error:
            logger.warning("not compared on %s: %s", settings.tgt, error)
    write_text(run / ADAPTATION, json.dumps([asdict(c) for c in comparisons], indent=2))
    return comparisons


def comparison_table(comparisons: Sequence[TargetComparison]) -> str:
    """Return the comparisons as a text table."""
    rows = []
    for c in comparisons:
        if c.agreement is not None:
            rows.append(
                (c.target, str(c.frames), "", "", f"{100 * c.agreement:.1f} % equal labels")
            )
            continue
        assert c.miou_before is not None and c.miou_after is not None
        before, after = 100 * c.miou_before, 100 * c.miou_after
        rows.append(
            (c.target, str(c.frames), f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}")
        )
    return format_table(("target", "frames", "mIoU before", "after", "change"), rows, align="lrrrl")


def _compare(
    before: Path, after: Path, config: RunConfig, cache: Path, device: torch.device
) -> TargetComparison:
    # Both networks have the same classes; the file of the label space may be elsewhere.
    space = read_label_space(after)
    train_frames, held_out = open_target(
        config, cache, space, lambda error: logger.warning("%s", error)
    )
    frames = held_out or train_frames
    if held_out is None or not frames.labeled:
        return _agreement(before, after, config.tgt, frames, device)
    first, second = (compute_scores(w, config, frames, device) for w in (before, after))
    return TargetComparison(config.tgt, first["frames"], first["miou"], second["miou"])


def _agreement(
    before: Path, after: Path, target: str, frames: FrameDataset, device: torch.device
) -> TargetComparison:
    _, images = sample_frames(frames, _COMPARED_FRAMES)
    predictors = [Predictor(load_model(weights, device)[0], device) for weights in (before, after)]
    equal = [
        float(np.mean(np.equal(*(predictor.labels([image])[0] for predictor in predictors))))
        for image in images
    ]
    if not equal:
        raise DataError("none of its frames can be read")
    return TargetComparison(target, len(equal), agreement=float(np.mean(equal)))
