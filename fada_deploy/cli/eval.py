"""`fada eval`: per-class IoU of a run or an exported model on labeled frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import SIZE
from fada_deploy.common.runs import newest_run
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.common.label_space import LabelSpace
    from fada_deploy.evaluation import Evaluation, Predict

MULTI_SCALE = (0.7, 1.0, 1.3)


@dataclass(frozen=True)
class Subject:
    """What is scored: its name and, of weights, their stage and iteration (None: not known)."""

    name: str
    space: LabelSpace
    size_hw: tuple[int, int]
    stage: str = ""
    iteration: int | None = None
    last: bool = True
    views: str = ""

    @property
    def input(self) -> str:
        return f"{self.size_hw[1]}x{self.size_hw[0]}"


@click.command("eval")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--data", required=True, help="A data set's name, or the path of a .toml file.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where it lies [$FADA_DATASETS/NAME or datasets/NAME].",
)
@click.option("--split", default="val", show_default=True)
@click.option("--size", type=SIZE, help="The network's input, of a run [as trained].")
@click.option(
    "--mst", is_flag=True, help="Average over scales 0.7, 1, 1.3 and mirror images, of a run."
)
@click.option(
    "--all", "all_weights", is_flag=True, help="Score every checkpoint that the run has kept."
)
@click.option(
    "--confusion",
    type=click.Path(path_type=Path),
    help="Write the confusion matrix: .csv (pixels) or .png.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="Of an exported model: onnxruntime or openvino.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    model: Path | None,
    data: str,
    root: Path | None,
    split: str,
    size: tuple[int, int] | None,
    mst: bool,
    all_weights: bool,
    confusion: Path | None,
    device: str,
    backend: str,
    as_json: bool,
) -> int:
    """Score MODEL, an exported file or a run, on labeled frames [the newest run].

    Labels are never resized: predictions are made at each frame's own size.
    """
    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.runs import MODEL_SUFFIXES

    if confusion is not None:
        if confusion.suffix.lower() not in (".csv", ".png") or all_weights:
            what = (
                "the matrix of one model, so leave out --all"
                if all_weights
                else "a .csv or .png file"
            )
            raise UsageError(f"--confusion {confusion}: writes {what}")
        if confusion.suffix.lower() == ".png":
            require_package("matplotlib", "plot")
    if model is None:
        model = newest_run()
    if model.suffix in MODEL_SUFFIXES:
        if size or mst or all_weights:
            raise UsageError(
                f"{model}: --size, --mst and --all are for runs; an exported file has one input size"
            )
        subjects = _exported(model, device, backend)
    else:
        if backend != "auto":
            raise UsageError(
                f"{model}: --backend is for exported files; a run's network answers for itself"
            )
        subjects = _weights(model, device, size, mst=mst, every=all_weights)
    # Each network is let go before the next one comes.
    results = [
        (subject, _score(subject, predict, data, root, split)) for subject, predict in subjects
    ]
    for line in dict.fromkeys(line for _, result in results for line in result.failed):
        log(f"left out: {line}")
    views = results[0][0].views
    if all_weights:
        _tell_all(model, f"{data} {split}", results, views, as_json=as_json)
    else:
        _tell_one(*results[0], f"{data} {split}", views, as_json=as_json)
        if confusion is not None:
            _write_confusion(*results[0], f"{data} {split}", confusion)
    return 1 if any(result.failed for _, result in results) else 0


def _score(
    subject: Subject, predict: Predict, data: str, root: Path | None, split: str
) -> Evaluation:
    from tqdm import tqdm

    from fada_deploy.data import open_dataset
    from fada_deploy.evaluation import evaluate

    dataset = open_dataset(data, root, split=split, space=subject.space)
    what = f"{subject.stage} {subject.iteration}" if subject.iteration else "eval"
    with tqdm(total=len(dataset), desc=what, unit="frame", disable=None, file=sys.stderr) as bar:
        return evaluate(predict, dataset, progress=bar.update)


def _exported(model: Path, device: str, backend: str) -> Iterator[tuple[Subject, Predict]]:
    from fada_deploy.runtime.segmenter import Segmenter

    with Segmenter(model, device=device, backend=backend) as segmenter:
        metadata = segmenter.metadata
        yield Subject(str(model), metadata.label_space, metadata.input_size_hw), partial(segmenter.labels, color="rgb")


def _weights(
    run: Path, device: str, size_hw: tuple[int, int] | None, *, mst: bool, every: bool
) -> Iterator[tuple[Subject, Predict]]:
    """Yield a run's last weights, or every checkpoint, each loaded when its turn comes."""
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.common.runs import WEIGHTS, all_weights, final_weights

    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.predict import Predictor, describe_views, with_input_size
        from fada_deploy.training.weights.checkpoints import load_model
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    where = choose_device(device)
    for path in all_weights(run) if every else [final_weights(run)]:
        network, provenance = load_model(path, where)
        network = with_input_size(network, size_hw)
        scales = MULTI_SCALE if mst else (1.0,)
        predictor = Predictor(network, where, scales=scales, flip=mst)
        spec, last = network.spec, path.name == WEIGHTS
        stage, iteration = str(provenance["stage"]), provenance.get("iteration")
        views = describe_views(scales, mst)
        yield (
            Subject(str(path), spec.space, spec.size_hw, stage, iteration, last, views),
            predictor.labels,
        )


