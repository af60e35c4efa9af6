"""`fada ccd`: how tightly the features of runs gather around their classes' centres."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.options import emit_json, log, newest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fada_deploy.common.labels import LabelSpace
    from fada_deploy.training.ccd import ClassMoments
    from fada_deploy.training.config import RunConfig


@click.command("ccd")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(0), default=200, show_default=True, help="Of each domain; 0: all.")
@click.option(
    "--denominator",
    type=click.Choice(["squared", "plain"]),
    default="squared",
    show_default=True,
    help="Of the distance between centres: the paper's, or its slides'.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write a bar plot (.png, .svg or .pdf).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    runs: tuple[Path, ...], frames: int, denominator: str, plot: Path | None, device: str, as_json: bool
) -> int:
    """Class Center Distance of RUNS, side by side on the same images [the newest run]; lower is better.

    RUNS are runs, stages (RUN/source) or weights files. The images are the first one's labelled
    source frames and its target's labelled validation frames.
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError

    if plot is not None and plot.suffix not in (".pdf", ".png", ".svg"):
        raise UsageError(f"--plot {plot}: writes .png, .svg or .pdf")
    paths = runs or (newest(),)
    try:
        space, moments, left_out = _measure(paths, frames, device)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    squared = denominator == "squared"
    distances = {str(p): m.distances(squared=squared) for p, m in zip(paths, moments, strict=True)}
    for line in left_out:
        log(f"left out: {line}")
    if as_json:
        emit_json(_document(space, distances, moments[0], denominator))
    else:
        click.echo(_table(space, distances, moments[0], denominator))
    if plot is not None:
        from fada_deploy.plots import plot_bars

        there = moments[0].count.numpy() > 0
        names = [n for n, seen in zip(space.names, there, strict=True) if seen]
        plot_bars(
            names,
            {name: values[there] for name, values in distances.items()},
            colors=space.palette[: space.num_classes][there],
            ylabel="CCD (lower is better)",
            title="Class Center Distance",
            path=plot,
        )
        log(f"plot: {plot}")
    return 1 if left_out else 0


def _measure(
    paths: Sequence[Path], frames: int, device: str
) -> tuple[LabelSpace, list[ClassMoments], dict[str, None]]:
    from tqdm import tqdm

    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.runs import final_weights
    from fada_deploy.training.ccd import chosen_frames, measure
    from fada_deploy.training.checkpoints import load_segmenter
    from fada_deploy.training.config import RunConfig
    from fada_deploy.training.device import choose_device

    where = choose_device(device)
    loaded = [load_segmenter(final_weights(path), where) for path in paths]
    space = loaded[0][0].spec.space
    for path, (model, _) in zip(paths, loaded, strict=True):
        if model.spec.space != space:
            raise UsageError(
                f"{path} tells {model.spec.space.name} apart, {paths[0]} {space.name}; compare runs of one "
                "label space"
            )
    datasets = _labelled(RunConfig.from_dict(loaded[0][1]["config"]), space)
    left_out: dict[str, None] = {}
    total = len(loaded) * sum(len(chosen_frames(len(d), frames)) for d in datasets)
    with tqdm(total=total, desc="ccd", unit="frame", disable=None, file=sys.stderr) as bar:
        moments = [
            measure(model, datasets, frames=frames, device=where, progress=bar.update,
                    left_out=lambda error: left_out.update({str(error): None}))
            for model, _ in loaded
        ]  # fmt: skip
    return space, moments, left_out


def _labelled(config: RunConfig, space: LabelSpace) -> list[Any]:
    """Return the labelled frames of both domains: source train, target val."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.data import DATASETS, open_dataset

    if config.tgt not in DATASETS and not config.tgt.endswith(".toml"):
        raise UsageError(
            f"the target {config.tgt} is recordings without labels; centres need labels of both domains"
        )
    found = [
        open_dataset(name, None if root is None else Path(root), split=split, space=space)
        for name, root, split in ((config.src, config.src_root, "train"), (config.tgt, config.tgt_root, "val"))
    ]
    for dataset in found:
        if not dataset.labelled:
            raise UsageError(f"{dataset.name} {dataset.split}: has no labels; centres need labels of both domains")
    return found


def _document(
    space: LabelSpace, distances: dict[str, NDArray[np.float64]], moments: ClassMoments, denominator: str
) -> dict[str, Any]:
    from math import isnan

    import numpy as np

    def by_class(values: NDArray[np.float64]) -> dict[str, float | None]:
        return {n: None if isnan(v) else float(v) for n, v in zip(space.names, values, strict=True)}

    runs = {name: {"mean": float(np.nanmean(v)), "ccd": by_class(v)} for name, v in distances.items()}
    pixels = dict(zip(space.names, map(int, moments.count), strict=True))
    return {"denominator": denominator, "features": pixels, "runs": runs}


def _table(
    space: LabelSpace, distances: dict[str, NDArray[np.float64]], moments: ClassMoments, denominator: str
) -> str:
    import numpy as np

    width = max(map(len, space.names))
    columns = range(1, len(distances) + 1)
    lines = [f"Class Center Distance, {denominator} denominator; lower is better"]
    lines += [f"  [{i}] {name}" for i, name in zip(columns, distances, strict=True)]
    lines.append(f"  {'class':<{width}}" + "".join(f"{f'[{i}]':>9}" for i in columns) + "    features")
    for k, name in enumerate(space.names):
        if moments.count[k] > 0:
            values = "".join(f"{v[k]:9.2f}" for v in distances.values())
            lines.append(f"  {name:<{width}}{values}{int(moments.count[k]):12,}")
    lines.append(f"  {'mean':<{width}}" + "".join(f"{np.nanmean(v):9.2f}" for v in distances.values()))
    absent = [n for n, c in zip(space.names, moments.count, strict=True) if c == 0]
    if absent:
        lines.append(f"not in these labels: {', '.join(absent)}")
    return "\n".join(lines)
