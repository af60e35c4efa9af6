"""`report.html`: the results of a run in one file that opens offline.

It contains the IoU of every class after each stage, the labels of the sources, the choice of a
stage without labels, the predictions of each stage on the same target frames, loss curves, speed,
Class Center Distances, settings and environment. `fada train` writes it at the end; `fada report
RUN…` writes it again, or compares runs.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from fada_deploy._version import __version__
from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.files import write_text
from fada_deploy.common.portable import without_paths
from fada_deploy.common.runs import STAGES, WEIGHTS, unfinished_stages
from fada_deploy.common.system import installed_version
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.plots import curves_svg, plot_bars
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_labeled_domains
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.reporting.class_center_distance import (
    ClassMoments,
    collect_moments,
)
from fada_deploy.training.reporting.pages import load_template
from fada_deploy.training.reporting.pictures import picture_rows
from fada_deploy.training.reporting.run_summary import RunSummary, discriminator_health
from fada_deploy.training.reporting.selection_table import selection_tables
from fada_deploy.training.reporting.source_tables import source_tables
from fada_deploy.training.weights.checkpoints import load_model

logger = logging.getLogger(__name__)

REPORT = "report.html"
_TEMPLATE = "report.html.j2"
_STAGE_TITLES = {
    "source": "source only",
    "adversarial": "adapted",
    "selftrain": "self-trained",
    "distill": "self-distilled",
}
# Plot title → metrics in that plot.
_CURVES = {
    "segmentation": ("segmentation", "mixed"),
    "alignment": ("adversarial", "discriminator_source", "discriminator_target"),
    "discriminator accuracy": ("discriminator_accuracy",),
}
_CHANCE = 0.5


@dataclass(frozen=True)
class _Stage:
    """One stage of one run, a column of the report."""

    run: RunSummary
    name: str
    heading: str

    @property
    def weights(self) -> Path:
        return self.run.folder / self.name / WEIGHTS


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    frames: FrameDataset | None,
    device: torch.device,
    count: int = 4,
    ccd_frames: int = 20,
) -> None:
    """Write the report of one run, or of several runs side by side, to the HTML file `out`.

    `count` evenly spaced target frames of `frames` are shown with the prediction of each stage;
    None omits them. Class Center Distances are measured on `ccd_frames` labeled frames of each
    domain; 0 omits them. Raise `FadaError` if a folder is not a run.
    """
    summaries = [RunSummary.read(run) for run in runs]
    for run in runs:
        if missing := unfinished_stages(run):
            logger.warning(
                "the run is not finished; the report has no stage %s; continue it with "
                "`fada train --resume %s`",
                " and ".join(missing),
                shlex.quote(str(run)),
            )
    names = _display_names(summaries)
    stages = [
        _Stage(run, stage, f"{names[run.folder]}{_STAGE_TITLES[stage]}")
        for run in summaries
        for stage in STAGES
    ]
    dataset = frames if frames is not None and len(frames) else None
    networks: dict[str, SegmentationModel] = {}
    if dataset is not None or ccd_frames:
        trained = [stage for stage in stages if stage.weights.is_file()]
        networks = {stage.heading: load_model(stage.weights, device)[0] for stage in trained}
    page = load_template(_TEMPLATE).render(
        title=_title(summaries),
        runs=[_describe(run, names[run.folder]) for run in summaries],
        scores=_scores(stages, names),
        sources=source_tables(summaries, names),
        selections=selection_tables(summaries, names),
        strips=None if dataset is None else picture_rows(networks, dataset, device, count),
        curves=_curves(summaries, names),
        health=_health(summaries, names),
        speed=_speed(summaries, names),
        distances=_distances(summaries, networks, device, ccd_frames) if ccd_frames else None,
        environment=_environment(device),
    )
    write_text(out, page)


def _display_names(runs: Sequence[RunSummary]) -> dict[Path, str]:
    """Return a prefix for the headings of each run: "[1] " and so on, or "" for one run."""
    if len(runs) == 1:
        return {runs[0].folder: ""}
    return {run.folder: f"[{i}] " for i, run in enumerate(runs, 1)}


def _title(runs: Sequence[RunSummary]) -> str:
    return runs[0].folder.name if len(runs) == 1 else f"Comparison of {len(runs)} runs"


def _describe(run: RunSummary, prefix: str) -> dict[str, str]:
    config = without_paths(run.config)
    is_source_only = list(config.get("stages", ())) == ["source"]
    method = "source only" if is_source_only else config.get("method")
    parts = [str(part) for part in (config.get("backbone"), method) if part]
    domains = f"{config.get('src', '?')} → {config.get('tgt', '?')}"
    key = f"{prefix}{run.folder}: " if prefix else ""
    return {
        "folder": f"{prefix}{run.folder}",
        "description": f"{key}{', '.join([domains, *parts])}",
        "settings": json.dumps(config, indent=2),
    }


def _scores(stages: Sequence[_Stage], names: Mapping[Path, str]) -> dict[str, Any] | None:
    """Return the table of IoU by class and stage, None if no stage was scored."""
    scored = [stage for stage in stages if stage.name in stage.run.scores]
    if not scored:
        return None
    scores = [stage.run.scores[stage.name] for stage in scored]
    classes = list(dict.fromkeys(name for each in scores for name in each["iou"]))
    is_comparable = len({(tuple(each["iou"]), each["frames"]) for each in scores}) == 1
    folders = {stage.run.folder for stage in scored}
    rows = [_score_row(name, [each["iou"].get(name) for each in scores]) for name in classes]
    rows.append(_score_row("mIoU", [each["miou"] for each in scores], is_mean=True))
    frames = list(dict.fromkeys(str(each["frames"]) for each in scores))
    return {
        "headings": [stage.heading for stage in scored],
        "rows": rows,
        "frames": " or ".join(frames),
        "is_comparable": is_comparable,
        "inputs": ", ".join(dict.fromkeys(each["input"] for each in scores)),
        "unscored": ", ".join(name.strip() for run, name in names.items() if run not in folders),
    }


def _score_row(
    name: str, values: Sequence[float | None], *, is_mean: bool = False
) -> dict[str, Any]:
    """Return one row, with a shade from 0 (lowest value of the row) to 0.3 (highest)."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    cells = []
    for value in values:
        shade = ""
        if value is not None and high > low:
            shade = f"{0.30 * (value - low) / (high - low):.2f}"
        cells.append({"text": "" if value is None else f"{100 * value:.1f}", "shade": shade})
    return {"name": name, "cells": cells, "is_mean": is_mean}


