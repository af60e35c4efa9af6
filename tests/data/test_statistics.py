"""Dataset statistics: counts against NumPy, unusable files, and the cache and its key."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.mapping import LostItemError
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19
from fada_deploy.data import open_dataset, statistics
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.label_files import count_ids
from fada_deploy.data.statistics import (
    DatasetStatistics,
    compute_statistics,
    load_statistics,
    save_statistics,
    statistics_path,
)
from fada_deploy.training.data import source_check
from fada_deploy.training.data.source_check import check_sources


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
    """Return seven pairs: two good, one with a single class, one all ignored, three unusable."""
    root, rng = tmp_path / "gta5", np.random.default_rng(0)
    for i in range(2):
        write(root, f"{i}", rng.integers(0, 40, (20, 30), dtype=np.uint8))
    write(root, "2", np.full((20, 30), 23, np.uint8))
    write(root, "3", np.zeros((20, 30), np.uint8))
    write(root, "4", np.full((20, 30), 7, np.uint8), frame_hw=(10, 30))
    write(root, "5", np.full((20, 30), 7, np.uint8))
    (root / "labels/5.png").write_bytes(b"not an image")
    write(root, "6", np.full((20, 30), 7, np.uint8))
    (root / "images/6.png").write_bytes((root / "images/6.png").read_bytes()[:40])
    return open_dataset("gta5", root, split="train", space=CITYSCAPES_19)


def counted(dataset: FrameDataset, i: int) -> list[int]:
    """Count the classes of a file, and the ignored pixels last, with NumPy."""
    labels = dataset.labels(i)
    classes = [int((labels == k).sum()) for k in range(dataset.space.num_classes)]
    return [*classes, int((labels == 255).sum())]


def test_usable_files_are_counted_and_others_reported(gta5: FrameDataset) -> None:
    statistics = compute_statistics(gta5, frames=True, jobs=2)
    for i in range(4):
        assert statistics.pixels[i].tolist() == counted(gta5, i)
    assert statistics.sizes[:4].tolist() == [[20, 30]] * 4
    assert statistics.without_class == [3] and statistics.single_class == {2: 10}
    assert sorted(statistics.errors) == [4, 5, 6] and not statistics.pixels[4:].any()
    assert "4.png: the frame is 30x10 but its labels are 30x20" in statistics.errors[4]
    assert (
        "labels/5.png: not a readable image" in statistics.errors[5]
        and "images/6.png: not a readable image" in statistics.errors[6]
    )


def test_without_frames_only_labels_are_read(gta5: FrameDataset) -> None:
    statistics = compute_statistics(gta5, frames=False)
    assert sorted(statistics.errors) == [5]
    assert statistics.pixels[4, 0] == statistics.pixels[6, 0] == 600


def test_unknown_ids_are_counted(gta5: FrameDataset) -> None:
    ids = np.concatenate([cv2.imread(str(gta5.pairs[i].labels), -1).ravel() for i in range(2)])
    expected = {i: int((ids == i).sum()) for i in range(34, 40)}
    assert compute_statistics(gta5, frames=False).unknown_ids == {
        i: n for i, n in expected.items() if n
    }


def test_ego_mask_counts_as_ignored_and_its_ids_are_not_counted(gta5: FrameDataset) -> None:
    mask = np.zeros((4, 6), bool)
    mask[2:] = True
    masked = replace(gta5, ego_mask=mask)
    statistics = compute_statistics(masked, frames=False)
    assert statistics.pixels[0].tolist() == counted(masked, 0)
    upper = cv2.imread(str(gta5.pairs[0].labels), -1)[:10]
    lower = cv2.imread(str(gta5.pairs[1].labels), -1)[:10]
    assert statistics.unknown_ids == {
        i: int((upper == i).sum() + (lower == i).sum()) for i in statistics.unknown_ids
    }
    assert sum(statistics.unknown_ids.values()) == int((upper > 33).sum() + (lower > 33).sum())


@pytest.mark.parametrize(
    "encoding", ['"trainId"', '"palette"\ncolors = { road = [7, 7, 7], sky = [23, 23, 23] }']
)
def test_counts_match_the_reader_for_every_encoding(tmp_path: Path, encoding: str) -> None:
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
        and not statistics.unknown_ids
        and not statistics.errors
    )


def test_frames_without_labels_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "crosscity/Rio/Images/Train"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        assert cv2.imwrite(str(folder / name), np.zeros((8, 16, 3), np.uint8))
    (folder / "b.jpg").write_bytes(b"")
    dataset = open_dataset(
        "crosscity-rio", tmp_path / "crosscity", split="train", space=CITYSCAPES_19
    )
    statistics = compute_statistics(dataset, frames=True)
    assert sorted(statistics.errors) == [1] and statistics.sizes.tolist() == [[8, 16], [0, 0]]
    assert not statistics.pixels.any() and statistics.without_class == []


def test_ids_above_255_share_one_count() -> None:
    ids = np.array([[0, 255, 256, 65535, 5, 5]], np.uint16)
    counts = count_ids(ids)
    assert {i: int(counts[i]) for i in np.flatnonzero(counts)} == {0: 1, 5: 2, 255: 1, 256: 2}


def test_statistics_are_read_back_from_the_cache(gta5: FrameDataset, cache: Path) -> None:
    assert load_statistics(gta5) is None
    statistics = compute_statistics(gta5, frames=True)
    path = save_statistics(gta5, statistics)
    assert path is not None and path.is_relative_to(cache)
    back = load_statistics(gta5)
    assert back is not None
    for name in ("pixels", "sizes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(statistics, name))
    assert (back.errors, back.unknown_ids) == (statistics.errors, statistics.unknown_ids)


def test_damaged_cache_file_is_ignored(gta5: FrameDataset) -> None:
    path = save_statistics(gta5, compute_statistics(gta5, frames=False))
    assert path is not None
    content = path.read_bytes()
    for data in (b"", b"words", content[:-40], content[:60] + b"\0" * 8 + content[68:]):
        path.write_bytes(data)
        assert load_statistics(gta5) is None


def test_any_change_changes_the_cache_key(gta5: FrameDataset, tmp_path: Path) -> None:
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


def test_cache_key_depends_on_the_encoding(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[1, 2]], np.uint8))
    mapping, palette = 'encoding = "mapping"\nvalues = {}', 'encoding = "palette"\ncolors = {}'
    encodings = ['encoding = "trainId"', 'encoding = "labelId"']
    encodings += [mapping.replace("{}", f'{{ 1 = "{name}" }}') for name in ("car", "bus")]
    encodings += [palette.replace("{}", f"{{ {name} = [1, 1, 1] }}") for name in ("car", "bus")]
    keys = set()
    for labels in encodings:
        (tmp_path / "mine.toml").write_text(
            f'[labels]\n{labels}\n[splits.train]\nimages = "images/*.png"\n'
            'labels = "labels/{stem}.png"\n'
        )
        opened = [
            open_dataset(str(tmp_path / "mine.toml"), None, split="train", space=CITYSCAPES_19)
        ] * 2
        assert statistics_path(opened[0]) == statistics_path(opened[1])
        keys.add(statistics_path(opened[0]))
    assert len(keys) == 6


def test_unwritable_cache_is_one_warning(
    gta5: FrameDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/below"))
    with caplog.at_level(logging.WARNING):
        pixels, bad, _ = check_sources([gta5], allowed_ignored=1.0)
    assert pixels[2, 10] > 0 and len(bad) == 1
    message = caplog.messages[0]
    assert "\n" not in message and "XDG_CACHE_HOME" in message


def refuse(*_: object, **__: object) -> DatasetStatistics:
    raise AssertionError("computed again")


def test_training_uses_stored_statistics(
    gta5: FrameDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, bad, _ = check_sources([gta5], allowed_ignored=1.0)
    assert len(bad) == 1 and pixels[4, 0] and pixels[6, 0]
    save_statistics(gta5, compute_statistics(gta5, frames=True))
    monkeypatch.setattr(source_check, "compute_statistics", refuse)
    pixels, bad, _ = check_sources([gta5], allowed_ignored=1.0)
    # The check also read the frames, so two more files are known to be unusable.
    assert len(bad) == 3 and not pixels[4:].any() and pixels[2].nonzero()[0].tolist() == [10]


def test_files_of_lost_workers_are_not_stored_as_unusable(
    gta5: FrameDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason may be a machine that was switched off."""

    def lose_all(_: object, count: int, *__: object, **___: object) -> Iterator[object]:
        yield from (LostItemError(f"{i}.png: its worker was lost 3 times") for i in range(count))

    monkeypatch.setattr(statistics, "map_on_cluster", lose_all)
    found = compute_statistics(gta5, frames=False, cluster=ClusterOptions())
    assert "lost" in found.errors[0]
    assert save_statistics(gta5, found) is None
    assert load_statistics(gta5) is None


