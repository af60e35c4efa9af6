"""Label spaces: indices, ids and colors against Cityscapes' published table."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import (
    CITYSCAPES_13,
    CITYSCAPES_16,
    CITYSCAPES_19,
    LabelClass,
    LabelSpace,
    load_label_space,
)


def test_colors_and_ids_are_the_published_ones() -> None:
    assert CITYSCAPES_19.names[10] == "sky" and tuple(CITYSCAPES_19.palette[10]) == (70, 130, 180)
    assert tuple(CITYSCAPES_19.palette[0]) == (128, 64, 128) and tuple(
        CITYSCAPES_19.palette[18]
    ) == (119, 11, 32)
    assert tuple(CITYSCAPES_19.palette[19]) == (0, 0, 0)
    label_ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert CITYSCAPES_19.to_label_ids[:19].tolist() == label_ids


def test_indices_are_contiguous_where_train_ids_are_not() -> None:
    assert CITYSCAPES_16.num_classes == 16 and CITYSCAPES_13.num_classes == 13
    assert CITYSCAPES_16.index_of("sky") == 9 and CITYSCAPES_16.index_of("bicycle") == 15
    assert CITYSCAPES_16.to_train_ids[9] == 10 and CITYSCAPES_16.to_train_ids[15] == 18
    table = CITYSCAPES_16.from_ids({10: "sky", 9: "terrain", 300: "road"})
    assert table[10] == 9 and table[9] == 255 and np.count_nonzero(table != 255) == 1


def test_reads_back_its_own_document() -> None:
    space = LabelSpace(
        "mine", (CITYSCAPES_19.classes[0], LabelClass("tram track", 19, 34, (90, 60, 60)))
    )
    assert LabelSpace.from_dict(space.to_dict()) == space
    assert pickle.loads(pickle.dumps(space)) == space and hash(space) == hash(space)


def test_label_space_file_may_name_cityscapes_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    extra = '{ name = "tram track", trainId = 19, labelId = 34, color = [90, 60, 60] }'
    file.write_text(f'name = "mine"\nclasses = ["road", "car", {extra}]\n')
    space = load_label_space(str(file))
    assert space.names == ("road", "car", "tram track") and space.to_train_ids[1] == 13
    assert load_label_space("cityscapes-13") is CITYSCAPES_13


def table(**changes: object) -> str:
    values = {"name": '"a"', "trainId": 0, "labelId": 0, "color": "[1, 2, 3]"} | changes
    return "{ " + ", ".join(f"{key} = {value}" for key, value in values.items()) + " }"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nclasses = ["road", "cat"]', "found 'cat', expected a Cityscapes class"),
        ('name = "x"\nclasses = ["road", "road"]', "got road more than once"),
        ('name = "x"\nclasses = ["road"]', "classes: found length 1"),
        ('name = "x"\nclasses = ["road", 3]', "classes[1]: found 3"),
        ('classes = ["road", "car"]', "the key 'name' is missing"),
        ('name = "x"\nclasses = ["road", "car"]\ncolour = 1', "unknown key colour"),
        (
            f'name = "x"\nclasses = [{table(color="[1, 2, 999]")}, "car"]',
            "classes[0].color[2]: found 999",
        ),
        (f'name = "x"\nclasses = [{table(trainId=300)}, "car"]', "classes[0].trainId: found 300"),
        (f'name = "x"\nclasses = [{table(labelId="inf")}, "car"]', "classes[0].labelId: found inf"),
        (f'name = "x"\nclasses = [{table(labelId="7.0")}, "car"]', "classes[0].labelId: found 7.0"),
        ("name =", "invalid TOML"),
        ("a = " + "[" * 3000 + "]" * 3000, "nested levels"),
    ],
)
def test_invalid_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_label_space(str(file))
    line = str(caught.value)
    assert message in line and line.startswith(f"{file}: ") and "\n" not in line


def test_constructor_checks_count_ids_and_names() -> None:
    road, car = CITYSCAPES_19.classes[0], CITYSCAPES_19.classes[13]
    for classes, fact in (
        ((road,), "got 1"),
        ((road, road), "got road more than once"),
        ((car, LabelClass("x", 255, 0, (0, 0, 0))), "got 255"),
    ):
        with pytest.raises(UsageError, match=fact):
            LabelSpace("x", classes)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'x'.*cityscapes-19"):
        load_label_space("x")
    with pytest.raises(UsageError, match=r"'cat'.*road"):
        CITYSCAPES_13.index_of("cat")
    with pytest.raises(DataError, match=r"gone\.toml: no such file"):
        load_label_space(str(tmp_path / "gone.toml"))


def test_two_classes_cannot_have_the_same_id() -> None:
    lane, curb = (
        LabelClass(name, 19, number, (0, 0, 0)) for name, number in (("lane", 1), ("curb", 2))
    )
    with pytest.raises(UsageError, match="lane, curb have the same trainId 19"):
        LabelSpace("mine", (lane, curb))
    with pytest.raises(UsageError, match="have the same labelId 1"):
        LabelSpace("mine", (lane, LabelClass("curb", 20, 1, (0, 0, 0))))
