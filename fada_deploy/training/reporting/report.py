"""`report.html`: what a run did, in one file that opens offline.

Curves, the IoU of every class after every stage, what each stage's network sees on the same target
frames, settings and environment. Written at the end of `fada train`; `fada report RUN…` makes it
again, or sets runs side by side.
"""

from __future__ import annotations

import json
import platform
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fada_deploy import __version__
from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.files import write_text
from fada_deploy.common.images import resize_frame
from fada_deploy.common.runs import STAGES, WEIGHTS
from fada_deploy.common.system import installed_version
from fada_deploy.data.base import FrameDataset
from fada_deploy.plots import curves_svg, plot_bars
from fada_deploy.runtime.overlay.blend import overlay
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_labeled_domains
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor, sample_frames
from fada_deploy.training.reporting.class_center_distance import evenly_spaced, measure
from fada_deploy.training.reporting.run_summary import RunSummary, discriminator_health
from fada_deploy.training.weights.checkpoints import load_model

REPORT = "report.html"
_STRIP_WIDTH = 320
_TITLES = {"source": "source only", "adversarial": "adapted", "distill": "self-distilled"}
# What is drawn in one picture; a loss of either name alone is left out.
_CURVES = {
    "segmentation": ("segmentation",),
    "alignment": ("adversarial", "discriminator_source", "discriminator_target"),
    "share of pixels that D puts right": ("discriminator_accuracy",),
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733 }
body { margin: 2rem auto; max-width: 1320px; padding: 0 1rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dbe3 }
table { border-collapse: collapse }
th, td { padding: .15rem .7rem; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 1px solid #8895a5 }
tr.mean td { border-top: 1px solid #8895a5; font-weight: 600 }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px }
.legend span { white-space: nowrap; margin-right: 1.1em }
.strip { display: flex; gap: 4px; margin: 6px 0; overflow-x: auto }
figure { margin: 0; flex: 1 1 0; min-width: 170px }
img { display: block; width: 100%; height: auto }
figcaption { font-size: .8rem; color: #5a6775 }
.curves { display: flex; flex-wrap: wrap; gap: 8px }
.curves svg { max-width: 100%; height: auto }
pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; font-size: 12px }
.note { color: #5a6775 }
"""


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    frames: FrameDataset | None,
    device: torch.device,
    count: int = 4,
    ccd_frames: int = 20,
) -> None:
    """Write the report of one run, or of several side by side, to `out`.

    `frames` are the target frames to show the networks' answers on, `count` of them, evenly spaced;
    None leaves the pictures out. Class center distances are of `ccd_frames` labeled frames of each domain.
    """
    read = [RunSummary.read(run) for run in runs]
    shown = frames if frames is not None and len(frames) else None
    networks = _networks(read, device) if shown is not None or ccd_frames else {}
    parts = [_scores(read), _curves(read), _speed(read)]
    if ccd_frames:
        parts.append(_distances(read, networks, device, ccd_frames))
    if shown is not None:
        parts.insert(1, _strips(networks, shown, device, count))
    parts += [_settings(read), _environment(device)]
    title = ", ".join(run.folder.name for run in read)
    body = "\n".join(filter(None, parts))
    write_text(
        out,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n",
    )


def _columns(runs: Sequence[RunSummary]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (heading, scores) of every stage of every run."""
    found = []
    for run in runs:
        prefix = f"{run.folder.name}: " if len(runs) > 1 else ""
        found += [(prefix + _TITLES[stage], scores) for stage, scores in run.scores.items()]
    return found


def _scores(runs: Sequence[RunSummary]) -> str:
    columns = _columns(runs)
    if not columns:
        return '<p class="note">Not scored: the target has no labeled frames.</p>'
    names = list(columns[0][1]["iou"])
    rows = [_row(name, [scores["iou"].get(name) for _, scores in columns]) for name in names]
    rows.append(_row("mean", [scores["miou"] for _, scores in columns], kind="mean"))
    heads = "".join(f"<th>{escape(head)}</th>" for head, _ in columns)
    first = columns[0][1]
    inputs = ", ".join(dict.fromkeys(scores["input"] for _, scores in columns))
    return (
        f"<h2>IoU on the target, %</h2><table><thead><tr><th>class</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note">{first["frames"]} labeled frames, network input {inputs}; last weights, not chosen by '
        "these labels. A class that the labels never show has no figure and is in no mean.</p>"
    )


def _row(name: str, values: Sequence[float | None], kind: str = "") -> str:
    known = [v for v in values if v is not None]
    cells = []
    for value in values:
        # The better the greener, over the row.
        shade = "" if value is None or len(known) < 2 else _shade(value, min(known), max(known))
        cells.append(f"<td{shade}>{'' if value is None else f'{100 * value:.1f}'}</td>")
    return f'<tr class="{kind}"><td>{escape(name)}</td>{"".join(cells)}</tr>'


def _shade(value: float, low: float, high: float) -> str:
    share = 0.0 if high == low else (value - low) / (high - low)
    return f' style="background: rgba(46, 160, 67, {0.30 * share:.2f})"'


def _networks(runs: Sequence[RunSummary], device: torch.device) -> dict[str, SegmentationModel]:
    """Return the trained network of every stage of every run, by the heading of its column."""
    found = {}
    for run in runs:
        prefix = f"{run.folder.name}: " if len(runs) > 1 else ""
        for stage in STAGES:
            if (weights := run.folder / stage / WEIGHTS).is_file():
                found[prefix + _TITLES[stage]] = load_model(weights, device)[0]
    return found


def _strips(
    networks: Mapping[str, SegmentationModel],
    frames: FrameDataset,
    device: torch.device,
    count: int,
) -> str:
    chosen, pictures = sample_frames(frames, count)
    columns = [("target frame", pictures)]
    for name, model in networks.items():
        labels = Predictor(model, device).labels(pictures)
        columns.append((name, _drawn(pictures, labels, model.spec.space.palette)))
    palette = frames.space.palette
    if frames.labeled:
        columns.append(("truth", _drawn(pictures, [frames.labels(i) for i in chosen], palette)))
    rows = []
    for row in range(len(pictures)):
        figures = "".join(_figure(name, drawn[row]) for name, drawn in columns)
        rows.append(f'<div class="strip">{figures}</div>')
    legend = "".join(
        f'<span><span class="swatch" style="background: rgb({r}, {g}, {b})"></span>{escape(name)}</span>'
        for name, (r, g, b) in zip(frames.space.names, palette.tolist(), strict=False)
    )
    return f'<h2>On the same target frames</h2>{"".join(rows)}<p class="legend">{legend}</p>'


def _drawn(
    pictures: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.uint8]],
    palette: NDArray[np.uint8],
) -> list[NDArray[np.uint8]]:
    return [
        overlay(picture, each, palette, 0.6) for picture, each in zip(pictures, labels, strict=True)
    ]


def _figure(caption: str, picture: NDArray[np.uint8]) -> str:
    height = round(picture.shape[0] * _STRIP_WIDTH / picture.shape[1])
    small = cv2.cvtColor(resize_frame(picture, (height, _STRIP_WIDTH)), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    source = f"data:image/jpeg;base64,{b64encode(data.tobytes()).decode()}"
    return (
        f'<figure><img src="{source}" width="{_STRIP_WIDTH}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _curves(runs: Sequence[RunSummary]) -> str:
    pictures = []
    for stage in STAGES:
        for title, names in _CURVES.items():
            series = {
                (f"{run.folder.name}: " if len(runs) > 1 else "") + name: (
                    [line["iteration"] for line in lines],
                    [line[name] for line in lines],
                )
                for run in runs
                if (lines := run.metrics.get(stage))
                for name in names
                if name in lines[0]
            }
            if series:
                mark = 0.5 if "discriminator_accuracy" in names else None
                pictures.append(curves_svg(series, title=f"{stage}: {title}", mark=mark))
    if not pictures:
        return ""
    health = "".join(
        f'<p class="note">{escape(f"{run.folder.name}: {line}")}</p>'
        for run in runs
        if (line := discriminator_health(run.metrics.get("adversarial", ())))
    )
    return f'<h2>Losses</h2><div class="curves">{"".join(pictures)}</div>{health}'


def _speed(runs: Sequence[RunSummary]) -> str:
    rows = []
    for run in runs:
        for stage, lines in run.metrics.items():
            if not lines or "images_per_second" not in lines[0]:
                continue
            rate = float(np.median([line["images_per_second"] for line in lines]))
            peak = max(line["memory_mib"] for line in lines) / 1024
            name = f"{run.folder.name}: {stage}" if len(runs) > 1 else stage
            cells = "".join(
                f"<td>{v}</td>" for v in (int(lines[-1]["iteration"]), f"{rate:.1f}", f"{peak:.1f}")
            )
            rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    heads = "<th>stage</th><th>iterations</th><th>images a second</th><th>memory, GiB</th>"
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<h2>Speed</h2>{table}" if rows else ""


def _distances(
    runs: Sequence[RunSummary],
    networks: Mapping[str, SegmentationModel],
    device: torch.device,
    count: int,
) -> str:
    """Return the plot of class center distances by class and stage, or why there is none."""
    title = "<h2>Class Center Distance</h2>"
    try:
        if not networks:
            raise DataError("no stage is trained")
        space = next(iter(networks.values())).spec.space
        if any(model.spec.space != space for model in networks.values()):
            raise DataError("the runs tell different classes apart")
        datasets = open_labeled_domains(RunConfig.from_dict(runs[0].config), space)
        total = len(networks) * sum(len(evenly_spaced(len(d), count)) for d in datasets)
        with tqdm(
            total=total, desc="class centers", unit="frame", disable=None, file=sys.stderr
        ) as bar:
            measured = {
                name: measure(model, datasets, frames=count, device=device, progress=bar.update)
                for name, model in networks.items()
            }
    except FadaError as error:
        return f'{title}<p class="note">Not measured: {escape(str(error))}.</p>'
    common = np.logical_and.reduce([moments.seen for moments in measured.values()])
    values = {name: moments.distances(among=common) for name, moments in measured.items()}
    means = ", ".join(f"{name} {np.nanmean(v):.2f}" for name, v in values.items())
    plot = plot_bars(
        [n for n, there in zip(space.names, common, strict=True) if there],
        {name: v[common] for name, v in values.items()},
        colors=space.palette[: space.num_classes][common],
        ylabel="CCD (lower is better)",
        title=f"{count} labeled frames of each domain",
    )
    return f'{title}<div class="curves">{plot}</div><p class="note">Means: {escape(means)}.</p>'


def _settings(runs: Iterable[RunSummary]) -> str:
    blocks = []
    for run in runs:
        text = escape(json.dumps(run.config, indent=2))
        blocks.append(
            f"<details><summary>{escape(str(run.folder))}</summary><pre>{text}</pre></details>"
        )
    return f"<h2>Settings</h2>{''.join(blocks)}"


def _environment(device: torch.device) -> str:
    versions = {"fada_deploy": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "opencv-python-headless", "onnxruntime", "openvino"):
        if (found := installed_version(package)) is not None:
            versions[package] = found
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"<h2>Environment</h2><p>{escape(listed)}; {escape(f'{device}, {where}')}</p>"
