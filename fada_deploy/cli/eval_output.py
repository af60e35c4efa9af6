"""The results of `fada eval` as text, as JSON documents and as a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.common.tables import format_table

if TYPE_CHECKING:
    from fada_deploy.common.label_space import LabelSpace
    from fada_deploy.evaluation import Evaluation, Predict


@dataclass(frozen=True)
class Subject:
    """A network to evaluate.

    Attributes:
        name: Its file.
        space: Its label space.
        size_hw: Its input size.
        stage: Training stage of weights, "" for an exported model.
        iteration: Iteration of weights; None if unknown.
        is_last: Whether the weights are the final ones of their stage.
        views: Description of the averaged views, "" for a single one.
        opener: Opens the network in another process; returns its prediction function.
    """

    name: str
    space: LabelSpace
    size_hw: tuple[int, int]
    opener: Callable[[], Predict]
    stage: str = ""
    iteration: int | None = None
    is_last: bool = True
    views: str = ""

    @property
    def input(self) -> str:
        return f"{self.size_hw[1]}x{self.size_hw[0]}"


def _document(subject: Subject, result: Evaluation) -> dict[str, Any]:
    weights = {"stage": subject.stage, "iteration": subject.iteration, "last": subject.is_last}
    return {
        "model": subject.name,
        **(weights if subject.stage else {}),
        "input": subject.input,
        "frames": result.frames,
        "failed": list(result.failed),
        **result.scores.to_dict(),
    }


def one_document(subject: Subject, result: Evaluation, data: str) -> dict[str, Any]:
    """Return the JSON document of one network."""
    matrix = result.scores.matrix.tolist()
    head = {"data": data, "views": subject.views}
    return {**head, **_document(subject, result), "confusion": matrix}


def one_text(subject: Subject, result: Evaluation, data: str) -> str:
    """Return the IoU of each class as a table."""
    scores = result.scores
    rows = [
        [name, _percent(iou)]
        for name, iou, present in zip(scores.space.names, scores.iou, scores.present, strict=True)
        if present
    ]
    rows.append(["mIoU", _percent(scores.miou)])
    rows += [[f"mIoU, {name}", _percent(mean)] for name, mean in scores.subset_means.items()]
    rows.append(["pixel accuracy", _percent(scores.pixel_accuracy)])
    lines = [
        f"{subject.name} on {_setting(subject, result, data)}",
        format_table(["class", "IoU %"], rows, indent="  "),
    ]
    if scores.absent:
        lines.append(
            "The labels do not contain these classes, so the means exclude them: "
            + ", ".join(scores.absent)
        )
    return "\n".join(lines)


def all_document(
    run: Path, data: str, results: Sequence[tuple[Subject, Evaluation]]
) -> dict[str, Any]:
    """Return the JSON document of all weights of a run."""
    return {
        "run": str(run),
        "data": data,
        "views": results[0][0].views,
        "checkpoints": [_document(*pair) for pair in results],
        "last": _document(*results[-1]),
        "best": {**_document(*_best(results)), "oracle": True},
    }


def all_text(run: Path, data: str, results: Sequence[tuple[Subject, Evaluation]]) -> str:
    """Return the mIoU of each checkpoint as a table, and the last and the best one."""
    views = results[0][0].views
    rows = [
        [
            subject.stage,
            str(subject.iteration or "-"),
            subject.input,
            _percent(result.scores.miou),
            "last of the stage" if subject.is_last else "",
        ]
        for subject, result in results
    ]
    lines = [
        f"{run} on {data}, {results[-1][1].frames} frames{', ' + views if views else ''}",
        format_table(
            ["stage", "iteration", "input", "mIoU %", ""], rows, align="lrrrl", indent="  "
        ),
    ]
    for name, (subject, result), note in (
        ("last", results[-1], "report this score"),
        ("best", _best(results), "an oracle, because it is selected on the labels of the target"),
    ):
        weights = f"{subject.stage} {subject.iteration or ''}".strip()
        lines.append(f"{name}: {_percent(result.scores.miou)} after {weights} ({note})")
    return "\n".join(lines)


def _best(results: Sequence[tuple[Subject, Evaluation]]) -> tuple[Subject, Evaluation]:
    return max(results, key=lambda pair: pair[1].scores.miou)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _setting(subject: Subject, result: Evaluation, data: str) -> str:
    views = f", {subject.views}" if subject.views else ""
    return f"{data}, {result.frames} frames, input {subject.input}{views}"


def save_confusion(subject: Subject, result: Evaluation, data: str, path: Path) -> None:
    """Save the confusion matrix as a table of pixel counts or as a plot; rows are the truth."""
    scores = result.scores
    if path.suffix.lower() == ".png":
        from fada_deploy.plots import plot_confusion

        setting = f"{_setting(subject, result, data)}, mIoU {_percent(scores.miou)}"
        plot_confusion(scores, f"{subject.name}\n{setting}", path)
        return
    import csv
    import io

    from fada_deploy.common.files import write_text

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["truth \\ predicted", *scores.space.names])
    for name, counts in zip(scores.space.names, scores.matrix.tolist(), strict=True):
        writer.writerow([name, *counts])
    write_text(path, table.getvalue())
