"""`fada eval`: per-class IoU of a run or an exported model on labeled frames."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, library_output_hidden, log
from fada_deploy.cli.eval_output import (
    Subject,
    all_document,
    all_text,
    one_document,
    one_text,
    save_confusion,
)
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

if TYPE_CHECKING:
    from fada_deploy.cluster.connection import ClusterOptions
    from fada_deploy.common.metadata import ModelMetadata
    from fada_deploy.evaluation import Evaluation, Predict

_MULTI_SCALE = (0.7, 1.0, 1.3)


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
    help="Evaluate every checkpoint instead of the stage that training chose; runs only.",
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

    MODEL is a run, a weights file, an exported model or builtin. [default: the newest run]
    Predictions are compared at the original size of each frame; labels are never resized.

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
        for subject, predict in _subjects(model, options, cluster)
    ]
    failed = dict.fromkeys(line for _, result in results for line in result.failed)
    for line in failed:
        log(f"skipped: {line}")
    data_split = f"{data} {split}"
    if as_json and all_weights:
        emit_json(all_document(model, data_split, results))
    elif as_json:
        emit_json(one_document(*results[0], data_split))
    elif all_weights:
        click.echo(all_text(model, data_split, results))
    else:
        click.echo(one_text(*results[0], data_split))
    if confusion is not None:
        save_confusion(*results[0], data_split, confusion)
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
    predict: Predict | None,
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
        assert predict is not None
        return evaluate(predict, dataset, description=description)
    with library_output_hidden():
        return evaluate_on_cluster(subject.opener, dataset, cluster, description=description)


def _subjects(
    model: Path, options: dict[str, Any], cluster: ClusterOptions | None
) -> Iterator[tuple[Subject, Predict | None]]:
    """Yield every network to evaluate with its prediction function.

    With a cluster there may be none, because only the workers need the backend and its device.
    """
    from fada_deploy.common.errors import UsageError

    device, backend = options["device"], options["backend"]
    if model.suffix in MODEL_SUFFIXES:
        if options["size"] or options["mst"] or options["all_weights"]:
            raise UsageError(
                f"{model}: --size, --mst and --all apply to runs only; an exported model has one "
                "input size"
            )
        return _exported(model, device, backend, cluster)
    if backend != "auto":
        raise UsageError(
            f"{model}: --backend applies to exported models only; a run is evaluated with PyTorch"
        )
    return _trained(model, options, cluster)


def _exported(
    model: Path, device: str, backend: str, cluster: ClusterOptions | None
) -> Iterator[tuple[Subject, Predict | None]]:
    from fada_deploy.runtime.backend_selection import metadata_of
    from fada_deploy.runtime.segmenter import Segmenter

    device = _worker_device(device, cluster)

    def subject(metadata: ModelMetadata) -> Subject:
        opener = partial(_open_exported, model, device, backend)
        return Subject(str(model), metadata.label_space, metadata.input_size_hw, opener)

    if cluster is not None:
        yield subject(metadata_of(model)), None
        return
    with Segmenter(model, device=device, backend=backend) as segmenter:
        yield subject(segmenter.metadata), partial(segmenter.labels, color="rgb")


def _worker_device(device: str, cluster: ClusterOptions | None) -> str:
    """Return the device on which the frames are predicted."""
    if cluster is None:
        return device
    from fada_deploy.cluster.connection import worker_device

    return worker_device(device, cluster)


def _open_exported(model: Path, device: str, backend: str) -> Predict:
    from fada_deploy.runtime.segmenter import Segmenter

    return partial(Segmenter(model, device=device, backend=backend).labels, color="rgb")


def _trained(
    run: Path, options: dict[str, Any], cluster: ClusterOptions | None = None
) -> Iterator[tuple[Subject, Predict]]:
    """Yield the final weights of a run, or all its checkpoints, and load each one only then."""
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.common.runs import WEIGHTS, all_weights, final_weights

    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.predict import Predictor, describe_views, with_input_size
        from fada_deploy.training.weights.checkpoints import load_model
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    options = {**options, "device": _worker_device(options["device"], cluster)}
    device = choose_device(options["device"] if cluster is None else "cpu")
    mst = options["mst"]
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
