"""The custom data set: each encoding, the list, the bonnet mask, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset


def make(
    folder: Path, labels: np.ndarray, spec: str, *, space: LabelSpace = CITYSCAPES_19
) -> FrameDataset:
    for sub in ("images", "labels"):
        (folder / sub).mkdir(exist_ok=True)
    for stem in ("a", "b"):
        assert cv2.imwrite(
            str(folder / f"images/{stem}.png"), np.zeros((*labels.shape[:2], 3), np.uint8)
        )
        assert cv2.imwrite(str(folder / f"labels/{stem}.png"), labels)
    toml = folder / "mine.toml"
    toml.write_text(
        f'{spec}\n[splits.val]\nimages = "images/*.png"\nlabels = "labels/{{stem}}.png"\n'
    )
    return open_dataset(str(toml), None, split="val", space=space)


def row(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


@pytest.mark.parametrize(
    ("encoding", "values", "indices"),
    [
        ("trainId", row(0, 10, 18, 255), [0, 6, 12, 255]),
        ("labelId", row(7, 23, 33, 0), [0, 6, 12, 255]),
        ("index", row(0, 6, 12, 255), [0, 6, 12, 255]),
    ],
)
def test_each_encoding_gives_the_spaces_own_indices(
    tmp_path: Path, encoding: str, values: np.ndarray, indices: list[int]
) -> None:
    dataset = make(tmp_path, values, f'[labels]\nencoding = "{encoding}"', space=CITYSCAPES_13)
    assert dataset.labels(0)[0].tolist() == indices


def test_mapping_ignores_what_it_does_not_name(tmp_path: Path) -> None:
    spec = '[labels]\nencoding = "mapping"\nvalues = { 3 = "car", 9 = "sky" }'
    assert make(tmp_path, row(3, 9, 4, 0), spec).labels(0)[0].tolist() == [13, 10, 255, 255]


def test_palette_colors_are_red_green_blue(tmp_path: Path) -> None:
    bgr = np.array([[[30, 20, 10], [3, 2, 1], [10, 20, 30]]], np.uint8)
    spec = '[labels]\nencoding = "palette"\ncolors = { road = [10, 20, 30], car = [1, 2, 3] }'
    assert make(tmp_path, bgr, spec).labels(0)[0].tolist() == [0, 13, 255]


def test_the_bonnet_is_ignored_at_any_size(tmp_path: Path) -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[3:] = 255
    assert cv2.imwrite(str(tmp_path / "bonnet.png"), mask)
    labels = make(
        tmp_path, np.zeros((8, 16), np.uint8), '[labels]\nego_mask = "bonnet.png"'
    ).labels(0)
    assert (labels[:6] == 0).all() and (labels[6:] == 255).all()


def test_a_list_keeps_only_its_stems(tmp_path: Path) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "val.txt").write_text("images/b.png\n\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(toml.read_text() + 'list = "val.txt"\n')
    dataset = open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('[labels]\nencoding = "rgb"', "unknown label encoding 'rgb'; there are trainId"),
        (
            '[labels]\nencoding = "mapping"\nvalues = { 3 = "cat" }',
            "unknown class cat; cityscapes-19 has road",
        ),
        ('[labels]\nencoding = "mapping"\nvalues = { x = "car" }', "whole numbers 0 to 255"),
        ('[labels]\nencoding = "palette"\ncolors = { car = [1, 2] }', r"it must be \[R, G, B\]"),
        ('[labels]\nencoding = "mapping"\nvalues = 3', "`values` must be a table"),
        ('[labels]\nencoding = "palette"\ncolors = { car = 3 }', r"it must be \[R, G, B\]"),
        ("[labels]\nego_mask = 3", "ego_mask must be the name of a picture"),
        ('[labels]\negomask = "x.png"', "unknown key labels.egomask; there are"),
        ('[labels]\nencoding = "mapping"', "`values` is missing"),
        ("[labels", "not valid TOML"),
        ('[splits.train]\nimages = "x"\n[splits]\nval = 3', "not valid TOML"),
        ("labels = 3", "must be tables"),
    ],
)
def test_a_bad_description_is_one_clear_line(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make(tmp_path, row(0, 1), spec)
    assert "\n" not in str(caught.value)


def test_an_unknown_id_names_the_file_the_id_and_the_remedy(tmp_path: Path) -> None:
    dataset = make(tmp_path, row(0, 26), '[labels]\nencoding = "trainId"')
    with pytest.raises(
        DataError, match=r"a\.png: unknown class id 26; allowed are 0 to 18 and 255"
    ):
        dataset.labels(0)


def test_missing_labels_and_splits_are_named(tmp_path: Path) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "labels/b.png").unlink()
    with pytest.raises(DataError, match="1 of 2 frames lack labels"):
        open_dataset(str(tmp_path / "mine.toml"), None, split="val", space=CITYSCAPES_19)
    with pytest.raises(UsageError, match="no split 'train'; it has val"):
        open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('list = "gone.txt"', "gone.txt: cannot be read .No such file"),
        ('list = "other.txt"', r"none of the 1 lines of other\.txt names a frame"),
        ("list = 3", "all texts; found images"),
        ('mask = "a.png"', "needs `images`, may have `labels` and `list`"),
    ],
)
def test_a_bad_split_is_one_clear_line(tmp_path: Path, line: str, message: str) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "other.txt").write_text("unknown frame\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(f"{toml.read_text()}{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert "\n" not in str(caught.value)


def test_patterns_may_be_absolute_and_names_may_hold_dots(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("a.1", "a.2"):
        assert cv2.imwrite(str(folder / f"{name}.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "keep.txt").write_text("a.1\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(f'[splits.val]\nimages = "{folder}/*.png"\nlist = "keep.txt"\n')
    dataset = open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert [p.image.name for p in dataset.pairs] == ["a.1.png"]


def test_a_list_may_name_frames_that_are_not_there_and_they_are_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "train.txt").write_text("a\nzz\n")
    (tmp_path / "mine.toml").write_text(
        '[splits.train]\nimages = "images/*.png"\nlist = "train.txt"\n'
    )
    dataset = open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["a"]
    assert dataset.left_out == {Path("zz"): "named in train.txt, not there"}
