"""How label files are read: ids or colors looked up in a table of a label space's indices.

The readers are values: two that read alike compare and print alike, which the statistics kept of a
data set (`data.statistics`) rely on.
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
# Cityscapes' labelIds go to 33; its −1 (license plate) is stored as 255.
ALL_LABEL_IDS = (*range(34), IGNORE)


@dataclass(frozen=True, repr=False)
class TableReader:
    """Read an id image (H, W) as indices: `table` holds each id's index in 256 bytes, larger ids are ignored.

    `known` are the ids that the format has. Others are ignored, or refused where `strict`, as a
    wrong encoding shows so.
    """

    table: bytes
    known: tuple[int, ...]
    strict: bool = False
    read_ids: Callable[[Path], Ids] = read_indices

    def __repr__(self) -> str:
        # A function prints its address, which is another in each process.
        return f"TableReader({self.table!r}, {self.known}, {self.strict}, {self.read_ids.__qualname__})"

    def ids(self, path: Path) -> Ids:
        """Return the ids as they are in the file, (H, W) integers; raise `DataError` naming a bad file."""
        ids = self.read_ids(path)
        if self.strict:
            present = np.flatnonzero(count_ids(ids)).tolist()
            bad = [f"{i}" if i < 256 else "above 255" for i in present if i not in self.known]
            if bad:
                raise DataError(
                    f"{path}: unknown class id {', '.join(bad[:5])}; allowed are {_ranges(self.known)} and "
                    f"{IGNORE} (ignore); is `encoding` right?"
                )
        return ids

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        ids, table = self.ids(path), np.frombuffer(self.table, np.uint8)
        if ids.dtype == np.uint8:
            return np.asarray(cv2.LUT(ids.astype(np.uint8, copy=False), table), np.uint8)
        return np.where(ids < 256, table[np.minimum(ids, 255)], np.uint8(IGNORE))


@dataclass(frozen=True)
class ColorReader:
    """Read a colored label image as indices: `indices` of the sorted 24-bit RGB `codes`; others are ignored."""

    codes: tuple[int, ...]
    indices: bytes

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        keys, values = np.array(self.codes), np.frombuffer(self.indices, np.uint8)
        rgb = read_rgb(path).astype(np.int64)
        code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        at = np.searchsorted(keys, code).clip(max=len(keys) - 1)
        return np.where(keys[at] == code, values[at], np.uint8(IGNORE))


def table_reader(
    ids: Mapping[int, str],
    space: LabelSpace,
    *,
    known: Collection[int],
    strict: bool = False,
    read_ids: Callable[[Path], Ids] = read_indices,
) -> TableReader:
    """Return the reader of a format `{id: class name}` whose files may hold the `known` ids as well."""
    return TableReader(
        space.from_ids(ids).tobytes(), tuple(sorted({*ids, *known})), strict, read_ids
    )


def count_ids(ids: Ids, counted: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return how many pixels have each id, (257,) int64, the last being all ids above 255.

    `counted` (H, W) bool leaves out the other pixels.
    """
    # OpenCV's histogram lets other threads run, NumPy's does not.
    small = ids if ids.dtype == np.uint8 else np.minimum(ids, 256).astype(np.uint16)
    mask = None if counted is None else counted.astype(np.uint8)
    found = np.zeros(257, np.int64)
    bins = 256 if small.dtype == np.uint8 else 257
    found[:bins] = cv2.calcHist([small], [0], mask, [bins], [0, bins]).ravel()
    return found


def _ranges(known: Collection[int]) -> str:
    found = sorted(set(known) - {IGNORE})
    whole = found == [*range(found[0], found[-1] + 1)]
    return f"{found[0]} to {found[-1]}" if whole else ", ".join(map(str, found))
