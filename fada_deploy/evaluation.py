"""Score any predictor on any labeled data set. Does not import torch.

The same function scores the network in training, an ONNX file and a TensorRT engine:

    space = segmenter.metadata.label_space
    dataset = open_dataset("cityscapes", None, split="val", space=space)
    evaluation = evaluate(partial(segmenter.labels, color="rgb"), dataset)
    print(evaluation.scores.miou)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.mapping import map_on_cluster
from fada_deploy.common.errors import DataError
from fada_deploy.common.metrics import Scores, confusion_matrix
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.read_ahead import read_ahead
from fada_deploy.data.base import FrameDataset

Frame = NDArray[np.uint8]
Predict = Callable[[Sequence[Frame]], Sequence[NDArray[np.uint8]]]

# Two threads decode a frame and its labels while the network runs on earlier ones.
_DECODER_THREADS = 2
_DECODED_AHEAD = 4


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    `scores` covers the `frames` frames that could be read; `failed` has one line for each frame
    that could not, naming the file and the reason.
    """

    scores: Scores
    frames: int
    failed: tuple[str, ...]


def evaluate(
    predict: Predict, dataset: FrameDataset, *, batch: int = 1, description: str = "scoring"
) -> Evaluation:
    """Score `predict` on every frame of a labeled data set.

    `predict` takes a list of up to `batch` frames, (H, W, 3) uint8 RGB at their original size, and
    returns one label map per frame, (H, W) uint8, with class indices of `dataset.space`. A label
    map must have the size of its frame: the ground truth is never resized. `description` labels
    the progress bar.

    Frames that cannot be read are skipped and listed in `Evaluation.failed`. Raise `DataError` if
    the data set has no labels, none of its frames can be read, or all pixels are ignored.
    """
    _require_labels(dataset)
    num_classes = dataset.space.num_classes
    matrix = np.zeros((num_classes, num_classes), np.int64)
    failed: list[str] = []
    pending: list[tuple[Frame, NDArray[np.uint8]]] = []

    def score_pending() -> None:
        if not pending:
            return
        predictions = predict([frame for frame, _ in pending])
        for (_, truth), labels in zip(pending, predictions, strict=True):
            matrix[:] += confusion_matrix(truth, labels, num_classes)
        pending.clear()

    pairs = read_ahead(dataset.pair, len(dataset), threads=_DECODER_THREADS, depth=_DECODED_AHEAD)
    with closing(pairs), progress_bar(len(dataset), description, unit="frame") as bar:
        for pair in pairs:
            if isinstance(pair, DataError):
                failed.append(str(pair))
            else:
                pending.append(pair)
            if len(pending) == batch:
                score_pending()
            bar.update()
        score_pending()
    return _evaluation(dataset, matrix, failed)


def evaluate_on_cluster(
    open_predictor: Callable[[], Predict],
    dataset: FrameDataset,
    cluster: ClusterOptions,
    *,
    description: str = "scoring",
) -> Evaluation:
    """Score a predictor on a Ray cluster; the result is that of `evaluate` with a batch of 1.

    `open_predictor` is called once in each worker. The workers find the files of the data set under
    the same paths.
    """
    _require_labels(dataset)
    num_classes = dataset.space.num_classes
    matrix = np.zeros((num_classes, num_classes), np.int64)
    failed: list[str] = []
    results = map_on_cluster(
        partial(_frame_scorer, open_predictor, dataset),
        len(dataset),
        cluster,
        name=lambda i: str(dataset.pairs[i].image),
    )
    with closing(results), progress_bar(len(dataset), description, unit="frame") as bar:
        for result in results:
            if isinstance(result, DataError):
                failed.append(str(result))
            else:
                matrix += result
            bar.update()
    return _evaluation(dataset, matrix, failed)


def _frame_scorer(
    open_predictor: Callable[[], Predict], dataset: FrameDataset
) -> Callable[[int], NDArray[np.int64]]:
    """Return the function from the number of a frame to its confusion matrix."""
    predict = open_predictor()
    # The network has the cores of the worker; frames are decoded while it runs.
    network = threading.Lock()

    def score(i: int) -> NDArray[np.int64]:
        frame, truth = dataset.pair(i)
        with network:
            (labels,) = predict([frame])
        return confusion_matrix(truth, labels, dataset.space.num_classes)

    return score


def _require_labels(dataset: FrameDataset) -> None:
    if not dataset.labeled:
        raise DataError(f"{dataset.name} {dataset.split}: has no labels to score against")


def _evaluation(
    dataset: FrameDataset, matrix: NDArray[np.int64], failed: Sequence[str]
) -> Evaluation:
    """Return the result; raise `DataError` if no frame could be read or no pixel is labeled."""
    scored = len(dataset) - len(failed)
    if not scored:
        raise DataError(
            f"{dataset.name} {dataset.split}: none of the {len(dataset)} frames could be read, "
            f"the first error: {failed[0]}"
        )
    if not matrix.any():
        raise DataError(
            f"{dataset.name} {dataset.split}: its labels show none of the classes of "
            f"{dataset.space.name}; check their encoding with `fada data check`"
        )
    return Evaluation(Scores(dataset.space, matrix), scored, tuple(failed))
