"""Train several methods on the same data, network and number of iterations, and compare them.

`comparison_jobs` makes the settings of the runs. Finished runs are not trained again, so an
interrupted comparison goes on where it stopped. `fada compare` calls this.
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
from fada_deploy.training.comparison_jobs import method_job, start_job, with_budget
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target
from fada_deploy.training.data.sources import open_sources
from fada_deploy.training.device import choose_device
from fada_deploy.training.distributed import require_single_process
from fada_deploy.training.loop import STATE
from fada_deploy.training.reporting.run_summary import RunSummary
from fada_deploy.training.run_files import load_config
from fada_deploy.training.run_queue import Job, train_jobs
from fada_deploy.training.selection import select_stage
from fada_deploy.training.translate_sources import COMPLETE, FOLDER

logger = logging.getLogger(__name__)


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
    config = with_budget(replace(config, published=None), budget)
    starts = {seed: start_job(config, out, seed) for seed in seeds}
    wanted = {
        (method, seed): method_job(config, out, method, starts[seed])
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
                _score_without_labels(job, frames, device)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; repeat the command with --out {shlex.quote(str(out))} to continue"
        ) from None
    document = _summarize(config, out, methods, seeds, wanted, errors)
    write_text(out / COMPARISON, json.dumps(msgspec.to_builtins(document), indent=2))
    return document


def _score_without_labels(job: Job, frames: FrameDataset, device: str) -> None:
    try:
        select_stage(
            job.folder, frames,
            start=None, seed=job.config.seed, device=choose_device(device), minimum=1,
        )  # fmt: skip
    except FadaError as error:
        # For example a run that was cleared of its weights.
        logger.warning("%s has no label-free score: %s", job.folder, error)


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
