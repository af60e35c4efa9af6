"""A custom data set, described by a TOML file.

[labels]
encoding = "trainId"        # or "labelId", "index", "mapping", "palette"
# values = { 1 = "building", 7 = "road" }                   for "mapping"
# colors = { road = [128, 64, 128], car = [0, 0, 142] }     for "palette"
ego_mask = "hood.png"       # optional: an image that is not black on the car itself
# channel = "red"           # optional: the ids are in the red channel of a color image

[splits.train]
images = "images/*.jpg"     # glob, relative to this file
labels = "labels/{stem}.png"  # optional; see `pairing.find_pairs` for {stem}, {folder} and {path}
list = "train.txt"          # optional: a file with the frames to use, one per line
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fada_deploy.common.documents import read_toml
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_indices, read_red_channel
from fada_deploy.common.label_space import CITYSCAPES_19, IGNORE, LabelSpace
from fada_deploy.data.base import FrameDataset, LabelReader, read_mask
from fada_deploy.data.label_files import ColorReader, id_encodings, table_reader
from fada_deploy.data.pairing import find_pairs

LAYOUT = "a .toml file with [labels] encoding and [splits.NAME] images, labels"
_REMEDY = "see docs/how-to/own-data.md for the format"
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class LabelsTable(msgspec.Struct, frozen=True):
    """How label files are encoded."""

    encoding: Literal["trainId", "labelId", "index", "mapping", "palette"] = "trainId"
    values: dict[_Byte, str] = {}
    colors: dict[str, tuple[_Byte, _Byte, _Byte]] = {}
    ego_mask: str | None = None
    channel: Literal["red"] | None = None


class SplitTable(msgspec.Struct, frozen=True):
    """Which files belong to a split."""

    images: str
    labels: str | None = None
    list: str | None = None


class DatasetDocument(msgspec.Struct, frozen=True):
    """The TOML file of a custom data set."""

    splits: dict[str, SplitTable]
    labels: LabelsTable = LabelsTable()


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open a split of the data set that the TOML file `root` describes."""
    if root.is_dir():
        raise DataError(f"{root}: is a folder; a custom data set is {LAYOUT}")
    document = read_toml(root, DatasetDocument, remedy=_REMEDY, error=DataError)
    if split not in document.splits:
        raise UsageError(
            f"{root} has no split {split!r}; use one of {', '.join(document.splits) or '(none)'}"
        )
    table = document.splits[split]
    pairs, skipped = find_pairs(
        root.parent, table.images, table.labels, table.list, f"{root} [splits.{split}]"
    )
    mask = document.labels.ego_mask
    return FrameDataset(
        root.stem, split, space, pairs, _label_reader(document.labels, space, str(root)),
        None if mask is None else read_mask(root.parent / mask), skipped,
    )  # fmt: skip


def _label_reader(labels: LabelsTable, space: LabelSpace, where: str) -> LabelReader:
    for key, needed in (("values", "mapping"), ("colors", "palette")):
        if getattr(labels, key) and labels.encoding != needed:
            raise DataError(
                f"{where}: labels.{key} is for the encoding {needed}, found the encoding "
                f'{labels.encoding}; set encoding = "{needed}", or remove {key}'
            )
    if labels.channel is not None and labels.encoding == "palette":
        raise DataError(f"{where}: labels.channel needs ids; the encoding palette reads colors")
    read_ids = read_indices if labels.channel is None else read_red_channel
    if (encoding := id_encodings(space).get(labels.encoding)) is not None:
        ids, known = encoding
        return table_reader(ids, space, known=known, strict=True, read_ids=read_ids)
    if labels.encoding == "mapping":
        _check_names(labels.values.values(), space, f"{where}: labels.values")
        return table_reader(labels.values, space, known={IGNORE}, read_ids=read_ids)
    _check_names(labels.colors, space, f"{where}: labels.colors")
    return _color_reader(labels.colors, space, f"{where}: labels.colors")


def _check_names(names: Collection[str], space: LabelSpace, where: str) -> None:
    if not names:
        raise DataError(f"{where}: is missing; it maps the values of the label files to classes")
    known = {c.name for c in CITYSCAPES_19.classes} | space.indices_by_name.keys()
    unknown = sorted(set(names) - known)
    if unknown:
        raise DataError(
            f"{where}: unknown class {', '.join(unknown)}; the classes of {space.name} are "
            f"{', '.join(space.names)}"
        )


def _color_reader(
    colors: Mapping[str, tuple[int, int, int]], space: LabelSpace, where: str
) -> LabelReader:
    indices = space.indices_by_name
    classes: dict[tuple[int, int, int], set[int | None]] = {}
    for name, color in colors.items():
        classes.setdefault(color, set()).add(indices.get(name))
    for color in (color for color, found in classes.items() if len(found) > 1):
        names = ", ".join(name for name, each in colors.items() if each == color)
        raise DataError(f"{where}: {names} have the same color; each class needs its own")
    codes = {r << 16 | g << 8 | b: indices.get(name, IGNORE) for name, (r, g, b) in colors.items()}
    return ColorReader(tuple(sorted(codes)), bytes(codes[code] for code in sorted(codes)))
