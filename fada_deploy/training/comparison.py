"""Train several methods on the same data, network and number of iterations, and compare them.

Every seed has one source stage, from which all methods start. `source`, the baseline, trains on the
source alone for as many iterations as source stage and method have together. Finished runs are not
trained again, so an interrupted comparison goes on where it stopped. `fada compare` calls this.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from fada_deploy.common.comparison_document import (
    ComparisonDocument,
    MethodResult,
    RunResult,
)
from fada_deploy.common.errors import FadaError, InterruptedRunError, UsageError
from fada_deploy.common.files import write_text
from fada_deploy.common.label_space import load_label_space
from fada_deploy.common.runs import COMPARISON, TARGET_FRAMES, WEIGHTS
from fada_deploy.common.selection import read_selection
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target
from fada_deploy.training.data.sources import open_sources
from fada_deploy.training.device import choose_device
from fada_deploy.training.distributed import require_single_process
from fada_deploy.training.loop import STATE
from fada_deploy.training.methods.alignment import METHODS, check_backbone
from fada_deploy.training.reporting.run_summary import RunSummary
from fada_deploy.training.run_files import load_config
from fada_deploy.training.run_queue import Job, train_jobs
from fada_deploy.training.selection import select_stage
from fada_deploy.training.stage_config import with_length
from fada_deploy.training.translate_sources import COMPLETE, FOLDER

logger = logging.getLogger(__name__)

# Runs beside the alignment methods.
SOURCE, NO_ADVERSARY = "source", "none"
# The method that trains a source stage of its own.
CYCADA = "cycada"
# Self-training in rounds on whole target frames, as published.
_ROUNDS = {
    "rounds": 4,
    "portion": 0.2,
    "mixed_weight": 0.0,
    "masked_weight": 1.0,
    "mask_ratio": 0.0,
}
# Self-training without alignment: name → settings of the stage.
SELF_TRAINING: dict[str, dict[str, Any]] = {
    "selftrain": {},
    "st": {**_ROUNDS, "threshold_per_class": False},
    "cbst": _ROUNDS,
    "crst": {**_ROUNDS, "regularizer": 0.1},
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


def compare(
    config: RunConfig,
    out: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    budget: int | None = None,
    jobs: int = 1,
    device: str = "auto",
    arguments: Sequence[str] = (),
) -> ComparisonDocument:
    """Train every method with every seed in the folder `out`; return and write the comparison.

    `config` has the settings of all runs, except for method, stages and seed. `budget` is the
    number of iterations of source stage and method together, None for those of the settings: the
    iterations of the stages source and adversarial, also for self-training. `jobs` runs are
    trained at the same time; they divide the cores, or take one GPU after another. `arguments` are
    further ones of each `fada train --resume`.

    Raise `InterruptedRunError` after Ctrl-C. A run that cannot be trained is reported in the
    document and does not end the others.
    """
    require_single_process("`fada compare`")
    if config.style == "cyclegan":
        raise UsageError(
            "--style cyclegan would train a translation for every run; compare the method cycada"
        )
    # A published score belongs to other lengths of the stages.
    config = _with_budget(replace(config, published=None), budget)
    starts = {seed: _start_job(config, out, seed) for seed in seeds}
    wanted = {
        (method, seed): _method_job(config, out, method, starts[seed])
        for method in methods
        for seed in seeds
    }
    needed = {job.start for job in wanted.values()}
    first = [job for job in starts.values() if job.folder in needed]
    jobs_in_order = [*first, *wanted.values()]
    _check_settings(jobs_in_order, out)
    frames = _prepare_data(config, out, jobs_in_order)
    try:
        errors = train_jobs(jobs_in_order, parallel=jobs, device=device, arguments=arguments)
        for job in wanted.values():
            if job.finished and job.config.stages == ("source",):
                # `fada train` chooses among stages, and does not score a single one.
                select_stage(
                    job.folder, frames,
                    start=None, seed=job.config.seed, device=choose_device(device), minimum=1,
                )  # fmt: skip
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; repeat the command with --out {shlex.quote(str(out))} to continue"
        ) from None
    document = _summarize(config, out, methods, seeds, wanted, errors)
    write_text(out / COMPARISON, json.dumps(msgspec.to_builtins(document), indent=2))
    return document


def _with_budget(config: RunConfig, budget: int | None) -> RunConfig:
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


def _start_job(config: RunConfig, out: Path, seed: int) -> Job:
    settings = replace(config, seed=seed, stages=("source",), method="source", start=None)
    return Job(out / f"seed{seed}" / _START, settings)


def _method_job(config: RunConfig, out: Path, method: str, start: Job) -> Job:
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
            selftrain=replace(config.selftrain, align=combined),
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
        selftrain = replace(config.selftrain, **changes)
        return Job(folder, replace(after, stages=("selftrain",), selftrain=selftrain), start.folder)
    return Job(folder, replace(after, stages=("adversarial",)), start.folder)


def _check_settings(jobs: Sequence[Job], out: Path) -> None:
    """Raise `UsageError` for settings that no method has, or that other runs in the folder have."""
    for job in jobs:
        where = f"settings of {job.folder.name}"
        RunConfig.from_dict(job.config.to_dict(), where=where, remedy="correct the options")
        folders = [job.folder / name for name in (*job.config.stages, FOLDER)]
        files = (WEIGHTS, STATE, COMPLETE)
        if not job.finished and not any(
            (folder / name).is_file() for folder in folders for name in files
        ):
            # Nothing was trained, for example because a file of initial weights was missing.
            continue
        # The folder may be named in another way, or may have been moved.
        stored = replace(load_config(job.folder), start=job.config.start)
        if stored != job.config:
            name = _first_difference(stored.to_dict(), job.config.to_dict())
            raise UsageError(
                f"{job.folder} was trained with other settings ({name}); use another --out, or the "
                f"settings with which {out} was made"
            )


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> str:
    """Return the name of the first setting that differs, such as "source.lr"."""
    for name, value in one.items():
        if value != other[name]:
            if isinstance(value, Mapping):
                return _first_difference(value, other[name], f"{prefix}{name}.")
            return f"{prefix}{name}"
    return ""


def _prepare_data(config: RunConfig, out: Path, jobs: Sequence[Job]) -> FrameDataset:
    """Render sources and extract the frames of videos once, for all runs.

    Return the training frames of the target. Raise `FadaError` if the data cannot be used, before
    anything is trained.
    """
    space = load_label_space(config.label_space)
    open_sources(config, space)
    frames = out / TARGET_FRAMES
    target, _ = open_target(config, frames, space, lambda error: logger.warning("%s", error))
    for job in jobs if frames.is_dir() else ():
        link = job.folder / TARGET_FRAMES
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(os.path.relpath(frames, link.parent)), target_is_directory=True)
    return target


def _summarize(
    config: RunConfig,
    out: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    jobs: Mapping[tuple[str, int], Job],
    errors: Mapping[Path, str],
) -> ComparisonDocument:
    height, width = config.size
    return ComparisonDocument(
        source=config.source_name,
        target=Path(config.tgt).stem,
        backbone=config.backbone,
        size=f"{width}x{height}",
        source_iterations=config.source.iterations,
        method_iterations=config.adversarial.iterations,
        seeds=tuple(seeds),
        methods=tuple(
            _method_result(method, [jobs[method, seed] for seed in seeds], out, errors)
            for method in methods
        ),
    )


def _method_result(
    method: str, jobs: Sequence[Job], out: Path, errors: Mapping[Path, str]
) -> MethodResult:
    results = [_run_result(job, out) for job in jobs if job.finished]
    scores = [result.miou for result in results if result.miou is not None]
    classes = dict.fromkeys(name for result in results for name in result.iou)
    return MethodResult(
        method=method,
        runs=tuple(results),
        miou_mean=statistics.fmean(scores) if scores else None,
        miou_std=statistics.stdev(scores) if len(scores) > 1 else None,
        iou_mean={name: _mean([result.iou.get(name) for result in results]) for name in classes},
        errors=tuple(
            f"seed {job.config.seed}: {errors[job.folder]}" for job in jobs if job.folder in errors
        ),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _run_result(job: Job, out: Path) -> RunResult:
    summary = RunSummary.read(job.folder)
    scores = summary.scores.get(job.stage, {})
    lines = summary.metrics.get(job.stage, ())
    return RunResult(
        seed=job.config.seed,
        run=job.folder.relative_to(out).as_posix(),
        miou=scores.get("miou"),
        iou=dict(scores.get("iou", {})),
        unlabeled_score=_unlabeled_score(job),
        seconds=_seconds(lines),
        memory_mib=max((float(line["memory_mib"]) for line in lines), default=0.0),
    )


def _seconds(lines: Sequence[Mapping[str, float]]) -> float:
    """Return the duration of a stage from its metrics, in which each resumption starts at 0."""
    total = last = 0.0
    for line in lines:
        if line["seconds"] < last:
            total += last
        last = line["seconds"]
    return total + last


def _unlabeled_score(job: Job) -> float | None:
    """Return the label-free score of the run's last stage, None if it was not computed."""
    try:
        selection = read_selection(job.folder)
    except FadaError as error:
        logger.warning("%s", error)
        return None
    candidates = selection.candidates if selection is not None else ()
    return next((each.score for each in candidates if each.name == job.stage), None)
