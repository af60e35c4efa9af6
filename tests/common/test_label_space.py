"""Label spaces: indices, ids and colors against Cityscapes' published table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import (
    CITYSCAPES_13,
    CITYSCAPES_16,
    CITYSCAPES_19,
    LabelClass,
    LabelSpace,
    load_label_space,
)


def test_published_colors_and_ids() -> None:
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


def test_a_space_survives_its_own_description() -> None:
    mine = LabelSpace(
        "mine", (CITYSCAPES_19.classes[0], LabelClass("tram track", 19, 34, (90, 60, 60)))
    )
    assert LabelSpace.from_dict(mine.to_dict()) == mine


def test_a_space_from_a_file_may_name_cityscapes_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    extra = '{ name = "tram track", trainId = 19, labelId = 34, color = [90, 60, 60] }'
    file.write_text(f'name = "mine"\nclasses = ["road", "car", {extra}]\n')
    space = load_label_space(str(file))
    assert space.names == ("road", "car", "tram track") and space.to_train_ids[1] == 13
    assert load_label_space("cityscapes-13") is CITYSCAPES_13


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nclasses = ["road", "cat"]', "'cat' is no Cityscapes class"),
        ('name = "x"\nclasses = ["road", "road"]', "names road more than once"),
        ('name = "x"\nclasses = ["road"]', "has 1 classes; 2 to 254"),
        ('classes = ["road", "car"]', "malformed"),
        (
            'name = "x"\nclasses = [{ name = "a", trainId = 0, labelId = 0, color = [1, 2, 999] }, "car"]',
            "malformed",
        ),
        (
            'name = "x"\nclasses = [{ name = "a", trainId = 300, labelId = 0, color = [1, 2, 9] }, "car"]',
            "has id 300",
        ),
        ("name =", "not valid TOML"),
    ],
)
def test_a_bad_space_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_label_space(str(file))
    assert "\n" not in str(caught.value)


def test_unknown_names_list_those_there_are() -> None:
    with pytest.raises(UsageError, match="no label space 'x'; there are cityscapes-19"):
        load_label_space("x")
    with pytest.raises(UsageError, match="has no class 'cat'; it has road"):
        CITYSCAPES_13.index_of("cat")
