"""Readers of label files: ids or colors are looked up in a table of class indices.

Readers are values: two readers with the same behavior are equal and have the same `repr`, which is
part of the cache key of `data.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_indices, read_rgb
from fada_deploy.common.label_space import CITYSCAPES_19, IGNORE, LabelSpace

Ids = NDArray[np.integer[Any]]
LABEL_IDS = {c.label_id: c.name for c in CITYSCAPES_19.classes}
# Cityscapes' labelIds are 0 to 33; its −1 (license plate) is stored as 255.
ALL_LABEL_IDS = (*range(34), IGNORE)


@dataclass(frozen=True, repr=False)
class TableReader:
    """Read an id image (H, W) as class indices.

    `table` holds the index of each id 0…255; larger ids are ignored. `known` are the ids that the
    format defines. Other ids are ignored, or refused if `strict`, because they show that the
    encoding is wrong.
    """

    table: bytes
    known: tuple[int, ...]
    strict: bool = False
    read_ids: Callable[[Path], Ids] = read_indices

    def __repr__(self) -> str:
        # The repr of a function contains its address, which differs between processes.
        reader = self.read_ids.__qualname__
        return f"TableReader({self.table!r}, {self.known}, {self.strict}, {reader})"

    def ids(self, path: Path) -> Ids:
        """Return the ids of a file, (H, W) integers.

        Raise `DataError` if it cannot be read, or contains unknown ids and the reader is strict.
        """
        ids = self.read_ids(path)
        if self.strict:
            self.check(path, count_ids(ids))
        return ids

    def check(self, path: Path, counts: NDArray[np.int64]) -> None:
        """Raise `DataError` if the reader is strict and a file contains unknown ids.

        `counts` are those of `count_ids`.
        """
        present = np.flatnonzero(counts).tolist() if self.strict else []
        unknown = [f"{i}" if i < 256 else "above 255" for i in present if i not in self.known]
        if unknown:
            raise DataError(
                f"{path}: found unknown class id {', '.join(unknown[:5])}, expected "
                f"{_ranges(self.known)} or {IGNORE} (ignore); check `encoding`"
            )

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        ids, table = self.ids(path), np.frombuffer(self.table, np.uint8)
        if ids.dtype == np.uint8:
            return np.asarray(cv2.LUT(ids.astype(np.uint8, copy=False), table), np.uint8)
        return np.where(ids < 256, table[np.minimum(ids, 255)], np.uint8(IGNORE))


@dataclass(frozen=True)
class ColorReader:
    """Read a color-coded label image as class indices.

    `indices[i]` is the index of the 24-bit RGB color `codes[i]`; `codes` are sorted. Other colors
    are ignored.
    """

    codes: tuple[int, ...]
    indices: bytes

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        return self.decode(path)[0]

    def decode(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the class indices (H, W), and the 24-bit colors (N,) of the pixels of no class."""
        codes, indices = np.array(self.codes), np.frombuffer(self.indices, np.uint8)
        rgb = read_rgb(path).astype(np.int64)
        code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        nearest = np.searchsorted(codes, code).clip(max=len(codes) - 1)
        known = codes[nearest] == code
        return np.where(known, indices[nearest], np.uint8(IGNORE)), code[~known]


def table_reader(
    ids: Mapping[int, str],
    space: LabelSpace,
    *,
    known: Collection[int],
    strict: bool = False,
    read_ids: Callable[[Path], Ids] = read_indices,
) -> TableReader:
    """Return the reader of a format `{id: class name}`; `known` are further ids of the format."""
    return TableReader(
        space.from_ids(ids).tobytes(), tuple(sorted({*ids, *known})), strict, read_ids
    )


def id_encodings(space: LabelSpace) -> dict[str, tuple[dict[int, str], Collection[int]]]:
    """Return what the encodings of ids mean: name → ({id: class name}, further ids it defines)."""
    classes = CITYSCAPES_19.classes + space.classes
    return {
        "trainId": ({c.train_id: c.name for c in classes}, {IGNORE}),
        # All Cityscapes labelIds are valid; those without a class in the space are ignored.
        "labelId": ({c.label_id: c.name for c in classes}, ALL_LABEL_IDS),
        "index": (dict(enumerate(space.names)), {IGNORE}),
    }


def count_ids(ids: Ids, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the number of pixels of each id, (257,) int64; the last entry counts all ids > 255.

    Only pixels where `mask` (H, W) bool is true are counted.
    """
    # OpenCV's histogram releases the GIL, NumPy's bincount does not.
    small = ids if ids.dtype == np.uint8 else np.minimum(ids, 256).astype(np.uint16)
    mask_u8 = None if mask is None else mask.astype(np.uint8)
    counts = np.zeros(257, np.int64)
    bins = 256 if small.dtype == np.uint8 else 257
    counts[:bins] = cv2.calcHist([small], [0], mask_u8, [bins], [0, bins]).ravel()
    return counts


def _ranges(ids: Collection[int]) -> str:
    """Return "0 to 18" for contiguous ids and a list of the ids otherwise."""
    numbers = sorted(set(ids) - {IGNORE})
    contiguous = numbers == [*range(numbers[0], numbers[-1] + 1)]
    return f"{numbers[0]} to {numbers[-1]}" if contiguous else ", ".join(map(str, numbers))
