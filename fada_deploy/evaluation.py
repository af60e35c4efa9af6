"""Score anything that labels frames on anything that holds labeled frames; knows no torch.

One function serves the network in training, ONNX files and engines:
`evaluate(segmenter.labels, open_dataset("cityscapes", None, split="val", space=space))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.metrics import Scores, confusion_matrix
from fada_deploy.data.base import FrameDataset

Frame = NDArray[np.uint8]
Predict = Callable[[Sequence[Frame]], Sequence[NDArray[np.uint8]]]
Loaded = tuple[Frame, NDArray[np.uint8]] | DataError


@dataclass(frozen=True)
class Evaluation:
    """Scores over the frames that could be read, and one line for each that could not."""

    scores: Scores
    frames: int
    failed: tuple[str, ...]


def evaluate(
    predict: Predict,
    dataset: FrameDataset,
    *,
    batch: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score `predict` on every labeled frame of `dataset`.

    `predict` takes frames (H, W, 3) uint8 RGB as read and returns label maps (H, W) uint8 indices of
    the data set's label space **at each frame's own size**: images are resized for the network,
    labels never. A frame that cannot be read is left out and named. Raise `DataError` when none can.
    """
    if not dataset.labeled:
        raise DataError(f"{dataset.name} {dataset.split}: has no labels to score against")
    num_classes = dataset.space.num_classes
    matrix = np.zeros((num_classes, num_classes), np.int64)
    failed: list[str] = []
    waiting: list[tuple[Frame, NDArray[np.uint8]]] = []

    def flush() -> None:
        if waiting:
            for (_, truth), labels in zip(waiting, predict([f for f, _ in waiting]), strict=True):
                matrix[:] += confusion_matrix(truth, labels, num_classes)
            waiting.clear()

    done = 0
    for item in _read_ahead(dataset):
        if isinstance(item, DataError):
            failed.append(str(item))
        else:
            waiting.append(item)
            done += 1
        if len(waiting) == batch:
            flush()
        if progress:
            progress(1)
    flush()
    if not done:
        raise DataError(
            f"{dataset.name} {dataset.split}: no frame could be read; the first: {failed[0]}"
        )
    return Evaluation(Scores(dataset.space, matrix), done, tuple(failed))


def _read_ahead(dataset: FrameDataset, depth: int = 4) -> Iterator[Loaded]:
    """Yield every pair in order, a few decoded ahead in a second thread."""

    def load(i: int) -> Loaded:
        try:
            return dataset.pair(i)
        except DataError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        indices = iter(range(len(dataset)))
        pending = [pool.submit(load, i) for i in islice(indices, depth)]
        while pending:
            yield pending.pop(0).result()
            pending.extend(pool.submit(load, i) for i in islice(indices, 1))