def _curves(runs: Sequence[RunSummary], names: Mapping[Path, str]) -> list[Markup]:
    """Return the plots of all stages as SVG elements."""
    plots = []
    for stage in STAGES:
        for title, metrics in _CURVES.items():
            series = {
                f"{names[run.folder]}{metric.replace('_', ' ')}": (
                    [line["iteration"] for line in lines],
                    [line[metric] for line in lines],
                )
                for run in runs
                if (lines := run.metrics.get(stage))
                for metric in metrics
                if metric in lines[0]
            }
            if series:
                mark = _CHANCE if "discriminator_accuracy" in metrics else None
                # matplotlib escapes the texts of its SVG.
                svg = Markup(curves_svg(series, title=f"{stage}: {title}", mark=mark))  # noqa: S704
                plots.append(svg)
    return plots


def _health(runs: Sequence[RunSummary], names: Mapping[Path, str]) -> list[str]:
    """Return a line for each stage with a discriminator: alignment can be part of `selftrain`."""
    return [
        f"{names[run.folder]}{stage}: {line}"
        for run in runs
        for stage, metrics in run.metrics.items()
        if (line := discriminator_health(metrics))
    ]


def _speed(runs: Sequence[RunSummary], names: Mapping[Path, str]) -> list[tuple[str, ...]]:
    """Return the rows of the table of speeds, as text.

    These are stage, iterations, median images per second, the same without the time spent waiting
    for frames, the part of the time spent so, and peak memory in GiB.
    """
    rows: list[tuple[str, ...]] = []
    for run in runs:
        for stage, lines in run.metrics.items():
            if not lines or "images_per_second" not in lines[0]:
                continue
            rates = np.array([line["images_per_second"] for line in lines])
            waits = np.array([line.get("loader_wait", 0.0) for line in lines])
            peak = max(line["memory_mib"] for line in lines) / 1024
            alone = rates / np.maximum(1 - waits, 1e-3)
            iterations = int(lines[-1]["iteration"])
            rows.append(
                (
                    f"{names[run.folder]}{stage}", str(iterations), f"{np.median(rates):.1f}",
                    f"{np.median(alone):.1f}", f"{100 * waits.mean():.0f} %", f"{peak:.1f}",
                )
            )  # fmt: skip
    return rows


def _distances(
    runs: Sequence[RunSummary],
    networks: Mapping[str, SegmentationModel],
    device: torch.device,
    count: int,
) -> dict[str, Any]:
    """Return the plot of Class Center Distances, or a note why they cannot be measured."""
    try:
        domains, moments, failed = _moments(runs[0], networks, device, count)
    except FadaError as error:
        return {"plot": None, "note": f"Not measured: {error}."}
    space = next(iter(networks.values())).spec.space
    common = np.logical_and.reduce([each.present for each in moments.values()])
    values = {heading: each.distances(among=common) for heading, each in moments.items()}
    means = ", ".join(f"{heading} {np.nanmean(v):.2f}" for heading, v in values.items())
    plot = plot_bars(
        [name for name, present in zip(space.names, common, strict=True) if present],
        {heading: v[common] for heading, v in values.items()},
        colors=space.palette[: space.num_classes][common],
        ylabel="CCD (lower is better)",
        title=" and ".join(
            f"{len(evenly_spaced(len(dataset), count))} labeled {domain} frames"
            for domain, dataset in zip(("source", "target"), domains, strict=True)
        ),
    )
    note = f"Means: {means}."
    if failed:
        note += f" {len(failed)} of these frames could not be read."
    return {"plot": Markup(plot), "note": note}  # noqa: S704 -- SVG of matplotlib


def _moments(
    run: RunSummary, networks: Mapping[str, SegmentationModel], device: torch.device, count: int
) -> tuple[list[FrameDataset], dict[str, ClassMoments], list[str]]:
    """Measure every network on the labeled frames of one run's domains.

    Return the data sets of source and target, the moments by heading, and an error line for each
    unreadable frame. Raise `FadaError`.
    """
    if not networks:
        raise DataError("no stage has been trained")
    config = RunConfig.from_dict(run.config)
    if not config.needs_source:
        # Opening the source may even render it.
        raise DataError("the run was trained without a source")
    space = next(iter(networks.values())).spec.space
    if any(model.spec.space != space for model in networks.values()):
        raise DataError("the runs have different label spaces")
    datasets = open_labeled_domains(config, space)
    measured = {
        heading: collect_moments(model, datasets, frames=count, device=device)
        for heading, model in networks.items()
    }
    failed = dict.fromkeys(line for _, lines in measured.values() for line in lines)
    return datasets, {heading: moments for heading, (moments, _) in measured.items()}, list(failed)


def _environment(device: torch.device) -> str:
    versions = {"fada_deploy": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "opencv-python-headless", "onnxruntime", "openvino"):
        if (version := installed_version(package)) is not None:
            versions[package] = version
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{', '.join(f'{k} {v}' for k, v in versions.items())}; {device}, {hardware}"
