"""Readers of driving data sets: frames as RGB, labels as contiguous indices of a label space.

`open_dataset("cityscapes", root, split="val", space=CITYSCAPES_19)` opens a labeled data set.
`data.recordings` opens unlabeled video or images as a target.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data import cityscapes, crosscity, custom, gta5, synthia
from fada_deploy.data.base import FrameDataset

__all__ = ["DATASETS", "NAMES", "FrameDataset", "default_root", "open_dataset"]


@dataclass(frozen=True)
class Reader:
    """A data set format: the function that opens it, and what messages say about it.

    `layout` describes the files, `download` is the address of the publisher, and `folder` is the
    default folder if it differs from the name.
    """

    open: Callable[[Path, str, LabelSpace], FrameDataset]
    layout: str
    download: str
    folder: str | None = None


DATASETS = {
    "gta5": Reader(gta5.open_split, gta5.LAYOUT, gta5.DOWNLOAD),
    "synthia": Reader(synthia.open_split, synthia.LAYOUT, synthia.DOWNLOAD),
    "cityscapes": Reader(cityscapes.open_split, cityscapes.LAYOUT, cityscapes.DOWNLOAD),
    **{
        name: Reader(open_split, crosscity.LAYOUT, crosscity.DOWNLOAD, "crosscity")
        for name, open_split in crosscity.READERS.items()
    },
    "custom": Reader(custom.open_split, custom.LAYOUT, ""),
}

# How a user names a data set and its folder in most commands.
USAGE = "--data {name} --data-root {root}"
# The names that a user can write; a custom data set is named by the path of its TOML file.
NAMES = tuple(name for name in DATASETS if name != "custom")


def default_root(name: str) -> Path:
    """Return the default folder of a data set: `$FADA_DATASETS/<name>` or `datasets/<name>`.

    All cities of Cross-City share the folder `crosscity`.
    """
    return Path(os.environ.get("FADA_DATASETS") or "datasets") / (DATASETS[name].folder or name)


def open_dataset(
    name: str, root: Path | None, *, split: str, space: LabelSpace, usage: str = USAGE
) -> FrameDataset:
    """Open one split of a data set.

    `name` is one of `NAMES`, or the path of the TOML file of a custom data set. `root` defaults to
    `default_root(name)`. `usage` is how the user names a data set and its folder, for messages.
    Raise `UsageError` for an unknown name or split, `DataError` if the files are missing.
    """
    if name.endswith(".toml"):
        if root is not None:
            raise UsageError(
                f"{name} names its own folders, relative to itself; leave out {usage.split()[-2]}"
            )
        name, root = "custom", Path(name)
        if not root.exists():
            raise DataError(f"{root}: no such file; a custom data set is {DATASETS[name].layout}")
    if name not in DATASETS:
        raise UsageError(_unknown_dataset(name, usage))
    if name == "custom" and root is None:
        raise UsageError(
            "name a custom data set by the path of its .toml file (docs/how-to/own-data.md)"
        )
    root = default_root(name) if root is None else root
    if not root.exists():
        raise DataError(_missing_folder(name, root, usage))
    try:
        return DATASETS[name].open(root, split, space)
    except DataError as error:
        below = root / (DATASETS[name].folder or name)
        if not below.is_dir():
            raise
        try:
            DATASETS[name].open(below, split, space)
        except (DataError, UsageError):
            raise error from None
        raise DataError(
            f"{root} is not the folder of {name}, which is {below}; use "
            f"{usage.format(name=name, root=shlex.quote(str(below)))}"
        ) from None


def _unknown_dataset(name: str, usage: str) -> str:
    """Return the message about a name that is not one of a data set."""
    path = Path(name)
    if path.is_dir():
        example = usage.format(
            name=path.name if path.name in NAMES else "NAME", root=shlex.quote(name)
        )
        option = usage.split()[-2]
        return (
            f"{name} is a folder; name the data set and give the folder with {option}, "
            f"for example: {example}"
        )
    hint = ""
    if path.exists():
        hint = "; recordings can only be the target of `fada train`"
    return (
        f"no data set {name!r}; choose one of {', '.join(NAMES)}, or the path of a .toml file{hint}"
    )


def _missing_folder(name: str, root: Path, usage: str) -> str:
    reader = DATASETS[name]
    trial = ""
    if name in ("gta5", "cityscapes"):
        trial = "; for a trial, `fada data render` renders a data set"
    return (
        f"{name}: folder {root} does not exist; expected {reader.layout}; download it from "
        f"{reader.download}, and set {usage.split()[-2]} or FADA_DATASETS{trial}"
    )
