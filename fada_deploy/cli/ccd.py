"""`fada ccd`: compare runs by the Class Center Distance of their features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import DEVICE_OPTION, JSON_OPTION
from fada_deploy.common.runs import newest_run
from fada_deploy.common.system import require_package
from fada_deploy.common.tables import format_table

if TYPE_CHECKING:
    from fada_deploy.common.label_space import LabelSpace
    from fada_deploy.training.reporting.class_center_distance import ClassMoments

    # The moments of a network's features, and its input size as WIDTHxHEIGHT.
    Measurement = tuple[ClassMoments, str]

_PLOT_SUFFIXES = (".pdf", ".png", ".svg")


@click.command("ccd")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(0),
    metavar="N",
    default=200,
    show_default=True,
    help="Number of labeled frames per domain; 0 uses all of them.",
)
@click.option(
    "--denominator",
    type=click.Choice(["squared", "plain"]),
    default="squared",
    show_default=True,
    help="Whether the distance between class centers is squared (as in the paper) or not.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Save a bar plot as .png, .svg or .pdf.",
)
@DEVICE_OPTION
@JSON_OPTION
def command(
    runs: tuple[Path, ...],
    frames: int,
    denominator: str,
    plot: Path | None,
    device: str,
    as_json: bool,
) -> int:
    """Measure the Class Center Distance of RUNS. [default: the newest run]

    The distance tells how tightly the features of each class cluster, relative to the distance to
    other classes; lower is better. RUNS are runs, stages (RUN/source) or weights files. All of them
    are measured on the same frames: the labeled source frames and labeled target validation frames
    of the first one.

    \b
    fada ccd runs/gta5-cityscapes-resnet101-001/source runs/gta5-cityscapes-resnet101-001
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError

    if plot is not None:
        if plot.suffix.lower() not in _PLOT_SUFFIXES:
            raise UsageError(f"--plot must end with {', '.join(_PLOT_SUFFIXES)}, got {plot}")
        require_package("matplotlib", "plot")
    paths = runs or (newest_run(),)
    try:
        space, measurements, failed = _measure(paths, frames, device)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    for line in failed:
        log(f"skipped: {line}")
    comparison = Comparison(space, measurements, denominator)
    if as_json:
        emit_json({**comparison.document(), "failed": failed})
    else:
        click.echo(comparison.text())
    if plot is not None:
        comparison.save_plot(plot, frames)
        log(f"wrote {plot}")
    return 1 if failed else 0


class Comparison:
    """The distances of several networks, among the classes present in the features of all."""

    def __init__(
        self, space: LabelSpace, measurements: dict[str, Measurement], denominator: str
    ) -> None:
        import numpy as np

        self.space, self.measurements, self.denominator = space, measurements, denominator
        self.common = np.logical_and.reduce([m.present for m, _ in measurements.values()])
        squared = denominator == "squared"
        self.distances = {
            name: moments.distances(among=self.common, squared=squared)
            for name, (moments, _) in measurements.items()
        }
        self.means = {name: float(np.nanmean(v)) for name, v in self.distances.items()}
        pairs = list(zip(space.names, self.common, strict=True))
        self.names = [name for name, present in pairs if present]
        self.absent = [name for name, present in pairs if not present]

    def document(self) -> dict[str, Any]:
        """Return the JSON document; the distance of a class that was not compared is null."""
        runs = {}
        for name, (moments, size) in self.measurements.items():
            rows = zip(self.space.names, self.distances[name].tolist(), self.common, strict=True)
            runs[name] = {
                "input": size,
                "mean": self.means[name],
                "ccd": {n: v if present else None for n, v, present in rows},
                "features": dict(zip(self.space.names, map(int, moments.count), strict=True)),
            }
        return {"denominator": self.denominator, "runs": runs}

    def text(self) -> str:
        """Return the comparison as a table."""
        lines = [f"Class Center Distance, {self.denominator} denominator; lower is better"]
        for i, (name, (moments, size)) in enumerate(self.measurements.items(), 1):
            lines.append(f"  [{i}] {name}, input {size}, {int(moments.count.sum()):,} features")
        header = ["class", *(f"[{i}]" for i in range(1, len(self.measurements) + 1))]
        columns = [values[self.common] for values in self.distances.values()]
        rows = [
            [name, *(f"{values[k]:.2f}" for values in columns)] for k, name in enumerate(self.names)
        ]
        rows.append(["mean", *(f"{mean:.2f}" for mean in self.means.values())])
        lines.append(format_table(header, rows, indent="  "))
        if self.absent:
            lines.append(
                "These classes were not compared, because at least one measurement lacks them: "
                + ", ".join(self.absent)
            )
        return "\n".join(lines)

    def save_plot(self, path: Path, frames: int) -> None:
        """Save a bar plot of the distances by class."""
        from fada_deploy.plots import plot_bars

        plot_bars(
            self.names,
            {name: values[self.common] for name, values in self.distances.items()},
            colors=self.space.palette[: self.space.num_classes][self.common],
            ylabel="CCD (lower is better)",
            title=(
                f"Class Center Distance, {self.denominator} denominator, "
                f"{frames or 'all'} frames of each domain"
            ),
            path=path,
        )


def _measure(
    paths: Sequence[Path], frames: int, device: str
) -> tuple[LabelSpace, dict[str, Measurement], list[str]]:
    """Return the label space, the measurement of each path, and an error per unreadable frame."""
    from fada_deploy.common.errors import ModelError, UsageError
    from fada_deploy.common.runs import final_weights
    from fada_deploy.training.config import RunConfig
    from fada_deploy.training.data.datasets import open_labeled_domains
    from fada_deploy.training.device import choose_device
    from fada_deploy.training.reporting.class_center_distance import collect_moments
    from fada_deploy.training.weights.checkpoints import load_model

    torch_device = choose_device(device)
    loaded = [load_model(final_weights(path), torch_device) for path in paths]
    space = loaded[0][0].spec.space
    for path, (model, _) in zip(paths, loaded, strict=True):
        if model.spec.space != space:
            raise UsageError(
                f"{path} has the label space {model.spec.space.name}, but {paths[0]} has "
                f"{space.name}; compare runs with the same label space"
            )
    if "config" not in loaded[0][1]:
        raise ModelError(f"{paths[0]}: its weights do not contain the settings of their run")
    datasets = open_labeled_domains(RunConfig.from_dict(loaded[0][1]["config"]), space)
    measurements = {}
    failed: dict[str, None] = {}
    for path, (model, _) in zip(paths, loaded, strict=True):
        moments, errors = collect_moments(model, datasets, frames=frames, device=torch_device)
        failed |= dict.fromkeys(errors)
        height, width = model.spec.size_hw
        measurements[str(path)] = (moments, f"{width}x{height}")
    return space, measurements, list(failed)
