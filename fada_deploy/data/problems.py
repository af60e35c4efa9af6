"""What is wrong with a labeled data set as a whole, found from its statistics.

A wrong encoding does not make a file unreadable. It makes most pixels ignored, or gives them other
classes, and a network that is trained on it is useless. Such data sets are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import IGNORE
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import ColorReader, TableReader, id_encodings, table_reader
from fada_deploy.data.statistics import DatasetStatistics

# Largest fraction of ignored pixels that is accepted without asking.
ALLOWED_IGNORED = 0.5
# An encoding fits if at most this fraction of the pixels has an id that it does not define.
_FITS = 0.001
# More colors of no class than this in one file are those of a photo or of JPEG compression.
_MANY_COLORS = 64
_MANY_FILES = 0.1
_SHOWN_COLORS = 3


@dataclass(frozen=True)
class Problem:
    """A problem of a data set; a serious one makes it useless for training."""

    text: str
    serious: bool


def find_problems(
    dataset: FrameDataset,
    statistics: DatasetStatistics,
    *,
    allowed_ignored: float = ALLOWED_IGNORED,
) -> list[Problem]:
    """Return the problems of a labeled data set, the serious ones first.

    More than `allowed_ignored` (0…1) ignored pixels are a serious problem.
    """
    problems = [
        *_one_class(dataset, statistics),
        *_ignored(dataset, statistics, allowed_ignored),
        *_unusable(dataset, statistics),
        *_colors(dataset, statistics),
        *_without_labels(dataset),
    ]
    return sorted(problems, key=lambda problem: not problem.serious)


def absent_classes(dataset: FrameDataset, statistics: DatasetStatistics) -> tuple[str, ...]:
    """Return the names of the classes that no usable label file contains."""
    present = set(np.flatnonzero(statistics.contents.any(0)).tolist())
    return tuple(name for k, name in enumerate(dataset.space.names) if k not in present)


def ignored_fraction(statistics: DatasetStatistics) -> float:
    """Return the fraction of ignored pixels in the usable label files, 0 to 1."""
    return float(statistics.pixels[:, -1].sum() / max(1, statistics.pixels.sum()))


def _one_class(dataset: FrameDataset, statistics: DatasetStatistics) -> Iterator[Problem]:
    present = statistics.contents.any(0)
    if present.sum() >= 2 or not statistics.pixels.any():
        return
    names = ", ".join(np.array(dataset.space.names)[present]) or "no class"
    ids = np.flatnonzero(statistics.ids).tolist()
    hint = fitting_encoding(dataset, statistics)
    if ids == [IGNORE]:
        hint = f"every pixel is {IGNORE}, which means ignored"
    elif set(ids) in ({0, 1}, {0, 255}, {0}, {1}):
        found = " and ".join(str(i) for i in ids)
        hint = (
            f"the label files contain only the ids {found}, as masks of one class do; use the "
            "label maps of all classes"
        )
    yield Problem(
        f"the labels show {names} of {dataset.space.name}, and at least two classes are needed"
        + (f"; {hint}" if hint else ""),
        serious=True,
    )


def _ignored(
    dataset: FrameDataset, statistics: DatasetStatistics, allowed: float
) -> Iterator[Problem]:
    fraction = ignored_fraction(statistics)
    if fraction <= allowed:
        return
    hint = fitting_encoding(dataset, statistics)
    yield Problem(
        f"{100 * fraction:.0f} % of the label pixels are ignored, and at most "
        f"{100 * allowed:.0f} % are allowed (--allow-ignored){f'; {hint}' if hint else ''}",
        serious=True,
    )


def _unusable(dataset: FrameDataset, statistics: DatasetStatistics) -> Iterator[Problem]:
    labeled = sum(pair.labels is not None for pair in dataset.pairs)
    errors = statistics.errors
    if not errors or len(errors) < 0.5 * labeled:
        return
    hint = fitting_encoding(dataset, statistics)
    texts = list(errors.values())
    if (
        not hint
        and sum("must be a gray or palette image" in text for text in texts) > len(texts) / 2
    ):
        hint = "the labels look like photos or color images; are images and labels swapped?"
    yield Problem(
        f"{len(errors)} of {len(dataset)} files cannot be used{f'; {hint}' if hint else ''}",
        serious=len(errors) == labeled,
    )


def _without_labels(dataset: FrameDataset) -> Iterator[Problem]:
    missing = [pair.image for pair in dataset.pairs if pair.labels is None]
    if dataset.labeled and missing:
        yield Problem(
            f"{len(missing)} of {len(dataset)} frames have no labels, for example {missing[0]}; "
            "a source must not contain such frames, and an evaluation reports them as failed",
            serious=False,
        )


def _colors(dataset: FrameDataset, statistics: DatasetStatistics) -> Iterator[Problem]:
    if not isinstance(dataset.read_labels, ColorReader) or not statistics.unknown_colors:
        return
    many = statistics.color_counts > _MANY_COLORS
    if many.mean() > _MANY_FILES:
        yield Problem(
            f"{int(many.sum())} label files have more than {_MANY_COLORS} colors of no class, as "
            "after JPEG compression or a resize with interpolation; use the original PNG files "
            "(labels resized by nearest neighbor)",
            serious=True,
        )
        return
    total = max(1, int(statistics.pixels.sum()))
    shown = list(statistics.unknown_colors.items())[:_SHOWN_COLORS]
    colors = ", ".join(
        f"[{code >> 16}, {code >> 8 & 255}, {code & 255}] ({100 * count / total:.1f} %)"
        for code, count in shown
    )
    yield Problem(
        f"colors that belong to no class are ignored; the most common are {colors}", serious=False
    )


def fitting_encoding(dataset: FrameDataset, statistics: DatasetStatistics) -> str:
    """Return a hint at the encoding of the ids that fits better than the one in use, or ""."""
    reader = dataset.read_labels
    if not isinstance(reader, TableReader) or not statistics.ids.any():
        return ""
    current = _ignored_by(statistics.ids, reader)
    fits = {
        name: _ignored_by(statistics.ids, table_reader(ids, dataset.space, known=known))
        for name, (ids, known) in id_encodings(dataset.space).items()
    }
    name = min(fits, key=lambda name: fits[name])  # of several equal ones, the commonest encoding
    if not current or (best := fits[name]) > 0.6 * current:
        return ""
    use = f'encoding = "{name}"'
    if dataset.name in ("gta5", "synthia", "cityscapes") or dataset.name.startswith("crosscity"):
        use += " in a .toml file that describes the data set"
    return f"the ids are those of {name}, which ignores {100 * best:.0f} %: use {use}"


def _ignored_by(ids: NDArray[np.int64], reader: TableReader) -> float:
    """Return the fraction of pixels that a reader ignores; 1 if it does not define their ids."""
    total = max(1, int(ids.sum()))
    if ids.sum() - ids[list(reader.known)].sum() > _FITS * total:
        return 1.0
    ignored = np.frombuffer(reader.table, np.uint8) == IGNORE
    return float((ids[:256][ignored].sum() + ids[256]) / total)
