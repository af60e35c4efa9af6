"""The statistics: counts against plain NumPy, bad files by name, and a cache that any change makes another."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import count_ids
from fada_deploy.data.statistics import (
    DatasetStatistics,
    compute_statistics,
    load_statistics,
    save_statistics,
    statistics_path,
)
from fada_deploy.training.data import datasets
from fada_deploy.training.data.datasets import class_contents


def no_word(text: str) -> None:
    raise AssertionError(text)


def write(
    root: Path, name: str, ids: np.ndarray, *, frame_hw: tuple[int, int] | None = None
) -> None:
    for sub, pixels in (
        ("images", np.zeros((*(frame_hw or ids.shape), 3), np.uint8)),
        ("labels", ids),
    ):
        (root / sub).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / sub / f"{name}.png"), pixels)


@pytest.fixture
def gta5(tmp_path: Path) -> FrameDataset:
    """Return seven pairs: two good, one of one class, one ignored, and three that are bad."""
    root, rng = tmp_path / "gta5", np.random.default_rng(0)
    for i in range(2):
        write(root, f"{i}", rng.integers(0, 40, (20, 30), dtype=np.uint8))
    write(root, "2", np.full((20, 30), 23, np.uint8))
    write(root, "3", np.zeros((20, 30), np.uint8))
    write(root, "4", np.full((20, 30), 7, np.uint8), frame_hw=(10, 30))
    write(root, "5", np.full((20, 30), 7, np.uint8))
    (root / "labels/5.png").write_bytes(b"no picture")
    write(root, "6", np.full((20, 30), 7, np.uint8))
    (root / "images/6.png").write_bytes((root / "images/6.png").read_bytes()[:40])
    return open_dataset("gta5", root, split="train", space=CITYSCAPES_19)


def counted(dataset: FrameDataset, i: int) -> list[int]:
    """Count a file's classes, the ignored last, the slow and plain way."""
    labels = dataset.labels(i)
    classes = [int((labels == k).sum()) for k in range(dataset.space.num_classes)]
    return [*classes, int((labels == 255).sum())]


def test_each_file_is_counted_and_each_bad_one_named(gta5: FrameDataset) -> None:
    statistics = compute_statistics(gta5, frames=True, jobs=2)
    for i in range(4):
        assert statistics.pixels[i].tolist() == counted(gta5, i)
    assert statistics.sizes[:4].tolist() == [[20, 30]] * 4
    assert statistics.without_class == [3] and statistics.single_class == {2: 10}
    assert sorted(statistics.bad) == [4, 5, 6] and not statistics.pixels[4:].any()
    assert "4.png: the frame is 30x10 but its labels are 30x20" in statistics.bad[4]
    assert (
        "labels/5.png: not a readable image" in statistics.bad[5]
        and "images/6.png: not a readable image" in statistics.bad[6]
    )


def test_labels_alone_are_read_for_training(gta5: FrameDataset) -> None:
    statistics = compute_statistics(gta5, frames=False)
    assert sorted(statistics.bad) == [5]
    assert statistics.pixels[4, 0] == statistics.pixels[6, 0] == 600


def test_ids_that_the_format_lacks_are_counted(gta5: FrameDataset) -> None:
    ids = np.concatenate([cv2.imread(str(gta5.pairs[i].labels), -1).ravel() for i in range(2)])
    want = {i: int((ids == i).sum()) for i in range(34, 40)}
    assert compute_statistics(gta5, frames=False).unknown == {i: n for i, n in want.items() if n}


def test_the_bonnet_counts_as_ignored_and_its_ids_not_at_all(gta5: FrameDataset) -> None:
    mask = np.zeros((4, 6), bool)
    mask[2:] = True
    masked = replace(gta5, ego_mask=mask)
    statistics = compute_statistics(masked, frames=False)
    assert statistics.pixels[0].tolist() == counted(masked, 0)
    upper = cv2.imread(str(gta5.pairs[0].labels), -1)[:10]
    lower = cv2.imread(str(gta5.pairs[1].labels), -1)[:10]
    assert statistics.unknown == {
        i: int((upper == i).sum() + (lower == i).sum()) for i in statistics.unknown
    }
    assert sum(statistics.unknown.values()) == int((upper > 33).sum() + (lower > 33).sum())


@pytest.mark.parametrize(
    "encoding", ['"trainId"', '"palette"\ncolors = { road = [7, 7, 7], sky = [23, 23, 23] }']
)
def test_every_encoding_is_counted_as_it_is_read(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "a", np.array([[7, 8, 255, 10, 7]] * 3, np.uint8))
    toml = tmp_path / "mine.toml"
    toml.write_text(
        f"[labels]\nencoding = {encoding}\n"
        '[splits.train]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n'
    )
    dataset = open_dataset(str(toml), None, split="train", space=CITYSCAPES_13)
    statistics = compute_statistics(dataset, frames=True)
    assert (
        statistics.pixels[0].tolist() == counted(dataset, 0)
        and not statistics.unknown
        and not statistics.bad
    )


