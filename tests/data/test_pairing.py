"""Frames and label files in nested folders, and lists as they are found in the wild."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset


def png(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((4, 6), value, np.uint8))


def opened(folder: Path, split: str) -> FrameDataset:
    (folder / "mine.toml").write_text(f"[splits.train]\n{split}\n")
    return open_dataset(str(folder / "mine.toml"), None, split="train", space=CITYSCAPES_19)


@pytest.fixture
def mirrored(tmp_path: Path) -> Path:
    """Return a tree in which the same names occur in two cities; labels show the city."""
    for value, city in enumerate(("a/x", "a/y", "b/x")):
        for stem in ("1", "2"):
            png(tmp_path / "images" / city / f"{stem}.png")
            png(tmp_path / "labels" / city / f"{stem}.png", value)
    return tmp_path


def values(dataset: FrameDataset) -> list[int]:
    return [int(dataset.labels(i)[0, 0]) for i in range(len(dataset))]


def test_path_placeholder_mirrors_the_tree(mirrored: Path) -> None:
    dataset = opened(mirrored, 'images = "images/**/*.png"\nlabels = "labels/{path}.png"')
    assert values(dataset) == [0, 0, 1, 1, 2, 2]


def test_folder_placeholder_is_the_last_folder(mirrored: Path) -> None:
    dataset = opened(
        mirrored, 'images = "images/a/*/*.png"\nlabels = "labels/a/{folder}/{stem}.png"'
    )
    assert values(dataset) == [0, 0, 1, 1]


def test_frames_that_share_a_label_file_are_refused(mirrored: Path) -> None:
    png(mirrored / "labels" / "1.png")
    png(mirrored / "labels" / "2.png")
    with pytest.raises(DataError, match=r"6 frames share a label file.*\{path\}"):
        opened(mirrored, 'images = "images/**/*.png"\nlabels = "labels/{stem}.png"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images/a/x/1.png\nimages/b/x/2.png\n", [0, 2]),
        ("a/x/1\nb/x/2\n", [0, 2]),
        ("./images/a/x/1.png\r\n\r\nimages/b/x/2.png\r\n", [0, 2]),
        ("\ufeffa/x/1.png\nb/x/2.png", [0, 2]),
        ("a\\x\\1.png\nb\\x\\2.png\n", [0, 2]),
        ("/images/a/x/1.png\n# a comment\n/images/b/x/2.png\n", [0, 2]),
        ("images/a/x/1.png labels/b/x/1.png\nimages/b/x/2.png labels/a/y/2.png\n", [2, 1]),
        ("a/x/1.png,labels/b/x/1.png\n", [2]),
    ],
)
def test_lines_of_a_list_are_paths(mirrored: Path, text: str, expected: list[int]) -> None:
    (mirrored / "train.txt").write_text(text, "utf-8", newline="")
    dataset = opened(
        mirrored, 'images = "images/**/*.png"\nlabels = "labels/{path}.png"\nlist = "train.txt"'
    )
    assert values(dataset) == expected
    assert list(dataset.skipped_files.values()) == ["not named in train.txt"] * (6 - len(expected))


def test_a_bare_name_of_several_frames_is_refused(mirrored: Path) -> None:
    (mirrored / "train.txt").write_text("1.png\n")
    with pytest.raises(DataError, match=r"names 3 frames.*write the folder"):
        opened(
            mirrored,
            'images = "images/**/*.png"\nlabels = "labels/{path}.png"\nlist = "train.txt"',
        )


def test_lost_lines_are_reported(mirrored: Path) -> None:
    (mirrored / "train.txt").write_text("a/x/1\nc/x/1\n")
    dataset = opened(mirrored, 'images = "images/**/*.png"\nlist = "train.txt"')
    assert dataset.skipped_files[Path("c/x/1")] == "named in train.txt, not found"


def test_brackets_and_spaces_in_names(tmp_path: Path) -> None:
    png(tmp_path / "my [old] data" / "day 1" / "a b.png")
    png(tmp_path / "my [old] labels" / "a b.png", 2)
    (tmp_path / "train.txt").write_text("a b\n")
    split = 'labels = "my [old] labels/{stem}.png"\nlist = "train.txt"\n'
    assert values(opened(tmp_path, f'images = "my [old] data/*/*.png"\n{split}')) == [2]
    folder = tmp_path / "set [1]"
    png(folder / "images" / "x.png")
    assert len(opened(folder, 'images = "images/*.png"')) == 1


def test_names_with_a_space_and_absolute_paths(tmp_path: Path) -> None:
    png(tmp_path / "images" / "my photo.png")
    png(tmp_path / "images" / "b.png")
    png(tmp_path / "labels" / "my photo.png", 2)
    png(tmp_path / "labels" / "b.png", 8)
    (tmp_path / "train.txt").write_text(f"my photo.png\n{tmp_path}/images/b.png\n")
    split = 'images = "images/*.png"\nlabels = "labels/{stem}.png"\nlist = "train.txt"'
    assert values(opened(tmp_path, split)) == [8, 2]


def test_a_list_that_names_only_some_label_files_is_refused(mirrored: Path) -> None:
    (mirrored / "train.txt").write_text("a/x/1.png labels/b/x/1.png\nb/x/1.png\n")
    with pytest.raises(DataError, match=r"1 of 2 frames .* no label file.*b/x/1\.png"):
        opened(mirrored, 'images = "images/**/*.png"\nlist = "train.txt"')


def test_labels_only_in_the_list(mirrored: Path) -> None:
    (mirrored / "train.txt").write_text("a/x/1.png labels/b/x/1.png\n")
    dataset = opened(mirrored, 'images = "images/**/*.png"\nlist = "train.txt"')
    assert values(dataset) == [2]


def test_names_with_spaces_and_commas_are_separated_by_a_tab(tmp_path: Path) -> None:
    lines = []
    for i in range(3):
        for sub in ("images", "labels"):
            (tmp_path / sub).mkdir(exist_ok=True)
            (tmp_path / sub / f"my pic, {i} [x].png").touch()
        lines.append(f"images/my pic, {i} [x].png\tlabels/my pic, {i} [x].png")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "d.toml").write_text(
        '[splits.train]\nimages = "images/*.png"\nlist = "list.txt"\n'
        '[labels]\nencoding = "trainId"\n'
    )
    dataset = open_dataset(str(tmp_path / "d.toml"), None, split="train", space=CITYSCAPES_19)
    assert [(p.image.name, p.labels and p.labels.name) for p in dataset.pairs] == [
        (f"my pic, {i} [x].png", f"my pic, {i} [x].png") for i in range(3)
    ]
