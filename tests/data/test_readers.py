"""Readers against tiny trees whose files are written byte by byte, not by our own writers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.labels import CITYSCAPES_13, CITYSCAPES_19
from fada_deploy.data import open_dataset

# One row holding every labelId of Cityscapes' table, and unlabelled ones among them.
IDS = np.tile(np.arange(34, dtype=np.uint8), (16, 1))
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
             27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def png(path: Path, pixels: np.ndarray, *, palette: bytes | None = None) -> None:
    """Write an 8-bit grey or palette PNG from the format's own definition."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)
    body = chunk(b"IHDR", header) + (b"" if palette is None else chunk(b"PLTE", palette))
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))


def frame(path: Path, size_hw: tuple[int, int] = IDS.shape) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), (10, 20, 30), np.uint8))


def expected() -> np.ndarray:
    row = [TRAIN_IDS.get(i, 255) for i in range(34)]
    return np.tile(np.array(row, np.uint8), (16, 1))


def test_gta5_reads_the_palette_index_and_never_its_colour(tmp_path: Path) -> None:
    # All ids share one colour: a reader of colours cannot tell any of them apart.
    frame(tmp_path / "images/00001.png")
    png(tmp_path / "labels/00001.png", IDS, palette=bytes([7, 7, 7]) * 34)
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    image, labels = dataset.pair(0)
    np.testing.assert_array_equal(labels, expected())
    assert image[0, 0].tolist() == [30, 20, 10]


def test_gta5_leaves_out_a_frame_without_labels(tmp_path: Path) -> None:
    for name in ("00001", "00002"):
        frame(tmp_path / f"images/{name}.png")
    png(tmp_path / "labels/00002.png", IDS)
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["00002"]


def test_cityscapes_indices_are_contiguous_in_a_smaller_space(tmp_path: Path) -> None:
    frame(tmp_path / "leftImg8bit/val/bonn/bonn_0_0_leftImg8bit.png")
    png(tmp_path / "gtFine/val/bonn/bonn_0_0_gtFine_labelIds.png", IDS)
    labels = open_dataset("cityscapes", tmp_path, split="val", space=CITYSCAPES_13).labels(0)
    # road, sidewalk, building, light, sign, vegetation, sky, person, rider, car, bus, motorcycle, bicycle
    order = [7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    assert labels[0, order].tolist() == list(range(13))
    assert set(np.delete(labels[0], order).tolist()) == {255}


def test_cityscapes_train_may_come_without_labels(tmp_path: Path) -> None:
    frame(tmp_path / "leftImg8bit/train/bonn/bonn_0_0_leftImg8bit.png")
    dataset = open_dataset("cityscapes", tmp_path, split="train", space=CITYSCAPES_19)
    assert not dataset.labelled
    with pytest.raises(DataError, match="has no labels"):
        dataset.labels(0)


def test_sizes_that_differ_are_refused_with_both_sizes(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png", (20, 40))
    png(tmp_path / "labels/00001.png", IDS)
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"00001\.png: the frame is 40x20 but its labels are 34x16"):
        dataset.pair(0)


def test_a_cut_palette_file_is_named(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png")
    label = tmp_path / "labels/00001.png"
    png(label, IDS, palette=bytes(34 * 3))
    label.write_bytes(label.read_bytes()[:60])
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"labels/00001\.png: not an image"):
        dataset.labels(0)


def test_a_missing_root_says_the_layout_and_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images/00001\.png.*published at https"):
        open_dataset("gta5", tmp_path / "no", split="train", space=CITYSCAPES_19)


def test_an_unknown_data_set_or_split_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gta5, cityscapes, custom"):
        open_dataset("kitti", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(UsageError, match="it has train, val, test"):
        open_dataset("cityscapes", tmp_path, split="tst", space=CITYSCAPES_19)
