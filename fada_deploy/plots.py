"""Plots drawn with matplotlib: confusion matrices, bars per class, curves and speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import MissingExtraError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.metrics import Scores
from fada_deploy.runtime.benchmark import BenchmarkResult

P = ParamSpec("P")
T = TypeVar("T")


def _plain_text(plot: Callable[P, T]) -> Callable[P, T]:
    """Draw the text of a plot as it is; matplotlib would take `$` for the start of a formula."""

    @wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            from matplotlib import rc_context
        except ImportError:
            raise MissingExtraError("matplotlib", "plot") from None
        with rc_context({"text.parse_math": False}):
            return plot(*args, **kwargs)

    return draw


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of a size in inches and its axes; raise `MissingExtraError`."""
    from matplotlib.figure import Figure

    # Unlike pyplot, a Figure needs no display and has no global state.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


@_plain_text
def plot_confusion(scores: Scores, title: str, path: Path) -> None:
    """Draw a confusion matrix in percent of each true class (rows); absent classes are left out."""
    present = np.flatnonzero(scores.present | (scores.matrix.sum(0) > 0))
    matrix = scores.matrix[np.ix_(present, present)].astype(float)
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [scores.space.names[i] for i in present]
    size = 2.5 + 0.42 * len(present)
    figure, axes = _figure(size + 1, size)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(present)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(present)), names)
    for row, column in np.argwhere(percent >= 0.5):
        value = percent[row, column]
        color = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(image, ax=axes, label="% of the true class's pixels", shrink=0.8)
    _save(figure, path)


@_plain_text
def plot_bars(
    names: Sequence[str],
    series: Mapping[str, NDArray[np.float64]],
    *,
    colors: NDArray[np.uint8],
    ylabel: str,
    title: str,
    path: Path | None = None,
) -> str:
    """Draw a group of bars per class, with one bar per series; NaN leaves a gap.

    `colors` (K, 3) uint8 RGB marks each class with its palette color. Write the plot to `path`, or
    return it as an SVG element if `path` is None.
    """
    figure, axes = _figure(2 + 0.55 * len(names), 4.2)
    width = 0.8 / len(series)
    at = np.arange(len(names))
    for i, (label, values) in enumerate(series.items()):
        axes.bar(at + (i - (len(series) - 1) / 2) * width, values, width, label=label)
    axes.set_xticks(at, names, rotation=45, ha="right", rotation_mode="anchor")
    for x, color in zip(at, colors, strict=True):
        axes.plot(x, 0, "s", color=color / 255, markersize=9, clip_on=False, zorder=3)
    axes.set(ylabel=ylabel, title=title)
    axes.margins(x=0.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
    if path is None:
        return _svg(figure)
    _save(figure, path)
    return ""


@_plain_text
def curves_svg(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    mark: float | None = None,
) -> str:
    """Return curves of (iterations, values) as an SVG element for HTML pages.

    `mark` is the value of a dashed horizontal line.
    """
    figure, axes = _figure(5.2, 3.0)
    if mark is not None:
        axes.axhline(mark, color="0.6", linewidth=1, linestyle="--")
    for label, (at, values) in series.items():
        axes.plot(at, values, label=label, linewidth=1.2)
    axes.set(xlabel="iteration", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.margins(x=0.01)
    if len(series) > 1:
        axes.legend(fontsize=8)
    return _svg(figure)


@_plain_text
def plot_speed(results: Sequence[BenchmarkResult], path: Path) -> None:
    """Draw the frames per second of each model, model-only and, if measured, end-to-end."""
    names = [f"{Path(r.model).name}\n{r.backend}, {r.precision}" for r in results]
    figure, axes = _figure(6.5, 1.4 + 0.62 * len(names))
    at = np.arange(len(names))
    with_end_to_end = any(r.end_to_end is not None for r in results)
    height = 0.38 if with_end_to_end else 0.6
    model_only = [r.model_only.fps for r in results]
    offset = height / 2 * with_end_to_end
    bars = [axes.barh(at - offset, model_only, height, label="model-only")]
    if with_end_to_end:
        end_to_end = [0.0 if r.end_to_end is None else r.end_to_end.fps for r in results]
        bars.append(axes.barh(at + offset, end_to_end, height, label="end-to-end"))
    for container in bars:
        axes.bar_label(container, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(at, names, fontsize=8)
    axes.invert_yaxis()
    sizes = ", ".join(dict.fromkeys(r.input for r in results))
    axes.set(xlabel="frames per second", title=f"Network input {sizes}")
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    # Below the axes: with few bars, a legend inside would cover them.
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def _svg(figure: Any) -> str:
    with StringIO() as text:
        figure.savefig(text, format="svg", metadata={"Date": None})
        document = text.getvalue()
    return document[document.index("<svg") :]
