"""A custom data set, described by a TOML file.

[labels]
encoding = "trainId"        # or "labelId", "index", "mapping", "palette"
# values = { 1 = "building", 7 = "road" }                   for "mapping"
# colors = { road = [128, 64, 128], car = [0, 0, 142] }     for "palette"
ego_mask = "hood.png"       # optional: an image that is not black on the car itself

[splits.train]
images = "images/*.jpg"     # glob, relative to this file
labels = "labels/{stem}.png"  # optional; {stem} is the name of the frame without its suffix
list = "train.txt"          # optional: a file with the stems to use, one per line
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fada_deploy.common.documents import read_toml
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, IGNORE, LabelSpace
from fada_deploy.data.base import FrameDataset, LabelReader, Pair, read_mask
from fada_deploy.data.label_files import ALL_LABEL_IDS, ColorReader, table_reader

LAYOUT = "a .toml file with [labels] encoding and [splits.NAME] images, labels"
_REMEDY = "see docs/how-to/own-data.md for the format"
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class LabelsTable(msgspec.Struct, frozen=True):
    """How label files are encoded."""

    encoding: Literal["trainId", "labelId", "index", "mapping", "palette"] = "trainId"
    values: dict[_Byte, str] = {}
    colors: dict[str, tuple[_Byte, _Byte, _Byte]] = {}
    ego_mask: str | None = None


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
    pairs, skipped = _pairs(root.parent, document.splits[split], f"{root} [splits.{split}]")
    mask = document.labels.ego_mask
    return FrameDataset(
        root.stem, split, space, pairs, _label_reader(document.labels, space, str(root)),
        None if mask is None else read_mask(root.parent / mask), skipped,
    )  # fmt: skip


def _pairs(folder: Path, split: SplitTable, where: str) -> tuple[list[Pair], dict[Path, str]]:
    """Return the pairs, and the listed frames that do not exist with the reason."""
    # glob.glob also accepts absolute patterns, Path.glob does not.
    paths = glob.glob(str(folder / split.images), recursive=True)
    images = [image for image in sorted(map(Path, paths)) if image.is_file()]
    if not images:
        raise DataError(f"{where}: no file matches images = {split.images!r} in {folder.resolve()}")
    skipped: dict[Path, str] = {}
    if split.list is not None:
        images, skipped = _listed(images, folder / split.list, split.list, where)
    if split.labels is None:
        return [Pair(image, None, image.parent.name) for image in images], skipped
    if "{stem}" not in split.labels:
        raise DataError(
            f'{where}: labels must contain {{stem}}, for example "labels/{{stem}}.png", got '
            f"{split.labels!r}"
        )
    pairs = [
        Pair(image, folder / split.labels.replace("{stem}", image.stem), image.parent.name)
        for image in images
    ]
    missing = [p.labels for p in pairs if p.labels is not None and not p.labels.is_file()]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(pairs)} frames have no label file, the first missing "
            f"file is {missing[0]}"
        )
    return pairs, skipped


def _listed(
    images: list[Path], path: Path, name: str, where: str
) -> tuple[list[Path], dict[Path, str]]:
    """Return the images named in a list of stems, file names or paths, and the missing names."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from None
    names = {Path(line.strip()).name for line in text.splitlines() if line.strip()}
    known = {known for image in images for known in (image.name, image.stem)}
    skipped = {Path(missing): f"named in {name}, not found" for missing in sorted(names - known)}
    listed = [image for image in images if image.name in names or image.stem in names]
    if not listed:
        raise DataError(f"{where}: none of the {len(names)} lines of {name} names one of `images`")
    return listed, skipped


def _label_reader(labels: LabelsTable, space: LabelSpace, where: str) -> LabelReader:
    classes = CITYSCAPES_19.classes + space.classes
    if labels.encoding == "trainId":
        ids = {c.train_id: c.name for c in classes}
        return table_reader(ids, space, known={IGNORE}, strict=True)
    if labels.encoding == "labelId":
        # All Cityscapes labelIds are valid; those without a class in the space are ignored.
        ids = {c.label_id: c.name for c in classes}
        return table_reader(ids, space, known=ALL_LABEL_IDS, strict=True)
    if labels.encoding == "index":
        return table_reader(dict(enumerate(space.names)), space, known={IGNORE}, strict=True)
    if labels.encoding == "mapping":
        _check_names(labels.values.values(), space, f"{where}: labels.values")
        return table_reader(labels.values, space, known={IGNORE})
    _check_names(labels.colors, space, f"{where}: labels.colors")
    return _color_reader(labels.colors, space)


def _check_names(names: Collection[str], space: LabelSpace, where: str) -> None:
    if not names:
        raise DataError(f"{where}: is missing; it maps the values of the label files to classes")
    unknown = sorted(set(names) - {c.name for c in CITYSCAPES_19.classes} - set(space.names))
    if unknown:
        raise DataError(
            f"{where}: unknown class {', '.join(unknown)}; the classes of {space.name} are "
            f"{', '.join(space.names)}"
        )


def _color_reader(colors: Mapping[str, tuple[int, int, int]], space: LabelSpace) -> LabelReader:
    indices = {name: i for i, name in enumerate(space.names)}
    codes = {r << 16 | g << 8 | b: indices.get(name, IGNORE) for name, (r, g, b) in colors.items()}
    return ColorReader(tuple(sorted(codes)), bytes(codes[code] for code in sorted(codes)))