def test_frames_without_labels_are_decoded_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "crosscity/Rio/Images/Train"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        assert cv2.imwrite(str(folder / name), np.zeros((8, 16, 3), np.uint8))
    (folder / "b.jpg").write_bytes(b"")
    dataset = open_dataset(
        "crosscity-rio", tmp_path / "crosscity", split="train", space=CITYSCAPES_19
    )
    statistics = compute_statistics(dataset, frames=True)
    assert sorted(statistics.bad) == [1] and statistics.sizes.tolist() == [[8, 16], [0, 0]]
    assert not statistics.pixels.any() and statistics.without_class == []


def test_ids_above_eight_bits_fall_into_one_place() -> None:
    ids = np.array([[0, 255, 256, 65535, 5, 5]], np.uint16)
    found = count_ids(ids)
    assert {i: int(found[i]) for i in np.flatnonzero(found)} == {0: 1, 5: 2, 255: 1, 256: 2}


def test_a_census_comes_back_from_the_cache_as_it_was(gta5: FrameDataset, cache: Path) -> None:
    assert load_statistics(gta5) is None
    statistics = compute_statistics(gta5, frames=True)
    path = save_statistics(gta5, statistics, no_word)
    assert path is not None and path.is_relative_to(cache)
    back = load_statistics(gta5)
    assert back is not None
    for name in ("pixels", "sizes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(statistics, name))
    assert (back.bad, back.unknown) == (statistics.bad, statistics.unknown)


def test_a_damaged_census_is_counted_again(gta5: FrameDataset) -> None:
    path = save_statistics(gta5, compute_statistics(gta5, frames=False), no_word)
    assert path is not None
    whole = path.read_bytes()
    for data in (b"", b"words", whole[:-40], whole[:60] + b"\0" * 8 + whole[68:]):
        path.write_bytes(data)
        assert load_statistics(gta5) is None


def test_any_change_makes_another_key(gta5: FrameDataset, tmp_path: Path) -> None:
    label = gta5.pairs[0].labels
    assert label is not None
    keys = [statistics_path(gta5)]

    def changed(dataset: FrameDataset = gta5) -> None:
        keys.append(statistics_path(dataset))
        assert len(set(keys)) == len(keys)

    os.utime(label, ns=(1, 1))
    changed()
    label.write_bytes(label.read_bytes() + b"\0")
    os.utime(label, ns=(1, 1))
    changed()
    os.utime(gta5.pairs[0].image, ns=(1, 1))
    changed()
    changed(replace(gta5, ego_mask=np.eye(4, dtype=bool)))
    changed(open_dataset("gta5", tmp_path / "gta5", split="train", space=CITYSCAPES_13))
    (tmp_path / "gta5/labels/2.png").unlink()
    changed(open_dataset("gta5", tmp_path / "gta5", split="train", space=CITYSCAPES_19))


def test_another_encoding_of_the_same_files_is_another_key(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[1, 2]], np.uint8))
    mapping, palette = 'encoding = "mapping"\nvalues = {}', 'encoding = "palette"\ncolors = {}'
    encodings = ['encoding = "trainId"', 'encoding = "labelId"']
    encodings += [mapping.replace("{}", f'{{ 1 = "{name}" }}') for name in ("car", "bus")]
    encodings += [palette.replace("{}", f"{{ {name} = [1, 1, 1] }}") for name in ("car", "bus")]
    keys = set()
    for labels in encodings:
        (tmp_path / "mine.toml").write_text(
            f'[labels]\n{labels}\n[splits.train]\nimages = "images/*.png"\nlabels = "labels/{{stem}}.png"\n'
        )
        opened = [
            open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)
        ] * 2
        assert statistics_path(opened[0]) == statistics_path(opened[1])
        keys.add(statistics_path(opened[0]))
    assert len(keys) == 6


def test_a_cache_that_cannot_be_written_is_one_line(
    gta5: FrameDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/below"))
    contents, bad = class_contents(gta5)
    assert contents[2, 10] and len(bad) == 1
    (message,) = caplog.messages
    assert "\n" not in message and "XDG_CACHE_HOME" in message


def refuse(*_: object, **__: object) -> DatasetStatistics:
    raise AssertionError("counted again")


def test_training_counts_once_and_takes_over_what_a_check_counted(
    gta5: FrameDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, bad = class_contents(gta5)
    assert len(bad) == 1 and contents[4, 0] and contents[6, 0]
    save_statistics(gta5, compute_statistics(gta5, frames=True), no_word)
    monkeypatch.setattr(datasets, "compute_statistics", refuse)
    contents, bad = class_contents(gta5)
    # The check saw that two frames more are bad: sampling then never draws them.
    assert len(bad) == 3 and not contents[4:].any() and contents[2].nonzero()[0].tolist() == [10]


def test_an_interrupt_leaves_the_rest_unread(gta5: FrameDataset) -> None:
    many = replace(gta5, pairs=list(gta5.pairs) * 100)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    seen: list[Path] = []
    watched = replace(
        many, read_labels=lambda path: seen.append(path) or np.zeros((20, 30), np.uint8)
    )
    with pytest.raises(KeyboardInterrupt):
        compute_statistics(watched, frames=False, jobs=2, progress=stop)
    assert len(seen) < 20 and threading.active_count() == before
