"""`report.html`: what a run did, in one file that opens offline.

Curves, the IoU of every class after every stage, what each stage's network sees on the same target
frames, settings and environment. Written at the end of `fada train`; `fada report RUN…` makes it
again, or sets runs side by side.
"""

from __future__ import annotations

import json
import platform
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy import __version__
from fada_deploy.common.errors import DataError, FadaError
from fada_deploy.common.files import write_text
from fada_deploy.common.images import resize_frame
from fada_deploy.common.runs import CONFIG, STAGES, WEIGHTS
from fada_deploy.data.base import FrameDataset
from fada_deploy.plots import curves_svg
from fada_deploy.runtime.overlay import overlay
from fada_deploy.training.checkpoints import load_segmenter
from fada_deploy.training.predict import Predictor

REPORT = "report.html"
_STRIP_WIDTH = 320
_TITLES = {"source": "source only", "adversarial": "adapted", "distill": "self-distilled"}
# What is drawn in one picture; a loss of either name alone is left out.
_CURVES = {
    "segmentation": ("segmentation",),
    "alignment": ("adversarial", "discriminator_source", "discriminator_target"),
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


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds: settings, and each finished stage's numbers and scores."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, float]]]
    scores: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Read a run's folder; raise `FadaError` when it is none."""
        try:
            config = json.loads((folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError):
            raise FadaError(f"{folder}: no run; a run is what `fada train` makes under runs/") from None
        metrics, scores = {}, {}
        for stage in STAGES:
            if (path := folder / stage / "metrics.jsonl").is_file():
                metrics[stage] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if (path := folder / stage / "scores.json").is_file():
                scores[stage] = json.loads(path.read_text("utf-8"))
        return cls(folder, config, metrics, scores)


def write_report(
    runs: Sequence[Path], out: Path, *, frames: FrameDataset | None, device: torch.device, count: int = 4
) -> None:
    """Write the report of one run, or of several side by side, to `out`.

    `frames` are the target frames to show the networks' answers on, `count` of them, evenly spaced;
    None leaves the pictures out.
    """
    read = [RunFiles.read(run) for run in runs]
    parts = [_scores(read), _curves(read)]
    if frames is not None and len(frames):
        parts.insert(1, _strips(read, frames, device, count))
    parts += [_settings(read), _environment(device)]
    title = ", ".join(run.folder.name for run in read)
    body = "\n".join(filter(None, parts))
    write_text(
        out,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n",
    )


def _columns(runs: Sequence[RunFiles]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (heading, scores) of every stage of every run."""
    found = []
    for run in runs:
        prefix = f"{run.folder.name}: " if len(runs) > 1 else ""
        found += [(prefix + _TITLES[stage], scores) for stage, scores in run.scores.items()]
    return found


def _scores(runs: Sequence[RunFiles]) -> str:
    columns = _columns(runs)
    if not columns:
        return '<p class="note">Not scored: the target has no labelled frames.</p>'
    names = list(columns[0][1]["iou"])
    rows = [_row(name, [scores["iou"].get(name) for _, scores in columns]) for name in names]
    rows.append(_row("mean", [scores["miou"] for _, scores in columns], kind="mean"))
    heads = "".join(f"<th>{escape(head)}</th>" for head, _ in columns)
    first = columns[0][1]
    inputs = ", ".join(dict.fromkeys(scores["input"] for _, scores in columns))
    return (
        f"<h2>IoU on the target, %</h2><table><thead><tr><th>class</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note">{first["frames"]} labelled frames, network input {inputs}; last weights, not chosen by '
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


def _strips(runs: Sequence[RunFiles], frames: FrameDataset, device: torch.device, count: int) -> str:
    chosen, pictures = _pictures(frames, count)
    columns = [("target frame", pictures)]
    for run in runs:
        prefix = f"{run.folder.name}: " if len(runs) > 1 else ""
        for stage in STAGES:
            if (weights := run.folder / stage / WEIGHTS).is_file():
                model, _ = load_segmenter(weights, device)
                labels = Predictor(model, device).labels(pictures)
                columns.append((prefix + _TITLES[stage], _drawn(pictures, labels, model.spec.space.palette)))
    palette = frames.space.palette
    if frames.labelled:
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


def _pictures(frames: FrameDataset, count: int) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """Return evenly spaced frames that can be read, and their numbers."""
    chosen, pictures = [], []
    for i in np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int).tolist():
        try:
            picture = frames.pair(i)[0] if frames.labelled else frames.image(i)
        except DataError:
            continue
        chosen.append(i)
        pictures.append(picture)
    return chosen, pictures


def _drawn(
    pictures: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]], palette: NDArray[np.uint8]
) -> list[NDArray[np.uint8]]:
    return [overlay(picture, each, palette, 0.6) for picture, each in zip(pictures, labels, strict=True)]


def _figure(caption: str, picture: NDArray[np.uint8]) -> str:
    height = round(picture.shape[0] * _STRIP_WIDTH / picture.shape[1])
    small = cv2.cvtColor(resize_frame(picture, (height, _STRIP_WIDTH)), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    source = f"data:image/jpeg;base64,{b64encode(data.tobytes()).decode()}"
    return (
        f'<figure><img src="{source}" width="{_STRIP_WIDTH}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _curves(runs: Sequence[RunFiles]) -> str:
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
                pictures.append(curves_svg(series, title=f"{stage}: {title}"))
    return f'<h2>Losses</h2><div class="curves">{"".join(pictures)}</div>' if pictures else ""


def _settings(runs: Iterable[RunFiles]) -> str:
    blocks = []
    for run in runs:
        text = escape(json.dumps(run.config, indent=2))
        blocks.append(f"<details><summary>{escape(str(run.folder))}</summary><pre>{text}</pre></details>")
    return f"<h2>Settings</h2>{''.join(blocks)}"


def _environment(device: torch.device) -> str:
    versions = {"fada_deploy": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "opencv-python-headless", "onnxruntime", "openvino"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"<h2>Environment</h2><p>{escape(listed)}; {escape(f'{device}, {where}')}</p>"
