"""`fada eval`: per-class IoU of a run or an exported model on labelled frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.options import emit_json, log, newest

if TYPE_CHECKING:
    from fada_deploy.common.labels import LabelSpace
    from fada_deploy.evaluate import Evaluation, Predict


@click.command("eval")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--data", required=True, help="gta5, cityscapes, or the path of a .toml file.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where it lies [$FADA_DATASETS/NAME or datasets/NAME]."
)
@click.option("--split", default="val", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend", default="auto", show_default=True, help="Of an exported model: onnxruntime or openvino."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    model: Path | None, data: str, root: Path | None, split: str, device: str, backend: str, as_json: bool
) -> int:
    """Score MODEL, an exported file or a run, on labelled frames [the newest run].

    Labels are never resized: predictions are made at each frame's own size.
    """
    from tqdm import tqdm

    from fada_deploy.data import open_dataset
    from fada_deploy.evaluate import evaluate

    with _opened(model, device, backend) as (name, predict, space, size_hw):
        dataset = open_dataset(data, root, split=split, space=space)
        with tqdm(total=len(dataset), desc="eval", unit="frame", disable=None, file=sys.stderr) as bar:
            result = evaluate(predict, dataset, progress=bar.update)
    for line in result.failed:
        log(f"left out: {line}")
    if as_json:
        emit_json(_document(name, dataset.name, split, size_hw, result))
    else:
        click.echo(_table(name, f"{dataset.name} {split}", size_hw, result))
    return 1 if result.failed else 0


@contextmanager
def _opened(
    model: Path | None, device: str, backend: str
) -> Iterator[tuple[str, Predict, LabelSpace, tuple[int, int]]]:
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.common.runs import MODEL_SUFFIXES, final_weights

    if model is None:
        model = newest()
    if model.suffix in MODEL_SUFFIXES:
        from fada_deploy.runtime.segmenter import Segmenter

        with Segmenter(model, device=device, backend=backend) as segmenter:
            yield str(model), segmenter.labels, segmenter.metadata.label_space, segmenter.metadata.input_size_hw
        return
    weights = final_weights(model)
    try:
        from fada_deploy.training.checkpoints import load_segmenter
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.predict import Predictor
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    where = choose_device(device)
    network, _ = load_segmenter(weights, where)
    yield str(weights), Predictor(network, where).labels, network.spec.space, network.spec.size_hw


def _document(name: str, data: str, split: str, size_hw: tuple[int, int], result: Evaluation) -> dict[str, Any]:
    return {
        "model": name,
        "data": data,
        "split": split,
        "input": f"{size_hw[1]}x{size_hw[0]}",
        "frames": result.frames,
        "failed": list(result.failed),
        **result.scores.to_dict(),
    }


def _table(name: str, data: str, size_hw: tuple[int, int], result: Evaluation) -> str:
    scores = result.scores
    width = max(map(len, scores.space.names))
    rows = [
        f"  {n:<{width}}  {100 * v:5.1f}"
        for n, v, there in zip(scores.space.names, scores.iou, scores.present, strict=True)
        if there
    ]
    absent = f"not in these labels, so not in the mean: {', '.join(scores.absent)}" if scores.absent else ""
    head = f"{name} on {data}, {result.frames} frames, input {size_hw[1]}x{size_hw[0]}"
    mean = f"  {'mIoU':<{width}}  {100 * scores.miou:5.1f}   pixel accuracy {100 * scores.pixel_accuracy:.1f}"
    return "\n".join(filter(None, [head, f"  {'class':<{width}}  IoU %", *rows, mean, absent]))
