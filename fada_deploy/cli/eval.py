"""`fada eval`: per-class IoU of a run or an exported model on labeled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, library_output_hidden, log
from fada_deploy.cli.options import (
    DATA_ROOT_OPTION,
    DEVICE_OPTION,
    JSON_OPTION,
    MODEL_OPTION,
    SIZE,
    cluster_options,
    model_path,
    ray_options,
)
from fada_deploy.common.runs import MODEL_SUFFIXES, newest_run
from fada_deploy.common.system import require_package
from fada_deploy.common.tables import format_table

if TYPE_CHECKING:
    from fada_deploy.cluster.connection import ClusterOptions
    from fada_deploy.common.label_space import LabelSpace
    from fada_deploy.evaluation import Evaluation, Predict

_MULTI_SCALE = (0.7, 1.0, 1.3)


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


@click.command("eval")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@MODEL_OPTION
@click.option(
    "--data",
    required=True,
    metavar="NAME|TOML",
    help="Labeled data set: a name such as cityscapes, or a .toml file.",
)
@DATA_ROOT_OPTION
@click.option(
    "--split", metavar="NAME", default="val", show_default=True, help="Split of the data set."
)
@click.option("--size", type=SIZE, help="Input size; runs only. [default: as trained]")
@click.option(
    "--mst",
    is_flag=True,
    help="Average the probabilities at scales 0.7, 1 and 1.3 and of mirrored frames; runs only.",
)
@click.option(
    "--all",
    "all_weights",
    is_flag=True,
    help="Evaluate every checkpoint, not only the last weights; runs only.",
)
@click.option(
    "--confusion",
    type=click.Path(path_type=Path),
    help="Save the confusion matrix as .csv (pixel counts) or .png (plot).",
)
@DEVICE_OPTION
@click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Inference backend; exported models only: auto, onnxruntime, openvino or tensorrt.",
)
@ray_options
@JSON_OPTION
def command(
    model: Path | None,
    model_option: Path | None,
    data: str,
    data_root: Path | None,
    split: str,
    confusion: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Evaluate MODEL on labeled frames and print the IoU of each class.

    MODEL is a run, a weights file or an exported model. [default: the newest run] Predictions
    are compared at the original size of each frame; labels are never resized.

    \b
    fada eval --data cityscapes
    fada eval runs/gta5-cityscapes-resnet101-001 --data cityscapes --mst
    fada eval model.onnx --data mine.toml --json

    Exits with 1 if some frames cannot be read.
    """
    all_weights = options["all_weights"]
    if confusion is not None:
        _check_confusion(confusion, all_weights)
    model = model_path(model, model_option) or newest_run()
    # A generator, so that only one network is in memory at a time.
    cluster = cluster_options(options)
    results = [
        (subject, _score(subject, predict, data, data_root, split, cluster))
        for subject, predict in _subjects(model, options)
    ]
    failed = dict.fromkeys(line for _, result in results for line in result.failed)
    for line in failed:
        log(f"skipped: {line}")
    data_split = f"{data} {split}"
    if as_json and all_weights:
        emit_json(_all_document(model, data_split, results))
    elif as_json:
        emit_json(_one_document(*results[0], data_split))
    elif all_weights:
        click.echo(_all_text(model, data_split, results))
    else:
        click.echo(_one_text(*results[0], data_split))
    if confusion is not None:
        _save_confusion(*results[0], data_split, confusion)
        log(f"wrote {confusion}")
    return 1 if failed else 0


def _check_confusion(path: Path, all_weights: bool) -> None:
    from fada_deploy.common.errors import UsageError

    if path.suffix.lower() not in (".csv", ".png"):
        raise UsageError(f"--confusion must end with .csv or .png, got {path}")
    if all_weights:
        raise UsageError("--confusion needs a single model; omit --all")
    if path.suffix.lower() == ".png":
        require_package("matplotlib", "plot")


