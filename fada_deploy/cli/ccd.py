"""`fada ccd`: how tightly the features of runs gather around their classes' centers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.common.runs import newest_run
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.common.label_space import LabelSpace
    from fada_deploy.training.reporting.class_center_distance import ClassMoments

    # A network's moments and the size of its input.
    Measured = tuple[ClassMoments, str]


@click.command("ccd")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Of each domain; 0: all.",
)
@click.option(
    "--denominator",
    type=click.Choice(["squared", "plain"]),
    default="squared",
    show_default=True,
    help="Of the distance between centers: the paper's, or its slides'.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write a bar plot (.png, .svg or .pdf)."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    runs: tuple[Path, ...],
    frames: int,
    denominator: str,
    plot: Path | None,
    device: str,
    as_json: bool,
) -> int:
    """Class Center Distance of RUNS, side by side on the same images [the newest run]; lower is better.

    RUNS are runs, stages (RUN/source) or weights files. The images are the first one's labeled
    source frames and its target's labeled validation frames.
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError

    if plot is not None:
        if plot.suffix.lower() not in (".pdf", ".png", ".svg"):
            raise UsageError(f"--plot {plot}: writes .png, .svg or .pdf")
        require_package("matplotlib", "plot")
    paths = runs or (newest_run(),)
    try:
        space, measured, left_out = _measure(paths, frames, device)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    for line in left_out:
        log(f"left out: {line}")
    table = Table(space, measured, denominator)
    if as_json:
        emit_json(table.document())
    else:
        click.echo(table.text())
    if plot is not None:
        from fada_deploy.plots import plot_bars

        plot_bars(
            [n for n, there in zip(space.names, table.common, strict=True) if there],
            {name: values[table.common] for name, values in table.distances.items()},
            colors=space.palette[: space.num_classes][table.common],
            ylabel="CCD (lower is better)",
            title=f"Class Center Distance, {denominator} denominator, {frames or 'all'} frames of each domain",
            path=plot,
        )
        log(f"plot: {plot}")
    return 1 if left_out else 0


class Table:
    """The distances of several networks, among the classes that all of them saw."""

    def __init__(self, space: LabelSpace, measured: dict[str, Measured], denominator: str) -> None:
        import numpy as np

        self.space, self.measured, self.denominator = space, measured, denominator
        self.common = np.logical_and.reduce([m.seen for m, _ in measured.values()])
        squared = denominator == "squared"
        self.distances = {
            name: m.distances(among=self.common, squared=squared)
            for name, (m, _) in measured.items()
        }
        self.means = {name: float(np.nanmean(v)) for name, v in self.distances.items()}

    def document(self) -> dict[str, Any]:
        """Return the JSON document; classes that some network did not see are null."""
        runs = {}
        for name, (moments, size) in self.measured.items():
            rows = zip(self.space.names, self.distances[name].tolist(), self.common, strict=True)
            runs[name] = {
                "input": size,
                "mean": self.means[name],
                "ccd": {n: v if there else None for n, v, there in rows},
                "features": dict(zip(self.space.names, map(int, moments.count), strict=True)),
            }
        return {"denominator": self.denominator, "runs": runs}

    def text(self) -> str:
        """Return the table for people."""
        width = max(map(len, self.space.names))
        lines = [f"Class Center Distance, {self.denominator} denominator; lower is better"]
        for i, (name, (moments, size)) in enumerate(self.measured.items(), 1):
            lines.append(f"  [{i}] {name}, input {size}, {int(moments.count.sum()):,} features")
        heads = "".join(f"{f'[{i}]':>9}" for i in range(1, len(self.measured) + 1))
        lines.append(f"  {'class':<{width}}{heads}")
        for k, name in enumerate(self.space.names):
            if self.common[k]:
                lines.append(
                    f"  {name:<{width}}" + "".join(f"{v[k]:9.2f}" for v in self.distances.values())
                )
        lines.append(
            f"  {'mean':<{width}}" + "".join(f"{mean:9.2f}" for mean in self.means.values())
        )
        absent = [n for n, there in zip(self.space.names, self.common, strict=True) if not there]
        if absent:
            lines.append(f"not seen, or not by all: {', '.join(absent)}")
        return "\n".join(lines)


def _measure(
    paths: Sequence[Path], frames: int, device: str
) -> tuple[LabelSpace, dict[str, Measured], dict[str, None]]:
    from tqdm import tqdm

    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.runs import final_weights
    from fada_deploy.training.config import RunConfig
    from fada_deploy.training.data.datasets import open_labeled_domains
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.reporting.class_center_distance import evenly_spaced, measure
    from fada_deploy.training.weights.checkpoints import load_model

    where = choose_device(device)
    loaded = [load_model(final_weights(path), where) for path in paths]
    space = loaded[0][0].spec.space
    for path, (model, _) in zip(paths, loaded, strict=True):
        if model.spec.space != space:
            raise UsageError(
                f"{path} tells {model.spec.space.name} apart, {paths[0]} {space.name}; compare runs of one "
                "label space"
            )
    datasets = open_labeled_domains(RunConfig.from_dict(loaded[0][1]["config"]), space)
    left_out: dict[str, None] = {}
    total = len(loaded) * sum(len(evenly_spaced(len(d), frames)) for d in datasets)
    with tqdm(total=total, desc="ccd", unit="frame", disable=None, file=sys.stderr) as bar:
        measured = {}
        for path, (model, _) in zip(paths, loaded, strict=True):
            moments = measure(model, datasets, frames=frames, device=where, progress=bar.update,
                              left_out=lambda error: left_out.update({str(error): None}))  # fmt: skip
            measured[str(path)] = (moments, f"{model.spec.size_hw[1]}x{model.spec.size_hw[0]}")
    return space, measured, left_out
