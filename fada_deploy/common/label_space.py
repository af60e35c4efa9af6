"""Label spaces: the classes of a network, their ids in files and their colors.

Networks and the runtime use **contiguous indices** 0…K−1 of a label space. TrainIds and labelIds
are converted only where data sets are read and files are written. 255 means "ignore" everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.documents import convert, read_toml
from fada_deploy.common.errors import DataError, UsageError

IGNORE = 255
_REMEDY = (
    "each class is the name of a Cityscapes class, or a table of name, trainId, labelId, color"
)

_Id = Annotated[int, msgspec.Meta(ge=0, le=254)]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class LabelClass(
    msgspec.Struct, frozen=True, rename={"train_id": "trainId", "label_id": "labelId"}
):
    """One class of a label space.

    Attributes:
        name: Name of the class, unique within its label space.
        train_id: Cityscapes trainId, 0 to 254; written into masks.
        label_id: Cityscapes labelId, 0 to 254.
        color: Red, green and blue, 0 to 255.
        includes: Names of finer classes of data sets that count as this class.
    """

    name: str
    train_id: _Id
    label_id: _Id
    color: tuple[_Byte, _Byte, _Byte]
    includes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of 2 to 254 classes; the index of a class is its position.

    Attributes:
        name: Name of the label space.
        classes: The classes, in the order of the network's output channels.
    """

    name: str
    classes: Annotated[tuple[LabelClass, ...], msgspec.Meta(min_length=2, max_length=254)]

    def __post_init__(self) -> None:
        names = self.names
        if not 2 <= len(names) <= 254:
            raise UsageError(
                f"label space {self.name!r} must have 2 to 254 classes, got {len(names)}"
            )
        for name in (self.name, *names):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UsageError(f"label space: found {name!r}, expected valid Unicode") from None
        for c in self.classes:
            for number in (c.train_id, c.label_id):
                if not 0 <= number <= 254:
                    raise UsageError(
                        f"label space {self.name!r}: ids must be 0 to 254, got {number} "
                        f"for {c.name!r}"
                    )
        included = [name for c in self.classes for name in c.includes]
        repeated = sorted({n for n in (*names, *included) if (*names, *included).count(n) > 1})
        if repeated:
            raise UsageError(
                f"label space {self.name!r}: class names must differ, got "
                f"{', '.join(repeated)} more than once"
            )
        for kind, numbers in (("trainId", [c.train_id for c in self.classes]),
                              ("labelId", [c.label_id for c in self.classes])):  # fmt: skip
            if shared := sorted({n for n in numbers if numbers.count(n) > 1}):
                of = [c.name for c, n in zip(self.classes, numbers, strict=True) if n == shared[0]]
                raise UsageError(
                    f"label space {self.name!r}: {', '.join(of)} have the same {kind} {shared[0]}; "
                    "give each class its own, or make them one class that includes the others"
                )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """Colors by index, (256, 3) uint8 RGB; indices without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = [c.color for c in self.classes]
        return table

    @cached_property
    def to_train_ids(self) -> NDArray[np.uint8]:
        """Lookup table index → trainId, (256,) uint8; indices without a class map to 255."""
        return _lookup_table((i, c.train_id) for i, c in enumerate(self.classes))

    @cached_property
    def to_label_ids(self) -> NDArray[np.uint8]:
        """Lookup table index → labelId, (256,) uint8; 0 (unlabeled) for indices without a class."""
        table = np.zeros(256, np.uint8)
        for i, c in enumerate(self.classes):
            table[i] = c.label_id
        return table

    @cached_property
    def indices_by_name(self) -> dict[str, int]:
        """The index of each class, and of each finer class that a class includes, by its name."""
        indices = {name: i for i, c in enumerate(self.classes) for name in c.includes}
        return indices | {name: i for i, name in enumerate(self.names)}

    def index_of(self, name: str) -> int:
        """Return the index of a class; raise `UsageError` if there is no such class."""
        try:
            return self.names.index(name)
        except ValueError:
            raise UsageError(
                f"label space {self.name!r} has no class {name!r}; its classes are "
                f"{', '.join(self.names)}"
            ) from None

    def from_ids(self, ids: Mapping[int, str]) -> NDArray[np.uint8]:
        """Return the lookup table id → index, (256,) uint8, for files with ids `{id: class name}`.

        A class of the file that this space does not have maps to the class that includes it. Ids of
        other classes, and all other ids, map to 255.
        """
        indices = self.indices_by_name
        return _lookup_table((i, indices[name]) for i, name in ids.items() if name in indices)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document; `from_dict` reads it back."""
        return {"name": self.name, "classes": [_class_to_dict(c) for c in self.classes]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "label space") -> LabelSpace:
        """Read a document of `to_dict`, or a parsed label-space file; raise `UsageError`."""
        return convert(
            data, LabelSpaceDocument, where=where, remedy=_REMEDY, error=UsageError
        ).to_label_space()