def _document(subject: Subject, result: Evaluation) -> dict[str, Any]:
    weights = {"stage": subject.stage, "iteration": subject.iteration, "last": subject.last}
    return {
        "model": subject.name,
        **(weights if subject.stage else {}),
        "input": subject.input,
        "frames": result.frames,
        "failed": list(result.failed),
        **result.scores.to_dict(),
    }


def _tell_one(
    subject: Subject, result: Evaluation, data: str, views: str, *, as_json: bool
) -> None:
    if as_json:
        matrix = result.scores.matrix.tolist()
        emit_json({"data": data, "views": views, **_document(subject, result), "confusion": matrix})
        return
    scores = result.scores
    width = max(map(len, (*scores.space.names, *scores.smaller_means)))
    click.echo(_head(subject.name, data, subject, result, views))
    click.echo(f"  {'class':<{width}}  IoU %")
    for name, value, there in zip(scores.space.names, scores.iou, scores.present, strict=True):
        if there:
            click.echo(f"  {name:<{width}}  {100 * value:5.1f}")
    click.echo(
        f"  {'mIoU':<{width}}  {100 * scores.miou:5.1f}   pixel accuracy {100 * scores.pixel_accuracy:.1f}"
    )
    for name, mean in scores.smaller_means.items():
        click.echo(f"  {name:<{width}}  {100 * mean:5.1f}   mean over these classes alone")
    if scores.absent:
        click.echo(f"not in these labels, so not in any mean: {', '.join(scores.absent)}")


def _tell_all(
    run: Path, data: str, results: list[tuple[Subject, Evaluation]], views: str, *, as_json: bool
) -> None:
    last = results[-1]
    best = max(results, key=lambda pair: pair[1].scores.miou)
    if as_json:
        documents = [_document(*pair) for pair in results]
        oracle = {**_document(*best), "oracle": True}
        emit_json({"run": str(run), "data": data, "views": views, "checkpoints": documents,
                   "last": _document(*last), "best": oracle})  # fmt: skip
        return
    click.echo(f"{run} on {data}, {last[1].frames} frames{', ' + views if views else ''}")
    click.echo("  stage        iteration      input  mIoU %")
    for subject, result in results:
        mark = "  last of the stage" if subject.last else ""
        row = f"  {subject.stage:<11}  {subject.iteration or '-':>9}  {subject.input:>9}"
        click.echo(f"{row}  {100 * result.scores.miou:6.1f}{mark}")
    for name, (subject, result), note in (
        ("last", last, "what to report"),
        ("best", best, "an oracle: chosen by the target's own labels"),
    ):
        where = f"{subject.stage} {subject.iteration or ''}".strip()
        click.echo(f"{name}: {100 * result.scores.miou:.1f} after {where} ({note})")


def _head(name: str, data: str, subject: Subject, result: Evaluation, views: str) -> str:
    return f"{name} on {data}, {result.frames} frames, input {subject.input}{', ' + views if views else ''}"


def _write_confusion(subject: Subject, result: Evaluation, data: str, path: Path) -> None:
    scores = result.scores
    if path.suffix.lower() == ".png":
        from fada_deploy.plots import plot_confusion

        about = (
            f"{data}, {result.frames} frames, input {subject.input}, mIoU {100 * scores.miou:.1f}"
        )
        plot_confusion(scores, f"{subject.name}\n{about}", path)
    else:
        from fada_deploy.common.files import write_text

        rows = [["truth \\ predicted", *scores.space.names]]
        rows += [
            [n, *map(str, r)]
            for n, r in zip(scores.space.names, scores.matrix.tolist(), strict=True)
        ]
        write_text(path, "".join(",".join(row) + "\n" for row in rows))
    log(f"confusion matrix: {path}")
