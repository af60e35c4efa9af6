"""Your own data set, described by a small TOML file.

[labels]
encoding = "trainId"        # or "labelId", "index", "mapping", "palette"
# values = { 1 = "building", 7 = "road" }                   for "mapping"
# colors = { road = [128, 64, 128], car = [0, 0, 142] }     for "palette"
ego_mask = "bonnet.png"     # optional: non-black on the car itself

[splits.train]
images = "images/*.jpg"     # globs, relative to this file
labels = "labels/{stem}.png"  # optional; {stem} is the frame's name without suffix
list = "train.txt"          # optional: the stems to keep, one a line
"""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, IGNORE, LabelSpace
from fada_deploy.data.base import FrameDataset, LabelReader, Pair, read_mask
from fada_deploy.data.label_files import ALL_LABEL_IDS, ColorReader, table_reader

_LABEL_KEYS = frozenset({"encoding", "values", "colors", "ego_mask"})
ENCODINGS = ("trainId", "labelId", "index", "mapping", "palette")
LAYOUT = "a .toml file with [labels] encoding and [splits.NAME] images, labels (docs/guide.md)"
PUBLISHED = "Write it for your own data."


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open a split of the data set that the TOML file `root` describes."""
    if root.is_dir():
        raise DataError(f"{root}: is a folder; a custom data set is {LAYOUT}")
    try:
        spec = tomllib.loads(_read_text(root))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{root}: not valid TOML: {error}") from None
    splits, labels = spec.get("splits", {}), spec.get("labels", {})
    tables = [splits, labels, *splits.values()] if isinstance(splits, dict) else [splits]
    if not all(isinstance(table, dict) for table in tables):
        raise DataError(
            f"{root}: `splits` and `labels` must be tables; a custom data set is {LAYOUT}"
        )
    unknown = [
        *(set(spec) - {"labels", "splits"}),
        *(f"labels.{k}" for k in set(labels) - _LABEL_KEYS),
    ]
    if unknown:
        raise DataError(
            f"{root}: unknown key {', '.join(sorted(unknown))}; there are [splits.NAME] and [labels] with "
            f"{', '.join(sorted(_LABEL_KEYS))}"
        )
    if split not in splits:
        raise UsageError(f"{root} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    where = f"{root} [splits.{split}]"
    pairs, left_out = _pairs(root.parent, splits[split], where)
    mask = labels.get("ego_mask")
    if mask is not None and not isinstance(mask, str):
        raise DataError(f"{root}: ego_mask must be the name of a picture; found {mask!r}")
    return FrameDataset(
        root.stem, split, space, pairs, _reader(labels, space, str(root)),
        None if mask is None else read_mask(root.parent / mask), left_out,
    )  # fmt: skip


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None


def _pairs(folder: Path, spec: Mapping[str, Any], where: str) -> tuple[list[Pair], dict[Path, str]]:
    """Return the pairs, and why each frame that the list names is in none."""
    unknown = set(spec) - {"images", "labels", "list"}
    if "images" not in spec or unknown or not all(isinstance(v, str) for v in spec.values()):
        found = ", ".join(f"{k} = {v!r}" for k, v in spec.items()) or "none"
        raise DataError(
            f"{where}: needs `images`, may have `labels` and `list`, all texts; found {found}"
        )
    # glob.glob, unlike Path.glob, takes absolute patterns too.
    images = sorted(
        Path(found) for found in glob.glob(str(folder / spec["images"]), recursive=True)
    )
    images = [image for image in images if image.is_file()]
    if not images:
        raise DataError(
            f"{where}: no file matches images = {spec['images']!r} under {folder.resolve()}"
        )
    left_out: dict[Path, str] = {}
    if "list" in spec:
        # A list holds stems, names or paths.
        keep = {line.strip() for line in _read_text(folder / spec["list"]).splitlines()} - {""}
        named = {Path(line).name for line in keep}
        known = {n for i in images for n in (i.name, i.stem)}
        left_out = {
            Path(name): f"named in {spec['list']}, not there" for name in sorted(named - known)
        }
        images = [i for i in images if i.name in named or i.stem in named]
        if not images:
            raise DataError(
                f"{where}: none of the {len(keep)} lines of {spec['list']} names a frame of `images`"
            )
    if "labels" not in spec:
        return [Pair(i, None, i.parent.name) for i in images], left_out
    if "{stem}" not in spec["labels"]:
        raise DataError(f'{where}: `labels` must hold {{stem}}, for example "labels/{{stem}}.png"')
    pairs = [
        Pair(i, folder / spec["labels"].replace("{stem}", i.stem), i.parent.name) for i in images
    ]
    missing = [p.labels for p in pairs if p.labels is not None and not p.labels.is_file()]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(pairs)} frames lack labels, the first {missing[0]}"
        )
    return pairs, left_out


def _reader(spec: Mapping[str, Any], space: LabelSpace, where: str) -> LabelReader:
    encoding = spec.get("encoding", "trainId")
    everything = CITYSCAPES_19.classes + space.classes
    if encoding == "trainId":
        return table_reader(
            {c.train_id: c.name for c in everything}, space, known={IGNORE}, strict=True
        )
    if encoding == "labelId":
        # Cityscapes' labelIds that are no class of the space are ignored.
        return table_reader(
            {c.label_id: c.name for c in everything}, space, known=ALL_LABEL_IDS, strict=True
        )
    if encoding == "index":
        return table_reader(dict(enumerate(space.names)), space, known={IGNORE}, strict=True)
    if encoding == "mapping":
        values = {_number(k, where): str(v) for k, v in _table(spec, "values", where).items()}
        _check_names(values.values(), space, f"{where}: `values`")
        return table_reader(values, space, known={IGNORE})
    if encoding == "palette":
        colors = _table(spec, "colors", where)
        _check_names(colors, space, f"{where}: `colors`")
        return _palette_reader(colors, space, where)
    raise DataError(
        f"{where}: unknown label encoding {encoding!r}; there are {', '.join(ENCODINGS)}"
    )


def _table(spec: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = spec.get(key, {})
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: `{key}` must be a table; found {table!r}")
    return table


def _number(text: str, where: str) -> int:
    if not text.isdigit() or int(text) > 255:
        raise DataError(f"{where}: `values` has {text!r}; ids are whole numbers 0 to 255")
    return int(text)


def _check_names(names: Any, space: LabelSpace, where: str) -> None:
    known = {c.name for c in CITYSCAPES_19.classes} | set(space.names)
    if not names:
        raise DataError(f"{where} is missing; it names the classes of the files' values")
    unknown = sorted(set(names) - known)
    if unknown:
        raise DataError(
            f"{where}: unknown class {', '.join(unknown)}; {space.name} has {', '.join(space.names)}"
        )


def _palette_reader(colors: Mapping[str, Any], space: LabelSpace, where: str) -> LabelReader:
    known = {name: i for i, name in enumerate(space.names)}
    codes: dict[int, int] = {}
    for name, color in colors.items():
        if (
            not isinstance(color, list)
            or len(color) != 3
            or not all(isinstance(v, int) and 0 <= v <= 255 for v in color)
        ):
            raise DataError(
                f"{where}: color of {name} is {color!r}; it must be [R, G, B], each 0 to 255"
            )
        codes[color[0] << 16 | color[1] << 8 | color[2]] = known.get(name, IGNORE)
    return ColorReader(tuple(sorted(codes)), bytes(codes[code] for code in sorted(codes)))
