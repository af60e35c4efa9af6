"""What every reader yields: a list of frames with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_rgb, resize_labels
from fada_deploy.common.label_space import IGNORE, LabelSpace

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
    labels or statistics are taken. `left_out` says of each file that makes no pair why it does not.
    """

    name: str
    split: str
    space: LabelSpace
    pairs: Sequence[Pair]
    read_labels: LabelReader
    ego_mask: NDArray[np.bool_] | None = field(default=None, compare=False)
    left_out: Mapping[Path, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labeled(self) -> bool:
        return all(pair.labels is not None for pair in self.pairs)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return frame `i`, (H, W, 3) uint8 RGB; raise `DataError` naming a bad file."""
        return read_rgb(self.pairs[i].image)

    def labels(self, i: int) -> NDArray[np.uint8]:
        """Return labels `i`, (H, W) uint8 indices, 255 where unlabeled or the car itself."""
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
        self.check_sizes(i, image.shape, labels.shape)
        return image, labels

    def check_sizes(self, i: int, frame_hw: tuple[int, ...], labels_hw: tuple[int, ...]) -> None:
        """Raise `DataError` where the sizes of frame and labels `i` differ."""
        if frame_hw[:2] != labels_hw[:2]:
            raise DataError(
                f"{self.pairs[i].image}: the frame is {frame_hw[1]}x{frame_hw[0]} but its labels are "
                f"{labels_hw[1]}x{labels_hw[0]}; both must be of one size"
            )

    def ego(self, size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the bonnet mask at a size, (H, W) bool, all false when there is none."""
        height, width = size_hw[:2]
        if self.ego_mask is None:
            return np.zeros((height, width), bool)
        return resize_labels(self.ego_mask.astype(np.uint8), (height, width)).astype(bool)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an ego mask: an image whose non-black pixels are the car itself."""
    rgb = read_rgb(path)
    mask = np.asarray(rgb.any(axis=2))
    if mask.all():
        raise DataError(
            f"{path}: an ego mask must be black where the street is; this one leaves nothing"
        )
    return mask


def files_by_stem(folder: Path, suffixes: Collection[str] = (".png",)) -> dict[str, Path]:
    """Return the files of a folder that have one of the suffixes by their stem, in order of their names."""
    # A dot's file is the shadow that some archives leave beside each picture.
    found = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    return {path.stem: path for path in found}


def pair_up(
    images: Mapping[str, Path], labels: Mapping[str, Path]
) -> tuple[list[Pair], dict[Path, str]]:
    """Pair frames with the labels of the same stem; return the pairs, and why each other file is in none."""
    pairs = [Pair(image, labels[stem]) for stem, image in images.items() if stem in labels]
    left_out = {image: "no labels" for stem, image in images.items() if stem not in labels}
    left_out |= {path: "no frame" for stem, path in labels.items() if stem not in images}
    return pairs, left_out


def need_pairs(
    pairs: Sequence[Pair], where: str, layout: str, left_out: Collection[Path] = ()
) -> Sequence[Pair]:
    """Return the pairs, or raise `DataError` saying what the folder should hold."""
    if not pairs:
        found = f"no frame has labels, of {len(left_out)} files" if left_out else "no frames found"
        raise DataError(f"{where}: {found}. It must look like this: {layout}")
    return pairs
