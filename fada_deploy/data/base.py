"""The data set type that every reader returns: a list of frames with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import (
    read_rgb,
    resize_frame,
    resize_labels,
    size_without_orientation,
)
from fada_deploy.common.label_space import IGNORE, LabelSpace
from fada_deploy.data.cache import FrameCache, SizeHW, Stored

LabelReader = Callable[[Path], NDArray[np.uint8]]


@dataclass(frozen=True)
class Pair:
    """A frame, its label file if it has one, and the clip or city it belongs to."""

    image: Path
    labels: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class FrameDataset:
    """One split of a data set.

    Frames are (H, W, 3) uint8 RGB, labels are (H, W) uint8 indices of `space`. `ego_mask`,
    (h, w) bool, is true on the car itself; these pixels are ignored in labels and statistics.
    `skipped_files` maps each file that is not part of a pair to the reason. With a `cache`, decoded
    images are kept, and the returned arrays may be read-only.
    """

    name: str
    split: str
    space: LabelSpace
    pairs: Sequence[Pair]
    read_labels: LabelReader
    ego_mask: NDArray[np.bool_] | None = field(default=None, compare=False)
    skipped_files: Mapping[Path, str] = field(default_factory=dict, compare=False)
    cache: FrameCache | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labeled(self) -> bool:
        """Whether there are labels; single frames may lack them."""
        return any(pair.labels is not None for pair in self.pairs)

    def image(self, i: int, size_hw: SizeHW | None = None) -> NDArray[np.uint8]:
        """Return frame `i`, (H, W, 3) uint8 RGB, resized to `size_hw` if it is given.

        Raise `DataError` if the frame cannot be read.
        """
        return self._frame(i, size_hw).image

    def labels(self, i: int) -> NDArray[np.uint8]:
        """Return labels `i`, (H, W) uint8 indices; 255 on unlabeled pixels and on the car itself.

        Raise `DataError` if frame `i` has no labels or they cannot be read.
        """
        return self._labels(i, None).image

    def pair(
        self, i: int, size_hw: SizeHW | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return frame and labels `i`, resized to `size_hw` if it is given.

        Raise `DataError` if one cannot be read, or if the sizes of their files differ.
        """
        frame, labels = self._frame(i, size_hw), self._labels(i, size_hw)
        self.check_sizes(i, frame.file_hw, labels.file_hw)
        return frame.image, labels.image

    def _frame(self, i: int, size_hw: SizeHW | None) -> Stored:
        path = self.pairs[i].image

        def read() -> Stored:
            frame = read_rgb(path)
            resized = frame if size_hw is None else resize_frame(frame, size_hw)
            return Stored(resized, frame.shape[:2])

        return read() if self.cache is None else self.cache.frame(path, size_hw, read)

    def _labels(self, i: int, size_hw: SizeHW | None) -> Stored:
        path = self.pairs[i].labels
        if path is None:
            raise DataError(f"{self.pairs[i].image}: has no labels")

        def read() -> Stored:
            labels = self.read_labels(path)
            if self.ego_mask is not None:
                labels = np.where(self.ego_mask_at(labels.shape), np.uint8(IGNORE), labels)
            resized = labels if size_hw is None else resize_labels(labels, size_hw)
            return Stored(resized, labels.shape)

        return read() if self.cache is None else self.cache.labels(path, size_hw, read)

    def check_sizes(self, i: int, frame_hw: tuple[int, ...], labels_hw: tuple[int, ...]) -> None:
        """Raise `DataError` if the sizes of frame and labels `i` differ."""
        if frame_hw[:2] == labels_hw[:2]:
            return
        image, remedy = self.pairs[i].image, "both must have the same size"
        if size_without_orientation(image) == labels_hw[:2]:
            remedy = (
                "the EXIF orientation turns the frame, but not its labels; remove the orientation "
                "with `mogrify -orient undefined`, or turn the labels"
            )
        raise DataError(
            f"{image}: the frame is {frame_hw[1]}x{frame_hw[0]} but its labels are "
            f"{labels_hw[1]}x{labels_hw[0]}; {remedy}"
        )

    def ego_mask_at(self, size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the ego mask resized to `size_hw`, (H, W) bool; all false if there is none."""
        height, width = size_hw[:2]
        if self.ego_mask is None:
            return np.zeros((height, width), bool)
        return resize_labels(self.ego_mask.astype(np.uint8), (height, width)).astype(bool)


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return up to `count` indices spread evenly over `length`; all indices if `count` is 0."""
    number = min(count or length, length)
    indices: list[int] = np.linspace(0, length - 1, number).round().astype(int).tolist()
    return indices


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an ego mask, (H, W) bool: an image that is not black on the car itself."""
    rgb = read_rgb(path)
    mask = np.asarray(rgb.any(axis=2))
    if mask.all():
        raise DataError(
            f"{path}: an ego mask must be black outside the car, but no pixel of it is black"
        )
    return mask


def files_by_stem(folder: Path, suffixes: Collection[str] = (".png",)) -> dict[str, Path]:
    """Return the files of a folder with one of the suffixes by their stem, sorted by name."""
    # macOS archives contain a hidden "._<name>" beside each image.
    paths = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    return {path.stem: path for path in paths}


def pair_by_stem(
    images: Mapping[str, Path], labels: Mapping[str, Path]
) -> tuple[list[Pair], dict[Path, str]]:
    """Return the pairs of frames and labels of the same stem, and the other files with reasons."""
    pairs = [Pair(image, labels[stem]) for stem, image in images.items() if stem in labels]
    skipped = {image: "no labels" for stem, image in images.items() if stem not in labels}
    skipped |= {path: "no frame" for stem, path in labels.items() if stem not in images}
    return pairs, skipped


def require_pairs(
    pairs: Sequence[Pair], where: str, layout: str, skipped: Collection[Path] = ()
) -> Sequence[Pair]:
    """Return the pairs; raise `DataError` with the expected layout if there are none."""
    if not pairs:
        problem = f"none of {len(skipped)} files has a partner" if skipped else "contains no frames"
        raise DataError(f"{where}: {problem}; expected {layout}")
    return pairs
