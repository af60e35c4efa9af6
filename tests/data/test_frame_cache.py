"""Decoded frames in memory and in a folder: the same frames, up to a limit, never stale."""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.cache import FolderCache, MemoryCache, open_cache

SIZE_HW = (32, 40)


@pytest.fixture
def frames(blocks: Path, tmp_path: Path) -> FrameDataset:
    """Two frames, the first of which is a file that a test may change."""
    dataset = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13)
    image = tmp_path / "frame.png"
    cv2.imwrite(str(image), dataset.image(0)[..., ::-1])
    return replace(dataset, pairs=[replace(dataset.pairs[0], image=image), dataset.pairs[1]])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("size_hw", [None, SIZE_HW])
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_cache_returns_the_frames_of_the_files(
    frames: FrameDataset, tmp_path: Path, kind: str, size_hw: tuple[int, int] | None
) -> None:
    cache = open_cache(1.0, tmp_path / "cache" if kind == "folder" else None)
    ego = np.zeros((8, 8), bool)
    ego[6:] = True
    plain = replace(frames, ego_mask=ego)
    cached = replace(plain, cache=cache)
    frame, labels = plain.pair(0)
    if size_hw is not None:
        frame, labels = resize_frame(frame, size_hw), resize_labels(labels, size_hw)
    for _ in range(2):
        got_frame, got_labels = cached.pair(0, size_hw)
        np.testing.assert_array_equal(got_frame, frame)
        np.testing.assert_array_equal(got_labels, labels)
    np.testing.assert_array_equal(cached.image(0, size_hw), frame)
    assert (labels[-len(labels) // 4 :] == 255).all() and (labels[: len(labels) // 2] != 255).any()


def test_entries_of_a_folder_serve_other_processes(frames: FrameDataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = replace(frames, cache=FolderCache(folder, 2**30))
    want = first.image(0, SIZE_HW)
    assert len(entries(folder)) == 1
    copy = pickle.loads(pickle.dumps(first))
    marked = entries(folder)[0]
    with marked.open("wb") as file:
        np.save(file, want[::-1])
        np.save(file, np.array(frames.image(0).shape[:2], np.int32))
    # The marked entry is read, and not the image.
    np.testing.assert_array_equal(copy.image(0, SIZE_HW), want[::-1])
    # Other sizes have entries of their own.
    np.testing.assert_array_equal(copy.image(0), frames.image(0))
    assert len(entries(folder)) == 2


def test_a_changed_image_has_a_new_entry(frames: FrameDataset, tmp_path: Path) -> None:
    cached = replace(frames, cache=FolderCache(tmp_path / "cache", 2**30))
    cached.image(0)
    path = frames.pairs[0].image
    changed = 255 - frames.image(0)
    cv2.imwrite(str(path), changed[..., ::-1])
    os.utime(path, (1e9, 1e9))
    np.testing.assert_array_equal(cached.image(0), changed)
    path.unlink()
    with pytest.raises(DataError, match=r"frame\.png"):
        cached.image(0)


def test_a_damaged_entry_is_written_again(frames: FrameDataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cached = replace(frames, cache=FolderCache(folder, 2**30))
    want = cached.image(0)
    (entry,) = entries(folder)
    content = entry.read_bytes()
    # An entry of a float array, and headers on which NumPy, its parser and zipfile fail.
    headers = [content[:i] + b"\x00" + content[i + 1 :] for i in range(0, 80, 7)]
    for damaged in (
        content[: len(content) // 2], b"", content[:-20], b"x" * 300, b"PK" + content, *headers
    ):  # fmt: skip
        entry.write_bytes(damaged)
        np.testing.assert_array_equal(cached.image(0), want)
        assert entry.read_bytes() == content


def test_a_folder_stays_within_its_limit(frames: FrameDataset, tmp_path: Path) -> None:
    folder, size = tmp_path / "cache", frames.image(0).nbytes
    cached = replace(frames, cache=FolderCache(folder, int(1.5 * size)))
    for i in (0, 1, 0):
        np.testing.assert_array_equal(cached.image(i), frames.image(i))
    assert len(entries(folder)) == 1
    # A later process counts what is there.
    later = replace(frames, cache=FolderCache(folder, int(1.5 * size)))
    later.image(1)
    assert len(entries(folder)) == 1


def test_a_folder_that_cannot_be_written_ends_the_caching_and_not_the_run(
    frames: FrameDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    cached = replace(frames, cache=FolderCache(folder, 2**30))
    folder.rmdir()
    folder.write_text("a file where the folder was")
    with caplog.at_level(logging.WARNING, "fada_deploy"):
        for i in (0, 1, 0):
            np.testing.assert_array_equal(cached.image(i), frames.image(i))
    assert len(caplog.records) == 1 and str(folder) in caplog.text


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize("size_hw", [None, SIZE_HW])
def test_other_sizes_of_frame_and_labels_are_an_error_also_when_cached(
    frames: FrameDataset, tmp_path: Path, kind: str, size_hw: tuple[int, int] | None
) -> None:
    path = frames.pairs[0].image
    cv2.imwrite(str(path), frames.image(0)[:-3])
    cache = open_cache(1.0, tmp_path / "cache" if kind == "folder" else None)
    cached = replace(frames, cache=cache)
    for _ in range(2):
        with pytest.raises(DataError, match="both must have the same size"):
            cached.pair(0, size_hw)


def test_options_of_a_cache(tmp_path: Path) -> None:
    assert open_cache(0.0) is None
    memory = open_cache(0.5)
    assert isinstance(memory, MemoryCache) and memory.limit == 2**29
    with pytest.raises(UsageError, match="--cache"):
        open_cache(0.0, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        open_cache(1.0, tmp_path / "file")
