"""What `fada data check` says: a statistics as one JSON document, and as text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fada_deploy.data.base import FrameDataset
from fada_deploy.data.statistics import DatasetStatistics


def describe(dataset: FrameDataset, statistics: DatasetStatistics) -> dict[str, Any]:
    """Return a JSON-ready description; files go by the path of their frame, shares are of the counted pixels."""
    names = [str(pair.image) for pair in dataset.pairs]
    pixels = statistics.pixels.sum(0).tolist()
    total, files = max(1, sum(pixels)), statistics.contents.sum(0).tolist()
    sizes = Counter(f"{w}x{h}" for h, w in statistics.sizes.tolist() if h)
    bad = dict(statistics.bad)
    for i in statistics.without_class:
        bad[i] = (
            f"{dataset.pairs[i].labels}: every pixel is ignored; it holds no class of {dataset.space.name}"
        )
    return {
        "data": dataset.name,
        "split": dataset.split,
        "label_space": dataset.space.name,
        "frames": len(dataset),
        "labeled": sum(pair.labels is not None for pair in dataset.pairs),
        "left_out": [
            {"file": str(path), "reason": reason} for path, reason in dataset.left_out.items()
        ],
        "sizes": dict(sizes.most_common()),
        "classes": [
            {"name": name, "pixels": pixels[k], "fraction": pixels[k] / total, "files": files[k]}
            for k, name in enumerate(dataset.space.names)
        ],
        "ignored": {"pixels": pixels[-1], "fraction": pixels[-1] / total},
        "unknown_ids": {_id(number): count for number, count in statistics.unknown.items()},
        "single_class": [
            {"file": names[i], "class": dataset.space.names[k]}
            for i, k in statistics.single_class.items()
        ],
        "bad": [{"file": names[i], "reason": bad[i]} for i in sorted(bad)],
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the lines that a person reads, from what `describe` returned."""
    frames, labeled = report["frames"], report["labeled"]
    lines = [
        f"{report['data']} {report['split']}: {labeled} pairs, {frames - labeled} frames without labels"
    ]
    reasons: dict[str, list[str]] = {}
    for each in report["left_out"]:
        reasons.setdefault(each["reason"], []).append(Path(each["file"]).name)
    lines += [
        f"left out, {reason}: {len(files)} ({_few(files)})" for reason, files in reasons.items()
    ]
    sizes = [(size, f"{count}") for size, count in report["sizes"].items()]
    lines += ["", *_table(("size", "files"), sizes)]
    if labeled:
        lines += [
            "",
            *_table(("class", "pixels", "files"), [_class_row(c) for c in report["classes"]]),
        ]
        lines.append(f"{100 * report['ignored']['fraction']:.2f} % of the pixels are ignored")
    if report["unknown_ids"]:
        ids = [f"{number} ({count} pixels)" for number, count in report["unknown_ids"].items()]
        lines.append(f"ids that the format does not have, ignored: {', '.join(ids)}")
    if report["single_class"]:
        single = [f"{Path(each['file']).name} {each['class']}" for each in report["single_class"]]
        lines.append(f"of one class only: {len(single)} ({_few(single)})")
    lines += ["", *(f"bad: {each['reason']}" for each in report["bad"])]
    lines.append(
        f"{len(report['bad'])} of {frames} cannot be used" if report["bad"] else "no bad file"
    )
    return "\n".join(lines)


def _class_row(each: dict[str, Any]) -> tuple[str, ...]:
    note = {0: "in no file", 1: "in one file only"}.get(each["files"], "")
    return each["name"], f"{100 * each['fraction']:.3f} %", f"{each['files']}", note


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with the first column to the left, numbers to the right, and whatever comes after them."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        numbers = [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join([f"  {row[0]:<{widths[0]}}", *numbers, *row[len(head) :]]).rstrip())
    return lines


def _few(texts: Sequence[str], shown: int = 5) -> str:
    return ", ".join(texts[:shown]) + (", …" if len(texts) > shown else "")


def _id(number: int) -> str:
    return f"{number}" if number < 256 else "above 255"
