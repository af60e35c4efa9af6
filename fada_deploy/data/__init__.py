"""Readers of driving data sets: frames as RGB, labels as contiguous indices of a label space.

`open_dataset("cityscapes", root, split="val", space=CITYSCAPES_19)` for the labeled sets;
`data.recordings` for a target that is just video or pictures.
"""

from __future__ import annotations

import os
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
    """How a data set is opened, and what to tell someone who does not have it."""

    open: Callable[[Path, str, LabelSpace], FrameDataset]
    layout: str
    published: str
    folder: str | None = None


DATASETS = {
    "gta5": Reader(gta5.open_split, gta5.LAYOUT, gta5.PUBLISHED),
    "synthia": Reader(synthia.open_split, synthia.LAYOUT, synthia.PUBLISHED),
    "cityscapes": Reader(cityscapes.open_split, cityscapes.LAYOUT, cityscapes.PUBLISHED),
    **{
        name: Reader(open_split, crosscity.LAYOUT, crosscity.PUBLISHED, "crosscity")
        for name, open_split in crosscity.READERS.items()
    },
    "custom": Reader(custom.open_split, custom.LAYOUT, custom.PUBLISHED),
}


# What a user may say; `custom` is said by the path of its TOML file.
NAMES = tuple(name for name in DATASETS if name != "custom")


def default_root(name: str) -> Path:
    """Return where a data set lies unless told: `$FADA_DATASETS/<name>`, else `datasets/<name>`.

    The cities of Cross-City lie in one folder, `crosscity`.
    """
    return Path(os.environ.get("FADA_DATASETS") or "datasets") / (DATASETS[name].folder or name)


def open_dataset(name: str, root: Path | None, *, split: str, space: LabelSpace) -> FrameDataset:
    """Open one split of a data set by name.

    `custom` takes the path of its TOML file as `root`; the name may also be that path itself.
    Raise `UsageError` for an unknown name or split, `DataError` when the files are not there.
    """
    if name.endswith(".toml"):
        name, root = "custom", Path(name)
        if not root.exists():
            raise DataError(f"{root}: no such file; a custom data set is {DATASETS[name].layout}")
    if name not in DATASETS:
        recordings = "; recordings are a target, and are sampled and checked by `fada train`"
        raise UsageError(
            f"no data set {name!r}; there are {', '.join(NAMES)}, or the path of a .toml file"
            f"{recordings if Path(name).exists() else ''}"
        )
    if name == "custom" and root is None:
        raise UsageError("a custom data set is named by the path of its .toml file (docs/guide.md)")
    reader = DATASETS[name]
    root = default_root(name) if root is None else root
    if not root.exists():
        raise DataError(
            f"{name}: {root} does not exist. It must look like this: {reader.layout}. {reader.published} "
            "Say where it lies with --root (or --src-root, --tgt-root), or set FADA_DATASETS"
        )
    return reader.open(root, split, space)