def _score(
    subject: Subject,
    predict: Predict,
    data: str,
    data_root: Path | None,
    split: str,
    cluster: ClusterOptions | None,
) -> Evaluation:
    from fada_deploy.data import open_dataset
    from fada_deploy.evaluation import evaluate, evaluate_on_cluster

    dataset = open_dataset(data, data_root, split=split, space=subject.space)
    description = f"{subject.stage} {subject.iteration}" if subject.iteration else "scoring"
    if cluster is None:
        return evaluate(predict, dataset, description=description)
    with library_output_hidden():
        return evaluate_on_cluster(subject.opener, dataset, cluster, description=description)


def _subjects(model: Path, options: dict[str, Any]) -> Iterator[tuple[Subject, Predict]]:
    """Yield every network to evaluate with its prediction function."""
    from fada_deploy.common.errors import UsageError

    device, backend = options["device"], options["backend"]
    if model.suffix in MODEL_SUFFIXES:
        if options["size"] or options["mst"] or options["all_weights"]:
            raise UsageError(
                f"{model}: --size, --mst and --all apply to runs only; an exported model has one "
                "input size"
            )
        return _exported(model, device, backend)
    if backend != "auto":
        raise UsageError(
            f"{model}: --backend applies to exported models only; a run is evaluated with PyTorch"
        )
    return _trained(model, options)


def _exported(model: Path, device: str, backend: str) -> Iterator[tuple[Subject, Predict]]:
    from fada_deploy.runtime.segmenter import Segmenter

    with Segmenter(model, device=device, backend=backend) as segmenter:
        metadata = segmenter.metadata
        yield (
            Subject(
                str(model),
                metadata.label_space,
                metadata.input_size_hw,
                partial(_open_exported, model, device, backend),
            ),
            partial(segmenter.labels, color="rgb"),
        )


def _open_exported(model: Path, device: str, backend: str) -> Predict:
    from fada_deploy.runtime.segmenter import Segmenter

    return partial(Segmenter(model, device=device, backend=backend).labels, color="rgb")


def _trained(run: Path, options: dict[str, Any]) -> Iterator[tuple[Subject, Predict]]:
    """Yield the final weights of a run, or all its checkpoints, and load each one only then."""
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.common.runs import WEIGHTS, all_weights, final_weights

    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.predict import Predictor, describe_views, with_input_size
        from fada_deploy.training.weights.checkpoints import load_model
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    device, mst = choose_device(options["device"]), options["mst"]
    scales = _MULTI_SCALE if mst else (1.0,)
    for path in all_weights(run) if options["all_weights"] else [final_weights(run)]:
        network, provenance = load_model(path, device)
        network = with_input_size(network, options["size"])
        predictor = Predictor(network, device, scales=scales, flip=mst)
        subject = Subject(
            str(path),
            network.spec.space,
            network.spec.size_hw,
            partial(_open_trained, path.absolute(), dict(options)),
            stage=str(provenance["stage"]),
            iteration=provenance.get("iteration"),
            is_last=path.name == WEIGHTS,
            views=describe_views(scales, mst),
        )
        yield subject, predictor.labels


def _open_trained(weights: Path, options: dict[str, Any]) -> Predict:
    _, predict = next(_trained(weights, {**options, "all_weights": False}))
    return predict


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


def _one_document(subject: Subject, result: Evaluation, data: str) -> dict[str, Any]:
    matrix = result.scores.matrix.tolist()
    head = {"data": data, "views": subject.views}
    return {**head, **_document(subject, result), "confusion": matrix}


def _one_text(subject: Subject, result: Evaluation, data: str) -> str:
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
        lines.append(f"not in the labels, so not part of a mean: {', '.join(scores.absent)}")
    return "\n".join(lines)


def _all_document(
    run: Path, data: str, results: Sequence[tuple[Subject, Evaluation]]
) -> dict[str, Any]:
    return {
        "run": str(run),
        "data": data,
        "views": results[0][0].views,
        "checkpoints": [_document(*pair) for pair in results],
        "last": _document(*results[-1]),
        "best": {**_document(*_best(results)), "oracle": True},
    }


def _all_text(run: Path, data: str, results: Sequence[tuple[Subject, Evaluation]]) -> str:
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


def _save_confusion(subject: Subject, result: Evaluation, data: str, path: Path) -> None:
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
