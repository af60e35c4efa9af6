"""Statistics of a data set: classes and sizes of its files, and the files that cannot be used.

They are computed once, by `fada data check` or before training, and stored in the user's cache
until a file changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.mapping import LostItemError, map_on_cluster
from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path, cache_folder
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.read_ahead import read_ahead
from fada_deploy.common.system import usable_cores
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import ColorReader, TableReader, count_ids

logger = logging.getLogger(__name__)

_FORMAT = 2
# Colors of no class that are kept, the commonest first.
_MAX_COLORS = 20
_IDENTITY = np.arange(256).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Statistics of a data set of N frames and K classes.

    `pixels` (N, K + 1) int64 counts the pixels of each class in each label file, and in the last
    column the ignored pixels; a row is 0 if the file cannot be used or has no labels. `sizes`
    (N, 2) int64 is height and width, 0 if unknown. `unknown_ids` counts the pixels of ids that the
    format does not define; 256 stands for all ids above 255. `errors` maps the number of each
    unusable frame to the reason.

    `ids` (257,) int64 counts the pixels of each id in all label files, also in unusable ones; it is
    0 for color labels. `unknown_colors` counts the pixels of the commonest 24-bit RGB colors that
    no class has, and `color_counts` (N,) int64 is the number of such colors in each file.

    `is_complete` is False if a file was not read because the workers of a cluster were lost.
    """

    pixels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    unknown_ids: dict[int, int]
    errors: dict[int, str]
    ids: NDArray[np.int64]
    unknown_colors: dict[int, int]
    color_counts: NDArray[np.int64]
    is_complete: bool = True

    @property
    def contents(self) -> NDArray[np.bool_]:
        """Whether a file contains a class, (N, K) bool; an unusable file contains none."""
        return np.asarray(self.pixels[:, :-1] > 0)

    @property
    def without_class(self) -> list[int]:
        """Numbers of the label files in which every pixel is ignored."""
        return np.flatnonzero(~self.contents.any(1) & (self.pixels[:, -1] > 0)).tolist()

    @property
    def single_class(self) -> dict[int, int]:
        """Number → class of the label files that contain only one class."""
        numbers = np.flatnonzero(self.contents.sum(1) == 1).tolist()
        return {number: int(self.contents[number].argmax()) for number in numbers}


def compute_statistics(
    dataset: FrameDataset,
    *,
    frames: bool,
    jobs: int | None = None,
    cluster: ClusterOptions | None = None,
) -> DatasetStatistics:
    """Read all label files of a data set, and all frames if `frames`.

    `jobs` threads of this process read them, or the workers of a Ray `cluster`, which find them
    under the same paths. Files that cannot be used are reported in `errors` and do not raise.
    """
    pixels = np.zeros((len(dataset), dataset.space.num_classes + 1), np.int64)
    sizes = np.zeros((len(dataset), 2), np.int64)
    unknown = np.zeros(257, np.int64)
    ids = np.zeros(257, np.int64)
    colors: Counter[int] = Counter()
    color_counts = np.zeros(len(dataset), np.int64)
    errors: dict[int, str] = {}
    is_complete = True

    threads = jobs or usable_cores()
    make = partial(_file_counter, dataset, frames)
    if cluster is None:
        counts = read_ahead(make(), len(dataset), threads=threads, depth=4 * threads)
    else:
        counts = map_on_cluster(
            make, len(dataset), cluster, name=lambda i: str(dataset.pairs[i].image)
        )
    with (
        closing(counts) as results,
        progress_bar(len(dataset), "reading files", unit="file") as bar,
    ):
        for i, result in enumerate(results):
            if isinstance(result, DataError):
                errors[i] = str(result)
                is_complete &= not isinstance(result, LostItemError)
                bar.update()
                continue
            ids += result.ids
            if result.error:
                errors[i] = result.error
            else:
                pixels[i], sizes[i] = result.pixels, result.size_hw
                unknown += result.unknown
                colors.update(result.colors)
                color_counts[i] = len(result.colors)
            bar.update()
    unknown_ids = {i: int(unknown[i]) for i in np.flatnonzero(unknown).tolist()}
    common_colors = dict(colors.most_common(_MAX_COLORS))
    return DatasetStatistics(
        pixels, sizes, unknown_ids, errors, ids, common_colors, color_counts, is_complete
    )


def load_statistics(dataset: FrameDataset) -> DatasetStatistics | None:
    """Return the stored statistics of exactly these files and this label space, or None."""
    try:
        with statistics_path(dataset).open("rb") as handle, np.load(handle) as arrays:
            about = json.loads(str(arrays["about"]))
            return DatasetStatistics(
                arrays["pixels"],
                arrays["sizes"],
                {int(i): count for i, count in about["unknown_ids"].items()},
                {int(i): error for i, error in about["errors"].items()},
                arrays["ids"],
                {int(i): count for i, count in about["unknown_colors"].items()},
                arrays["color_counts"],
            )
    except Exception:
        # Missing or damaged (errors of zipfile, zlib and NumPy share no base class): the caller
        # computes them again.
        return None


