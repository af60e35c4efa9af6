"""Label spaces: which classes there are, their ids in files, and their colors.

Networks and runtime speak **contiguous indices** 0…K−1 of a label space; trainIds and labelIds
exist only at the borders, where data sets are read and files are written. 255 is "ignore"
everywhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError

IGNORE = 255


@dataclass(frozen=True)
class LabelClass:
    """One class: its name, Cityscapes trainId and labelId, and official RGB color."""

    name: str
    train_id: int
    label_id: int
    color: tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes; a class's index is its position."""

    name: str
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        names = [c.name for c in self.classes]
        if not 2 <= len(names) <= 254:
            raise UsageError(
                f"label space {self.name!r} has {len(names)} classes; 2 to 254 are allowed"
            )
        ids = [
            (c.name, i) for c in self.classes for i in (c.train_id, c.label_id) if not 0 <= i <= 254
        ]
        if ids:
            raise UsageError(
                f"label space {self.name!r}: {ids[0][0]} has id {ids[0][1]}; ids are 0 to 254"
            )
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise UsageError(
                f"label space {self.name!r} names {', '.join(repeated)} more than once"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """Colors by index, (256, 3) uint8 RGB; indices outside the space are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = [c.color for c in self.classes]
        return table

    @cached_property
    def to_train_ids(self) -> NDArray[np.uint8]:
        """Lookup table index → trainId, (256,) uint8; the rest is 255."""
        return self._table((i, c.train_id) for i, c in enumerate(self.classes))

    @cached_property
    def to_label_ids(self) -> NDArray[np.uint8]:
        """Lookup table index → Cityscapes labelId, (256,) uint8; the rest is 0 (unlabeled)."""
        table = np.zeros(256, np.uint8)
        for i, c in enumerate(self.classes):
            table[i] = c.label_id
        return table

    def index_of(self, name: str) -> int:
        """Return the index of a class by name; raise `UsageError` listing the names."""
        try:
            return self.names.index(name)
        except ValueError:
            raise UsageError(
                f"label space {self.name!r} has no class {name!r}; it has {', '.join(self.names)}"
            ) from None

    def from_ids(self, ids: Mapping[int, str]) -> NDArray[np.uint8]:
        """Return the lookup table file value → index for a file format `{value: class name}`.

        Values whose class this space does not have, and all other values, become 255.
        """
        known = {name: i for i, name in enumerate(self.names)}
        return self._table((v, known[name]) for v, name in ids.items() if name in known)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        return {
            "name": self.name,
            "classes": [
                {
                    "name": c.name,
                    "trainId": c.train_id,
                    "labelId": c.label_id,
                    "color": list(c.color),
                }
                for c in self.classes
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpace:
        """Read what `to_dict` wrote (also the layout of a label-space TOML file)."""
        try:
            return cls(str(data["name"]), tuple(_class_from_dict(c) for c in data["classes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"label space is malformed ({error!r}); it needs `name` and `classes` with name, trainId, "
                "labelId and color = [R, G, B], or just the name of a Cityscapes class"
            ) from None

    @staticmethod
    def _table(pairs: Any) -> NDArray[np.uint8]:
        table = np.full(256, IGNORE, np.uint8)
        for key, value in pairs:
            if 0 <= key < 256:
                table[key] = value
        return table


_CITYSCAPES = (
    LabelClass("road", 0, 7, (128, 64, 128)),
    LabelClass("sidewalk", 1, 8, (244, 35, 232)),
    LabelClass("building", 2, 11, (70, 70, 70)),
    LabelClass("wall", 3, 12, (102, 102, 156)),
    LabelClass("fence", 4, 13, (190, 153, 153)),
    LabelClass("pole", 5, 17, (153, 153, 153)),
    LabelClass("traffic light", 6, 19, (250, 170, 30)),
    LabelClass("traffic sign", 7, 20, (220, 220, 0)),
    LabelClass("vegetation", 8, 21, (107, 142, 35)),
    LabelClass("terrain", 9, 22, (152, 251, 152)),
    LabelClass("sky", 10, 23, (70, 130, 180)),
    LabelClass("person", 11, 24, (220, 20, 60)),
    LabelClass("rider", 12, 25, (255, 0, 0)),
    LabelClass("car", 13, 26, (0, 0, 142)),
    LabelClass("truck", 14, 27, (0, 0, 70)),
    LabelClass("bus", 15, 28, (0, 60, 100)),
    LabelClass("train", 16, 31, (0, 80, 100)),
    LabelClass("motorcycle", 17, 32, (0, 0, 230)),
    LabelClass("bicycle", 18, 33, (119, 11, 32)),
)
_BY_NAME = {c.name: c for c in _CITYSCAPES}


def _without(dropped: set[int]) -> tuple[LabelClass, ...]:
    return tuple(c for c in _CITYSCAPES if c.train_id not in dropped)


CITYSCAPES_19 = LabelSpace("cityscapes-19", _CITYSCAPES)
CITYSCAPES_16 = LabelSpace("cityscapes-16", _without({9, 14, 16}))
CITYSCAPES_13 = LabelSpace("cityscapes-13", _without({9, 14, 16, 3, 4, 5}))
LABEL_SPACES = {space.name: space for space in (CITYSCAPES_19, CITYSCAPES_16, CITYSCAPES_13)}


def _class_from_dict(data: Mapping[str, Any] | str) -> LabelClass:
    if isinstance(data, str):
        if data not in _BY_NAME:
            raise UsageError(f"{data!r} is no Cityscapes class; they are {', '.join(_BY_NAME)}")
        return _BY_NAME[data]
    r, g, b = (int(v) for v in data["color"])
    if min(r, g, b) < 0 or max(r, g, b) > 255:
        raise ValueError(f"color {(r, g, b)} outside 0…255")
    return LabelClass(str(data["name"]), int(data["trainId"]), int(data["labelId"]), (r, g, b))


def load_label_space(name_or_path: str) -> LabelSpace:
    """Return a built-in label space by name, or read one from a TOML file.

    The file holds `name` and `classes`; a class is a table (name, trainId, labelId, color) or just
    the name of a Cityscapes class.
    """
    if name_or_path in LABEL_SPACES:
        return LABEL_SPACES[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" and path.is_file():
        try:
            return LabelSpace.from_dict(tomllib.loads(path.read_text("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from None
    raise UsageError(
        f"no label space {name_or_path!r}; there are {', '.join(LABEL_SPACES)}, or a .toml file"
    )
