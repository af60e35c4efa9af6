"""What every reader yields: a list of frames with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_indices, read_rgb, resize_labels
from fada_deploy.common.labels import IGNORE, LabelSpace

LabelReader = Callable[[Path], NDArray[np.uint8]]


@dataclass(frozen=True)
class Pair:
    """One frame, its label file if it has one, and the clip or town it belongs to."""

    image: Path
    labels: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class FrameDataset:
    """One split of a data set: frames (H, W, 3) uint8 RGB and labels (H, W) uint8 indices of `space`.

    `ego_mask`, (h, w) bool, is true on the car's own bonnet; those pixels are ignored wherever
    labels or statistics are taken.
    """

    name: str
    split: str
    space: LabelSpace
    pairs: Sequence[Pair]
    read_labels: LabelReader
    ego_mask: NDArray[np.bool_] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labelled(self) -> bool:
        return all(pair.labels is not None for pair in self.pairs)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return frame `i`, (H, W, 3) uint8 RGB; raise `DataError` naming a bad file."""
        return read_rgb(self.pairs[i].image)

    def labels(self, i: int) -> NDArray[np.uint8]:
        """Return labels `i`, (H, W) uint8 indices, 255 where unlabelled or the car itself."""
        path = self.pairs[i].labels
        if path is None:
            raise DataError(f"{self.pairs[i].image}: has no labels")
        labels = self.read_labels(path)
        if self.ego_mask is not None:
            labels = np.where(self.ego(labels.shape), np.uint8(IGNORE), labels)
        return labels

    def pair(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return frame and labels `i`; raise `DataError` when their sizes differ."""
        image, labels = self.image(i), self.labels(i)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{self.pairs[i].image}: the frame is {image.shape[1]}x{image.shape[0]} but its labels are "
                f"{labels.shape[1]}x{labels.shape[0]}; both must be of one size"
            )
        return image, labels

    def ego(self, size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the bonnet mask at a size, (H, W) bool, all false when there is none."""
        height, width = size_hw[:2]
        if self.ego_mask is None:
            return np.zeros((height, width), bool)
        return resize_labels(self.ego_mask.astype(np.uint8), (height, width)).astype(bool)


def table_reader(table: NDArray[np.uint8]) -> LabelReader:
    """Return a reader of id images: ids looked up in a (256,) table, larger ids ignored."""

    def read(path: Path) -> NDArray[np.uint8]:
        ids = read_indices(path)
        if ids.dtype == np.uint8:
            return np.asarray(cv2.LUT(ids.astype(np.uint8, copy=False), table), np.uint8)
        return np.where(ids < 256, table[np.minimum(ids, 255)], np.uint8(IGNORE))

    return read


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an ego mask: an image whose non-black pixels are the car itself."""
    rgb = read_rgb(path)
    mask = np.asarray(rgb.any(axis=2))
    if mask.all():
        raise DataError(f"{path}: an ego mask must be black where the street is; this one leaves nothing")
    return mask


def need_pairs(pairs: Sequence[Pair], where: str, layout: str) -> Sequence[Pair]:
    """Return the pairs, or raise `DataError` saying what the folder should hold."""
    if not pairs:
        raise DataError(f"{where}: no frames found. It must look like this: {layout}")
    return pairs