def save_statistics(dataset: FrameDataset, statistics: DatasetStatistics) -> Path | None:
    """Store statistics in the cache and return the path.

    Incomplete statistics are not stored. If the cache cannot be written, log a warning. Return None
    in both cases.
    """
    if not statistics.is_complete:
        return None
    about = {
        "unknown_ids": statistics.unknown_ids,
        "errors": statistics.errors,
        "unknown_colors": statistics.unknown_colors,
    }
    try:
        path = statistics_path(dataset)
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                pixels=statistics.pixels,
                sizes=statistics.sizes,
                ids=statistics.ids,
                color_counts=statistics.color_counts,
                about=np.array(json.dumps(about)),
            )
    except OSError as error:
        logger.warning(
            "cannot store the class statistics (%s), so they are computed again each time; set "
            "XDG_CACHE_HOME to a writable folder",
            error,
        )
        return None
    return path


def statistics_path(dataset: FrameDataset) -> Path:
    """Return where the statistics of a data set are stored.

    The name is a hash of the files' sizes and modification times, the label space and the encoding.
    Raise `OSError` if the user has no home folder.
    """
    digest = hashlib.sha256(repr((_FORMAT, dataset.space.to_dict(), dataset.read_labels)).encode())
    if dataset.ego_mask is not None:
        digest.update(repr(dataset.ego_mask.shape).encode() + dataset.ego_mask.tobytes())
    for pair in dataset.pairs:
        state = f"{_file_state(pair.image)}\n{_file_state(pair.labels)}\n"
        digest.update(state.encode(errors="surrogateescape"))
    return cache_folder() / f"statistics-{digest.hexdigest()[:32]}.npz"


def _file_state(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        stat = os.stat(path)
    except OSError:
        return f"{os.path.abspath(path)}:missing"
    # With the time of the last change of permissions: the statistics also name unreadable files.
    return f"{os.path.abspath(path)}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


@dataclass(frozen=True, eq=False)
class _FileCounts:
    """Counts of one label file: pixels (K + 1,), ids and unknown ids (257,), and the size.

    `colors` counts the pixels of colors that no class has. `error` says why the file is unusable.
    """

    pixels: NDArray[np.int64]
    unknown: NDArray[np.int64]
    size_hw: tuple[int, ...]
    ids: NDArray[np.int64]
    colors: dict[int, int] = field(default_factory=dict)
    error: str = ""


def _file_counter(dataset: FrameDataset, frames: bool) -> Callable[[int], _FileCounts]:
    return lambda i: _count_file(dataset, i, frames)


def _count_file(dataset: FrameDataset, i: int, frames: bool) -> _FileCounts:
    pair, none = dataset.pairs[i], np.zeros(257, np.int64)
    if pair.labels is None:
        pixels = np.zeros(dataset.space.num_classes + 1, np.int64)
        counts = _FileCounts(pixels, none, (0, 0), none)
    else:
        counts = _count_labels(dataset, pair.labels)
    if not frames or counts.error:
        return counts
    try:
        frame_hw = dataset.image(i).shape[:2]
        if pair.labels is not None:
            dataset.check_sizes(i, frame_hw, counts.size_hw)
    except DataError as error:
        return replace(counts, error=str(error))
    return replace(counts, size_hw=frame_hw)


def _count_labels(dataset: FrameDataset, path: Path) -> _FileCounts:
    """Count the classes and ids of a label file.

    Both come from one histogram of the ids, several times faster than looking up every pixel.
    """
    reader, table, known = dataset.read_labels, _IDENTITY, np.arange(257)
    error, colors, is_ids = "", {}, isinstance(reader, TableReader)
    if isinstance(reader, TableReader):
        ids = reader.read_ids(path)
        table, known = np.frombuffer(reader.table, np.uint8), np.array(reader.known)
        try:
            reader.check(path, count_ids(ids))
        except DataError as problem:
            error = str(problem)
    elif isinstance(reader, ColorReader):
        ids, strange = reader.decode(path)
        values, counts = np.unique(strange, return_counts=True)
        colors = dict(zip(values.tolist(), counts.tolist(), strict=True))
    else:
        ids = reader(path)
    mask = None if dataset.ego_mask is None else ~dataset.ego_mask_at(ids.shape)
    counts = count_ids(ids, mask)
    num_classes = dataset.space.num_classes
    pixels = np.zeros(num_classes + 1, np.int64)
    np.add.at(pixels, np.minimum(table, num_classes), counts[:256])
    # Pixels of the ego mask and ids above 255 are ignored too.
    pixels[-1] = ids.size - pixels[:-1].sum()
    unknown = counts.copy()
    unknown[known] = 0
    all_ids = counts if is_ids else np.zeros_like(counts)
    return _FileCounts(pixels, unknown, ids.shape, all_ids, colors, error)
