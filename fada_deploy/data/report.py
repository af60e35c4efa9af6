"""The report of `fada data check`: the statistics of a data set as a JSON document and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fada_deploy.common.tables import format_table
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.problems import ALLOWED_IGNORED, find_problems
from fada_deploy.data.statistics import DatasetStatistics

# Unusable files that the text names; the JSON document names all.
_SHOWN_FILES = 3


def describe(
    dataset: FrameDataset,
    statistics: DatasetStatistics,
    *,
    allowed_ignored: float = ALLOWED_IGNORED,
) -> dict[str, Any]:
    """Return a JSON-ready report.

    Files are named by the path of their frame; class fractions refer to the counted pixels. More
    than `allowed_ignored` (0…1) ignored pixels are a problem.
    """
    problems = find_problems(dataset, statistics, allowed_ignored=allowed_ignored)
    if not any(pair.labels for pair in dataset.pairs):
        problems = []
    names = [str(pair.image) for pair in dataset.pairs]
    pixels = statistics.pixels.sum(0).tolist()
    total, files = max(1, sum(pixels)), statistics.contents.sum(0).tolist()
    sizes = Counter(f"{w}x{h}" for h, w in statistics.sizes.tolist() if h)
    errors = dict(statistics.errors)
    for i in statistics.without_class:
        errors[i] = (
            f"{dataset.pairs[i].labels}: every pixel is ignored; the file contains no class of "
            f"{dataset.space.name}"
        )
    return {
        "data": dataset.name,
        "split": dataset.split,
        "label_space": dataset.space.name,
        "frames": len(dataset),
        "labeled": sum(pair.labels is not None for pair in dataset.pairs),
        "skipped_files": [
            {"file": str(path), "reason": reason} for path, reason in dataset.skipped_files.items()
        ],
        "sizes": dict(sizes.most_common()),
        "classes": [
            {"name": name, "pixels": pixels[k], "fraction": pixels[k] / total, "files": files[k]}
            for k, name in enumerate(dataset.space.names)
        ],
        "ignored": {"pixels": pixels[-1], "fraction": pixels[-1] / total},
        "unknown_ids": {
            _id_text(number): count for number, count in statistics.unknown_ids.items()
        },
        "single_class": [
            {"file": names[i], "class": dataset.space.names[k]}
            for i, k in statistics.single_class.items()
        ],
        "problems": [asdict(problem) for problem in problems],
        "unusable_files": [{"file": names[i], "reason": errors[i]} for i in sorted(errors)],
    }


def as_text(report: dict[str, Any]) -> str:
    """Return a report of `describe` as text."""
    frames, labeled, unusable = report["frames"], report["labeled"], report["unusable_files"]
    lines = [
        f"{report['data']} {report['split']}: {labeled} frames with labels, "
        f"{frames - labeled} without"
    ]
    reasons: dict[str, list[str]] = {}
    for entry in report["skipped_files"]:
        reasons.setdefault(entry["reason"], []).append(Path(entry["file"]).name)
    lines += [
        f"skipped ({reason}): {_count(files)} ({_first(files)})"
        for reason, files in reasons.items()
    ]
    sizes = [(size, f"{count}") for size, count in report["sizes"].items()]
    lines += ["", format_table(("size", "files"), sizes, indent="  ")]
    if labeled:
        rows = [_class_row(entry) for entry in report["classes"]]
        lines += [
            "",
            format_table(("class", "pixels", "files", ""), rows, align="lrrl", indent="  "),
        ]
        lines.append(f"{100 * report['ignored']['fraction']:.2f} % of the pixels are ignored")
    if report["unknown_ids"]:
        ids = [f"{number} ({count} pixels)" for number, count in report["unknown_ids"].items()]
        lines.append(f"unknown ids, which are ignored: {', '.join(ids)}")
    if report["single_class"]:
        single = [
            f"{Path(entry['file']).name} {entry['class']}" for entry in report["single_class"]
        ]
        lines.append(f"only one class: {_count(single)} ({_first(single)})")
    lines += ["", *(f"problem: {problem['text']}" for problem in report["problems"])]
    lines += [f"unusable: {entry['reason']}" for entry in unusable[:_SHOWN_FILES]]
    if len(unusable) > _SHOWN_FILES:
        lines.append(f"unusable: {len(unusable) - _SHOWN_FILES} more, all in --json")
    lines.append(
        f"{len(unusable)} of {frames} files cannot be used" if unusable else "all files can be used"
    )
    return "\n".join(lines)


def _class_row(entry: dict[str, Any]) -> tuple[str, ...]:
    note = {0: "in no file", 1: "in only one file"}.get(entry["files"], "")
    return entry["name"], f"{100 * entry['fraction']:.3f} %", f"{entry['files']}", note


def _count(files: Sequence[str]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (", …" if len(texts) > 5 else "")


def _id_text(number: int) -> str:
    return f"{number}" if number < 256 else "above 255"