def test_interrupt_stops_reading(gta5: FrameDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptedBar:
        def update(self, n: int = 1) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(statistics, "progress_bar", lambda *_, **__: nullcontext(InterruptedBar()))
    threads_before = threading.active_count()
    paths: list[Path] = []
    many = replace(
        gta5,
        pairs=list(gta5.pairs) * 100,
        read_labels=lambda path: paths.append(path) or np.zeros((20, 30), np.uint8),
    )
    with pytest.raises(KeyboardInterrupt):
        compute_statistics(many, frames=False, jobs=2)
    assert len(paths) < 20 and threading.active_count() == threads_before


def test_progress_counts_each_file(gta5: FrameDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    totals, updates = [], []

    class Bar:
        def update(self, n: int = 1) -> None:
            updates.append(n)

    def open_bar(total: int, *_: object, **__: object) -> nullcontext[Bar]:
        totals.append(total)
        return nullcontext(Bar())

    monkeypatch.setattr(statistics, "progress_bar", open_bar)
    compute_statistics(gta5, frames=True)
    assert totals == [7] and sum(updates) == 7


def test_statistics_of_unreadable_files_end_with_their_permissions(gta5: FrameDataset) -> None:
    """`chmod` changes neither size nor modification time."""
    save_statistics(gta5, compute_statistics(gta5, frames=False))
    assert load_statistics(gta5) is not None
    labels = gta5.pairs[0].labels
    assert labels is not None
    labels.chmod(0o640)
    assert load_statistics(gta5) is None
