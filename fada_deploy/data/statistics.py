"""What the files of a data set hold: which classes, what sizes, which cannot be used.

Counted once, by `fada data check` or before training, and kept in the user's cache until a file changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path, cache_folder
from fada_deploy.common.read_ahead import read_ahead
from fada_deploy.common.system import usable_cores
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import TableReader, count_ids

_FORMAT = 1
_SAME = np.arange(256).astype(np.uint8)


@dataclass(frozen=True)
class DatasetStatistics:
    """What was counted in a data set of N frames and K classes.

    `pixels` (N, K + 1) int64: each class's pixels in each file and, last, the ignored ones; all 0 for
    a bad file and one without labels. `sizes` (N, 2) int64: height and width, 0 where unknown.
    `unknown`: pixels of ids that the format does not have, 256 standing for all above 255. `bad`: frame
    number → why it cannot be used.
    """

    pixels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    unknown: dict[int, int]
    bad: dict[int, str]

    @property
    def contents(self) -> NDArray[np.bool_]:
        """Which file holds which class, (N, K) bool; a bad file holds none."""
        return np.asarray(self.pixels[:, :-1] > 0)

    @property
    def without_class(self) -> list[int]:
        """Numbers of the label files that are ignored altogether."""
        return np.flatnonzero(~self.contents.any(1) & (self.pixels[:, -1] > 0)).tolist()

    @property
    def single_class(self) -> dict[int, int]:
        """Number → class of the label files that hold one class only."""
        numbers = np.flatnonzero(self.contents.sum(1) == 1).tolist()
        return {number: int(self.contents[number].argmax()) for number in numbers}


def compute_statistics(
    dataset: FrameDataset,
    *,
    frames: bool,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DatasetStatistics:
    """Read every label file of a data set, and every frame where `frames`; keep counts only.

    Files without labels count as frames alone. A file that cannot be used is named in `bad`, never raised.
    """
    pixels = np.zeros((len(dataset), dataset.space.num_classes + 1), np.int64)
    sizes = np.zeros((len(dataset), 2), np.int64)
    unknown = np.zeros(257, np.int64)
    bad: dict[int, str] = {}

    def look(i: int) -> _Seen:
        return _look(dataset, i, frames)

    threads = jobs or usable_cores()
    with closing(read_ahead(look, len(dataset), threads=threads, depth=4 * threads)) as files:
        for i, seen in enumerate(files):
            if isinstance(seen, DataError):
                bad[i] = str(seen)
            else:
                pixels[i], sizes[i] = seen.pixels, seen.size_hw
                unknown += seen.unknown
            if progress:
                progress(1)
    strange = {i: int(unknown[i]) for i in np.flatnonzero(unknown).tolist()}
    return DatasetStatistics(pixels, sizes, strange, bad)


def load_statistics(dataset: FrameDataset) -> DatasetStatistics | None:
    """Return the statistics kept of exactly these files in this label space, or None."""
    try:
        with statistics_path(dataset).open("rb") as handle, np.load(handle) as kept:
            about = json.loads(str(kept["about"]))
            return DatasetStatistics(
                kept["pixels"], kept["sizes"],
                {int(i): n for i, n in about["unknown"].items()}, {int(i): t for i, t in about["bad"].items()},
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        # Not there, or damaged: either way it is counted again.
        return None


def save_statistics(
    dataset: FrameDataset, statistics: DatasetStatistics, say: Callable[[str], None]
) -> Path | None:
    """Keep a statistics in the cache and return its path; where that cannot be written say so and return None."""
    about = {"unknown": statistics.unknown, "bad": statistics.bad}
    try:
        path = statistics_path(dataset)
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                pixels=statistics.pixels,
                sizes=statistics.sizes,
                about=np.array(json.dumps(about)),
            )
    except OSError as error:
        say(
            f"the class statistics cannot be kept ({error}), so they are counted anew each time; "
            "set XDG_CACHE_HOME to a folder that can be written"
        )
        return None
    return path


def statistics_path(dataset: FrameDataset) -> Path:
    """Return where a data set's statistics is kept: a name that any change of its files or label space changes.

    Raise `OSError` when there is no home folder to keep it in.
    """
    digest = hashlib.sha256(repr((_FORMAT, dataset.space.to_dict(), dataset.read_labels)).encode())
    if dataset.ego_mask is not None:
        digest.update(repr(dataset.ego_mask.shape).encode() + dataset.ego_mask.tobytes())
    for pair in dataset.pairs:
        digest.update(
            f"{_state(pair.image)}\n{_state(pair.labels)}\n".encode(errors="surrogateescape")
        )
    return cache_folder() / f"statistics-{digest.hexdigest()[:32]}.npz"


def _state(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        stat = os.stat(path)
    except OSError:
        return f"{os.path.abspath(path)}:missing"
    return f"{os.path.abspath(path)}:{stat.st_size}:{stat.st_mtime_ns}"


@dataclass(frozen=True)
class _Seen:
    pixels: NDArray[np.int64]
    unknown: NDArray[np.int64]
    size_hw: tuple[int, ...]


def _look(dataset: FrameDataset, i: int, frames: bool) -> _Seen:
    pair = dataset.pairs[i]
    pixels, unknown = np.zeros(dataset.space.num_classes + 1, np.int64), np.zeros(257, np.int64)
    size: tuple[int, ...] = (0, 0)
    if pair.labels is not None:
        pixels, unknown, size = _count_labels(dataset, pair.labels)
    if frames:
        found = dataset.image(i).shape[:2]
        if pair.labels is not None:
            dataset.check_sizes(i, found, size)
        size = found
    return _Seen(pixels, unknown, size)


def _count_labels(
    dataset: FrameDataset, path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
    """Return a label file's pixels (K + 1,), its unknown ids' (257,) and its size.

    One histogram of ids tells both, several times faster than looking every pixel up.
    """
    reader, table, known = dataset.read_labels, _SAME, np.arange(257)
    if isinstance(reader, TableReader):
        ids = reader.ids(path)
        table, known = np.frombuffer(reader.table, np.uint8), np.array(reader.known)
    else:
        ids = reader(path)
    counts = count_ids(ids, None if dataset.ego_mask is None else ~dataset.ego(ids.shape))
    num_classes = dataset.space.num_classes
    pixels = np.zeros(num_classes + 1, np.int64)
    np.add.at(pixels, np.minimum(table, num_classes), counts[:256])
    # What the car itself hides and ids above 255 are ignored too.
    pixels[-1] = ids.size - pixels[:-1].sum()
    counts[known] = 0
    return pixels, counts, ids.shape