class LabelSpaceDocument(msgspec.Struct, frozen=True):
    """A label-space file: `classes` may also name Cityscapes classes."""

    name: str
    classes: Annotated[tuple[LabelClass | str, ...], msgspec.Meta(min_length=2, max_length=254)]

    def __post_init__(self) -> None:
        self.to_label_space()

    def to_label_space(self) -> LabelSpace:
        """Return the label space; raise `UsageError` for an unknown Cityscapes class."""
        return LabelSpace(
            self.name,
            tuple(_cityscapes_class(c) if isinstance(c, str) else c for c in self.classes),
        )


def _class_to_dict(c: LabelClass) -> dict[str, Any]:
    document = {
        "name": c.name, "trainId": c.train_id, "labelId": c.label_id, "color": list(c.color),
    }  # fmt: skip
    return document | ({"includes": list(c.includes)} if c.includes else {})


def _lookup_table(pairs: Iterable[tuple[int, int]]) -> NDArray[np.uint8]:
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


def _including(name: str, *finer: str) -> LabelClass:
    return msgspec.structs.replace(_BY_NAME[name], includes=finer)


# The classes of the built-in model: those that rendered scenes show well, finer ones merged.
DRIVING_11 = LabelSpace(
    "driving-11",
    (
        _BY_NAME["road"],
        _BY_NAME["sidewalk"],
        _including("building", "wall"),
        _BY_NAME["fence"],
        _BY_NAME["pole"],
        _including("traffic sign", "traffic light"),
        _including("vegetation", "terrain"),
        _BY_NAME["sky"],
        _including("person", "rider"),
        _including("car", "truck", "bus"),
        _including("bicycle", "motorcycle"),
    ),
)
LABEL_SPACES = {
    space.name: space for space in (CITYSCAPES_19, CITYSCAPES_16, CITYSCAPES_13, DRIVING_11)
}


def _cityscapes_class(name: str) -> LabelClass:
    if name not in _BY_NAME:
        raise UsageError(f"found {name!r}, expected a Cityscapes class ({', '.join(_BY_NAME)})")
    return _BY_NAME[name]


def load_label_space(name_or_path: str) -> LabelSpace:
    """Return a built-in label space by its name, or read one from a TOML file.

    The file holds `name` and `classes`. A class is a table of name, trainId, labelId and color, or
    the name of a Cityscapes class. Raise `DataError` if the file does not exist, `UsageError` for
    an unknown name or an invalid file.
    """
    if name_or_path in LABEL_SPACES:
        return LABEL_SPACES[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; a label space is a .toml file, or one of "
                f"{', '.join(LABEL_SPACES)}"
            )
        return read_toml(path, LabelSpaceDocument, remedy=_REMEDY).to_label_space()
    raise UsageError(
        f"no label space {name_or_path!r}; choose one of {', '.join(LABEL_SPACES)}, or a .toml file"
    )
