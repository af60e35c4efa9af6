"""Names of classes and runs appear in plots and tables as they are, whatever they contain."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fada_deploy.cli.eval_output import Subject, save_confusion
from fada_deploy.common.label_space import LabelClass, LabelSpace
from fada_deploy.common.metrics import Scores
from fada_deploy.evaluation import Evaluation
from fada_deploy.plots import curves_svg, plot_bars, plot_confusion

Run = Callable[..., tuple[int, str, str]]
NAMES = ("$_$", 'a, "b"', "<script>alert(1)</script>", "$x^{$")


def scores() -> Scores:
    space = LabelSpace(
        "odd", tuple(LabelClass(name, i, i, (i, i, i)) for i, name in enumerate(NAMES))
    )
    return Scores(space, np.arange(16).reshape(4, 4))


def test_formula_signs_are_drawn_as_text(tmp_path: Path) -> None:
    plot_confusion(scores(), "$_$ of a$b", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    plot_bars(
        NAMES, {"$_$": np.ones(4)}, colors=np.zeros((4, 3), np.uint8), ylabel="$", title="$_$",
        path=tmp_path / "bars.png",
    )  # fmt: skip
    svg = curves_svg({NAMES[2]: ([1.0, 2.0], [3.0, 4.0])}, title="$x^{$")
    assert "<script" not in svg


def test_confusion_tables_are_csv(tmp_path: Path) -> None:
    evaluation = Evaluation.__new__(Evaluation)
    object.__setattr__(evaluation, "scores", scores())
    path = tmp_path / "confusion.csv"
    save_confusion(Subject.__new__(Subject), evaluation, "data", path)
    with path.open(newline="") as handle:
        head, *rows = csv.reader(handle)
    assert tuple(head[1:]) == NAMES == tuple(row[0] for row in rows)
    assert [[int(v) for v in row[1:]] for row in rows] == scores().matrix.tolist()
