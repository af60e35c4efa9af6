"""What a run will train on: the classes in each source file, and the problems of the sources."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, one_line
from fada_deploy.common.tables import format_table
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.problems import absent_classes, find_problems, ignored_fraction
from fada_deploy.data.statistics import (
    DatasetStatistics,
    compute_statistics,
    load_statistics,
    save_statistics,
)

logger = logging.getLogger(__name__)

# File of a run with the rows of its table.
SOURCES = "sources.json"
# File of a run with the pixels of each class in each source file.
SOURCE_CLASSES = "source_classes.npz"
TABLE_HEAD = ("source", "frames", "unusable", "skipped", "ignored %", "classes", "absent classes")


@dataclass(frozen=True)
class SourceRow:
    """One source in the table that is logged before the training and shown in the report."""

    name: str
    frames: int
    unusable: int
    skipped: int
    ignored: float
    absent: Sequence[str]


def source_statistics(dataset: FrameDataset) -> DatasetStatistics:
    """Return the statistics of a data set, from the cache if they are there."""
    statistics = load_statistics(dataset)
    if statistics is None:
        statistics = compute_statistics(dataset, frames=False)
        save_statistics(dataset, statistics)
    return statistics


def check_sources(
    datasets: Sequence[FrameDataset], *, allowed_ignored: float
) -> tuple[NDArray[np.int64], dict[str, None], list[SourceRow]]:
    """Return the pixels of each class in each file (N, K), the errors of files, and a table.

    An unusable file contains no class, so that class-balanced sampling never draws it. Raise
    `DataError` for a source that is useless, for example because its encoding is wrong; other
    problems are logged.
    """
    parts, rows = [], []
    errors: dict[str, None] = {}
    for dataset in datasets:
        statistics = source_statistics(dataset)
        absent = absent_classes(dataset, statistics)
        _report_problems(dataset, statistics, allowed_ignored)
        parts.append(statistics.pixels[:, :-1])
        errors |= dict.fromkeys(statistics.errors.values())
        rows.append(
            SourceRow(
                dataset.name, len(dataset), len(statistics.errors), len(dataset.skipped_files),
                ignored_fraction(statistics), absent,
            )
        )  # fmt: skip
    logger.info("%s", source_table(rows, datasets[0].space.num_classes))
    nowhere = [n for n in datasets[0].space.names if all(n in row.absent for row in rows)]
    if nowhere:
        logger.warning("no source frame shows the classes %s", ", ".join(nowhere))
    return np.concatenate(parts), errors, rows


def read_class_pixels(path: Path) -> NDArray[np.int64]:
    """Return the pixels of each class in each source file, (N, K), from a run's file.

    Raise `DataError` if the file is damaged.
    """
    try:
        with np.load(path) as arrays:
            return np.asarray(arrays["pixels"], np.int64)
    # A damaged archive raises errors of zipfile, zlib and NumPy, which share no base class.
    except Exception as error:
        raise DataError(
            f"{path}: damaged ({one_line(error)}); delete it to count the classes again"
        ) from None


def check_validation(dataset: FrameDataset) -> None:
    """Warn about the labels with which a run is scored, if they are useless."""
    for problem in find_problems(dataset, source_statistics(dataset)):
        if problem.serious:
            logger.warning("%s %s: %s", dataset.name, dataset.split, problem.text)


def source_table(rows: Sequence[SourceRow], num_classes: int) -> str:
    """Return the table of the sources as text."""
    return format_table(TABLE_HEAD, table_lines(rows, num_classes), align="lrrrrrl")


def table_lines(rows: Sequence[SourceRow], num_classes: int) -> list[tuple[str, ...]]:
    """Return the cells of the table of the sources."""
    return [
        (
            row.name, f"{row.frames}", f"{row.unusable}", f"{row.skipped}",
            f"{100 * row.ignored:.1f}", f"{num_classes - len(row.absent)} of {num_classes}",
            _names(row.absent),
        )
        for row in rows
    ]  # fmt: skip


def _names(names: Sequence[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


def _report_problems(
    dataset: FrameDataset, statistics: DatasetStatistics, allowed_ignored: float
) -> None:
    for problem in find_problems(dataset, statistics, allowed_ignored=allowed_ignored):
        if problem.serious:
            first = next(iter(statistics.errors.values()), "")
            raise DataError(
                f"source {dataset.name}: {problem.text}"
                f"{f', the first error: {first}' if first else ''}"
            )
        logger.warning("source %s: %s", dataset.name, problem.text)
