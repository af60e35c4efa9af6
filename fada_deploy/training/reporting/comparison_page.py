"""`comparison.html`: the table of `fada compare` as one page that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fada_deploy.common.comparison_document import (
    ComparisonDocument,
    MethodResult,
)
from fada_deploy.common.files import write_text
from fada_deploy.common.runs import STAGES, WEIGHTS
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.reporting.pages import load_template
from fada_deploy.training.reporting.pictures import picture_rows
from fada_deploy.training.weights.checkpoints import load_model

PAGE = "comparison.html"
_TEMPLATE = "comparison.html.j2"


def write_page(
    document: ComparisonDocument,
    out: Path,
    *,
    frames: FrameDataset | None,
    device: torch.device,
    count: int = 3,
) -> Path:
    """Write the page of a comparison to its folder and return its path.

    `count` evenly spaced target frames of `frames` are shown with the prediction of each method
    for the first seed; None omits them.
    """
    page = out / PAGE
    write_text(
        page,
        load_template(_TEMPLATE).render(
            title=f"{document.source} → {document.target}",
            description=(
                f"{document.backbone} at {document.size}; {document.source_iterations} iterations "
                f"on the source, then {document.method_iterations} of each method"
            ),
            classes=_classes(document),
            seeds=document.seeds,
            rows=_rows(document),
            costs=[_cost(each) for each in document.methods],
            errors=[f"{m.method}, {line}" for m in document.methods for line in m.errors],
            strips=None if frames is None else _pictures(document, out, frames, device, count),
        ),
    )
    return page


def _classes(document: ComparisonDocument) -> list[str]:
    """Return the classes that have a score."""
    names = dict.fromkeys(name for each in document.methods for name in each.iou_mean)
    return [n for n in names if any(m.iou_mean.get(n) is not None for m in document.methods)]


def _rows(document: ComparisonDocument) -> list[dict[str, Any]]:
    """Return the rows of the table; shades are from 0 (lowest of a column) to 0.3 (highest)."""
    columns = {
        name: [each.iou_mean.get(name) for each in document.methods] for name in _classes(document)
    }
    rows = []
    for i, method in enumerate(document.methods):
        cells = []
        for values in columns.values():
            known = [value for value in values if value is not None]
            value, low, high = values[i], min(known), max(known)
            shade = ""
            if value is not None and high > low:
                shade = f"{0.30 * (value - low) / (high - low):.2f}"
            cells.append(
                {"text": _percent(value), "shade": shade, "best": value == high and high > low}
            )
        by_seed = {run.seed: run.miou for run in method.runs}
        rows.append(
            {
                "method": method.method,
                "classes": cells,
                "miou": describe_miou(method),
                "seeds": [_percent(by_seed.get(seed)) for seed in document.seeds],
            }
        )
    return rows


def describe_miou(method: MethodResult) -> str:
    """Return "mean ± standard deviation" in percent, "" without a score."""
    if method.miou_mean is None or method.miou_std is None:
        return _percent(method.miou_mean)
    return f"{100 * method.miou_mean:.1f} ± {100 * method.miou_std:.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def describe_unlabeled(method: MethodResult) -> str:
    """Return the mean label-free score in percent, "" if it is unknown."""
    scores = [run.unlabeled_score for run in method.runs if run.unlabeled_score is not None]
    return f"{100 * float(np.mean(scores)):.1f}" if scores else ""


def _cost(method: MethodResult) -> dict[str, str]:
    if not method.runs:
        return {"method": method.method, "minutes": "", "memory": "", "score": ""}
    return {
        "method": method.method,
        "minutes": f"{float(np.mean([run.seconds for run in method.runs])) / 60:.1f}",
        "memory": f"{max(run.memory_mib for run in method.runs) / 1024:.1f}",
        "score": describe_unlabeled(method),
    }


def _pictures(
    document: ComparisonDocument,
    out: Path,
    frames: FrameDataset,
    device: torch.device,
    count: int,
) -> Mapping[str, Any]:
    networks = {}
    for method in document.methods:
        for run in method.runs[:1]:
            # The last stage, whose scores are in the document.
            stages = [out / run.run / stage / WEIGHTS for stage in STAGES]
            # A finished run may have been cleared of its weights.
            if weights := [path for path in stages if path.is_file()]:
                networks[method.method] = load_model(weights[-1], device)[0]
    return picture_rows(networks, frames, device, count)
