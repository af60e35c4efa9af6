"""Custom data sets: label encodings, lists, the ego mask, and invalid description files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_indices
from fada_deploy.common.label_space import (
    CITYSCAPES_13,
    CITYSCAPES_19,
    LabelSpace,
    load_label_space,
)
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import table_reader


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
def test_each_encoding_is_read_as_indices_of_the_space(
    tmp_path: Path, encoding: str, values: np.ndarray, indices: list[int]
) -> None:
    dataset = make(tmp_path, values, f'[labels]\nencoding = "{encoding}"', space=CITYSCAPES_13)
    assert dataset.labels(0)[0].tolist() == indices


def test_mapping_ignores_unlisted_values(tmp_path: Path) -> None:
    spec = '[labels]\nencoding = "mapping"\nvalues = { 3 = "car", 9 = "sky" }'
    assert make(tmp_path, row(3, 9, 4, 0), spec).labels(0)[0].tolist() == [13, 10, 255, 255]


def test_palette_colors_are_rgb(tmp_path: Path) -> None:
    bgr = np.array([[[30, 20, 10], [3, 2, 1], [10, 20, 30]]], np.uint8)
    spec = '[labels]\nencoding = "palette"\ncolors = { road = [10, 20, 30], car = [1, 2, 3] }'
    assert make(tmp_path, bgr, spec).labels(0)[0].tolist() == [0, 13, 255]


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ('values = { 0 = "road", 1 = "building" }', "mapping"),
        ('encoding = "labelId"\ncolors = { road = [1, 2, 3] }', "palette"),
    ],
)
def test_a_table_of_another_encoding_is_refused(tmp_path: Path, spec: str, needed: str) -> None:
    with pytest.raises(DataError, match=f'set encoding = "{needed}"'):
        make(tmp_path, row(0, 1), f"[labels]\n{spec}")


@pytest.mark.parametrize("value", [-9999, -249, -1])
def test_negative_ids_are_unknown(tmp_path: Path, value: int) -> None:
    dataset = make(tmp_path, row(0, 1), '[labels]\nencoding = "mapping"\nvalues = { 7 = "car" }')
    labels = np.array([[7, value]], np.int16)
    paths = [pair.labels for pair in dataset.pairs]
    for path in filter(None, paths):
        with path.open("wb") as file:
            file.write(cv2.imencode(".tiff", labels)[1].tobytes())
    assert dataset.labels(0)[0].tolist() == [13, 255]


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
)
def test_arrays_of_every_integer_type(tmp_path: Path, dtype: str) -> None:
    make(tmp_path, row(0, 1), "[labels]")
    kind = np.dtype(dtype)
    values = [7, 0, np.iinfo(kind).min if kind.kind == "i" else 9, np.iinfo(kind).max]
    np.save(tmp_path / "labels/a.npy", np.array([values], kind))
    assert read_indices(tmp_path / "labels/a.npy")[0, :2].tolist() == [7, 0]
    reader = table_reader({7: "car"}, CITYSCAPES_19, known={255})
    assert reader(tmp_path / "labels/a.npy")[0].tolist() == [13, 255, 255, 255]


MERGED = """\
name = "merged"
[[classes]]
name = "road"
trainId = 0
labelId = 7
color = [128, 64, 128]
[[classes]]
name = "car"
trainId = 13
labelId = 26
color = [0, 0, 142]
includes = ["truck", "van"]
"""


@pytest.mark.parametrize(
    ("spec", "pixels"),
    [
        (
            'encoding = "palette"\ncolors = { road = [10, 10, 10], truck = [2, 2, 2], '
            "van = [3, 3, 3], sky = [4, 4, 4] }",
            np.array([[[v] * 3 for v in (10, 2, 3, 4)]], np.uint8),
        ),
        (
            'encoding = "mapping"\nvalues = { 1 = "road", 2 = "truck", 3 = "van", 4 = "sky" }',
            row(1, 2, 3, 4),
        ),
    ],
    ids=["palette", "mapping"],
)
def test_finer_classes_count_as_the_class_that_includes_them(
    tmp_path: Path, spec: str, pixels: np.ndarray
) -> None:
    """Also one that Cityscapes does not have."""
    (tmp_path / "merged.toml").write_text(MERGED)
    space = load_label_space(str(tmp_path / "merged.toml"))
    dataset = make(tmp_path, pixels, f"[labels]\n{spec}", space=space)
    assert dataset.labels(0)[0].tolist() == [0, 1, 1, 255]


def test_a_root_beside_a_toml_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path, row(0, 1), "")
    toml = str(tmp_path / "mine.toml")
    with pytest.raises(UsageError, match="leave out --data-root"):
        open_dataset(toml, tmp_path, split="val", space=CITYSCAPES_19)


def test_ego_mask_is_resized_to_the_labels_and_ignored(tmp_path: Path) -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[3:] = 255
    assert cv2.imwrite(str(tmp_path / "hood.png"), mask)
    labels = make(tmp_path, np.zeros((8, 16), np.uint8), '[labels]\nego_mask = "hood.png"').labels(
        0
    )
    assert (labels[:6] == 0).all() and (labels[6:] == 255).all()


def test_list_selects_frames(tmp_path: Path) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "val.txt").write_text("images/b.png\n\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(toml.read_text() + 'list = "val.txt"\n')
    dataset = open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('[labels]\nencoding = "rgb"', r"labels\.encoding: found 'rgb', expected one of .*trainId"),
        (
            '[labels]\nencoding = "mapping"\nvalues = { 3 = "cat" }',
            "unknown class cat; .*cityscapes-19 are road",
        ),
        (
            '[labels]\nencoding = "mapping"\nvalues = { x = "car" }',
            r"labels\.values: found an invalid key, expected each key to be a whole number",
        ),
        ('[labels]\nencoding = "mapping"\nvalues = { 256 = "car" }', "at most 255"),
        ('[labels]\nencoding = "palette"\ncolors = { car = [1, 2] }', "length 2, .* length 3"),
        (
            '[labels]\nencoding = "palette"\ncolors = { car = [1, 2, 256] }',
            "a whole number of at most 255",
        ),
        ('[labels]\nencoding = "mapping"\nvalues = 3', r"labels\.values: found 3"),
        ('[labels]\nencoding = "palette"\ncolors = { car = 3 }', r"labels\.colors\.car: found 3"),
        ("[labels]\nego_mask = 3", r"labels\.ego_mask: found 3"),
        ("[labels]\nego_mask = inf", r"labels\.ego_mask: found inf"),
        (
            '[labels]\negomask = "x.png"',
            r"unknown key labels\.egomask; did you mean labels\.ego_mask\?",
        ),
        ('[labels]\nencoding = "mapping"', r"labels\.values: is missing"),
        ('[labels]\nencoding = "palette"', r"labels\.colors: is missing"),
        ("[labels", "invalid TOML"),
        ('[splits.train]\nimages = "x"\n[splits]\nval = 3', "invalid TOML"),
        ("labels = 3", "labels: found 3, expected a table"),
        ("a = " + "[" * 3000 + "]" * 3000, "nested levels"),
    ],
)
def test_invalid_description_is_refused_in_one_line(
    tmp_path: Path, spec: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make(tmp_path, row(0, 1), spec)
    assert "\n" not in str(caught.value)


def test_unknown_id_error_names_file_id_and_valid_ids(tmp_path: Path) -> None:
    dataset = make(tmp_path, row(0, 26), '[labels]\nencoding = "trainId"')
    with pytest.raises(
        DataError, match=r"a\.png: found unknown class id 26, expected 0 to 18 or 255"
    ):
        dataset.labels(0)


def test_missing_labels_and_splits_are_refused(tmp_path: Path) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "labels/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 frames .*b\.png"):
        open_dataset(str(tmp_path / "mine.toml"), None, split="val", space=CITYSCAPES_19)
    with pytest.raises(UsageError, match="no split 'train'; use one of val"):
        open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('list = "gone.txt"', "gone.txt: cannot be read .No such file"),
        ('list = "other.txt"', r"none of the 1 lines of other\.txt names one of `images`"),
        ("list = 3", r"splits\.val\.list: found 3, expected a text"),
        ('mask = "a.png"', r"unknown key splits\.val\.mask"),
        ('list = "a\\u0000b"', "found a zero byte"),
    ],
)
def test_invalid_split_is_refused_in_one_line(tmp_path: Path, line: str, message: str) -> None:
    make(tmp_path, row(0, 1), "")
    (tmp_path / "other.txt").write_text("unknown frame\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(f"{toml.read_text()}{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert "\n" not in str(caught.value)


def test_patterns_may_be_absolute_and_names_may_contain_dots(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("a.1", "a.2"):
        assert cv2.imwrite(str(folder / f"{name}.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "keep.txt").write_text("a.1\n")
    toml = tmp_path / "mine.toml"
    toml.write_text(f'[splits.val]\nimages = "{folder}/*.png"\nlist = "keep.txt"\n')
    dataset = open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    assert [p.image.name for p in dataset.pairs] == ["a.1.png"]


def test_listed_frames_that_do_not_exist_are_reported_as_skipped(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "train.txt").write_text("a\nzz\n")
    (tmp_path / "mine.toml").write_text(
        '[splits.train]\nimages = "images/*.png"\nlist = "train.txt"\n'
    )
    dataset = open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["a"]
    assert dataset.skipped_files == {Path("zz"): "named in train.txt, not found"}


def test_two_classes_cannot_have_the_same_color(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "d.toml").write_text(
        '[labels]\nencoding = "palette"\ncolors = {road = [1, 2, 3], car = [1, 2, 3]}\n'
        '[splits.train]\nimages = "images/*.png"\n'
    )
    with pytest.raises(DataError, match=r"d\.toml: labels\.colors: road, car have the same color"):
        open_dataset(str(tmp_path / "d.toml"), None, split="train", space=CITYSCAPES_19)
