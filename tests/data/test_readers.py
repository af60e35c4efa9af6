"""Data set readers against small trees whose PNG files are written byte by byte."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_indices
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19
from fada_deploy.data import open_dataset

# Each row contains all labelIds of Cityscapes, including those that are ignored.
IDS = np.tile(np.arange(34, dtype=np.uint8), (16, 1))
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def png(path: Path, pixels: np.ndarray, *, palette: bytes | None = None, depth: int = 8) -> None:
    """Write a gray, palette or RGB PNG with 1 to 16 bits per sample, as the PNG standard says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def line(row: np.ndarray) -> bytes:
        if depth >= 8:
            return row.astype(f">u{depth // 8}").tobytes()
        bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
        return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")

    kind = 2 if pixels.ndim == 3 else 0 if palette is None else 3
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + (b"" if palette is None else chunk(b"PLTE", palette))
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line(row) for row in pixels)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))


def frame(path: Path, size_hw: tuple[int, int] = IDS.shape) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), (10, 20, 30), np.uint8))


def expected() -> np.ndarray:
    row = [TRAIN_IDS.get(i, 255) for i in range(34)]
    return np.tile(np.array(row, np.uint8), (16, 1))


def test_gta5_reads_palette_index_not_color(tmp_path: Path) -> None:
    # All ids have the same color, so a reader of colors cannot tell them apart.
    frame(tmp_path / "images/00001.png")
    png(tmp_path / "labels/00001.png", IDS, palette=bytes([7, 7, 7]) * 34)
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    image, labels = dataset.pair(0)
    np.testing.assert_array_equal(labels, expected())
    assert image[0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("palette", [None, bytes(48)])
def test_ids_stored_with_few_bits_are_not_scaled(
    tmp_path: Path, depth: int, palette: bytes | None
) -> None:
    # PNG optimizers write label images like this; a gray decoder scales the largest id to 255.
    ids = np.arange(2**depth)[None].repeat(3, axis=0)
    png(tmp_path / "a.png", ids, palette=palette and palette[: 3 * 2**depth], depth=depth)
    np.testing.assert_array_equal(read_indices(tmp_path / "a.png"), ids)


def test_gta5_reads_16_bit_labels_and_labels_of_one_id(tmp_path: Path) -> None:
    for name in ("00001", "00002"):
        frame(tmp_path / f"images/{name}.png")
    png(tmp_path / "labels/00001.png", np.where(IDS == 33, 65535, IDS.astype(int)), depth=16)
    png(tmp_path / "labels/00002.png", np.full_like(IDS, 23), palette=bytes(34 * 3))
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    np.testing.assert_array_equal(dataset.labels(0), np.where(IDS == 33, 255, expected()))
    assert (dataset.labels(1) == 10).all()


def test_gta5_rgb_labels_are_refused(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png")
    png(tmp_path / "labels/00001.png", np.dstack([IDS, IDS // 2, IDS]))
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(
        DataError, match=r"00001\.png: labels must be a gray or palette image.*`palette`"
    ):
        dataset.labels(0)


def test_gta5_skips_files_without_partner_and_reports_why(tmp_path: Path) -> None:
    for name in ("00001", "00002", "15188"):
        frame(tmp_path / f"images/{name}.png")
    for name in ("00002", "00003", "15188"):
        png(tmp_path / f"labels/{name}.png", IDS)
    (tmp_path / "images/._00002.png").write_bytes(b"resource fork from a macOS archive")
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    assert [p.image.stem for p in dataset.pairs] == ["00002"]
    assert {
        f"{path.parent.name}/{path.stem}": why for path, why in dataset.skipped_files.items()
    } == {
        "images/00001": "no labels",
        "labels/00003": "no frame",
        "images/15188": "published with labels of another size",
    }


def test_gta5_without_any_labels_is_refused(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png")
    with pytest.raises(
        DataError, match=r"none of 1 files has a partner; expected images/00001\.png"
    ):
        open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)


# Cityscapes trainIds of SYNTHIA's classes 0 to 22.
SYNTHIA = [255, 10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, 255, 255, 6, 255, 12, 255, 15, 255, 3, 255]


def synthia(root: Path, name: str, classes: np.ndarray, *, depth: int = 16) -> None:
    """Write a frame and its labels: the class in red, an instance number above 255 in green."""
    channels = [classes, np.full_like(classes, 700 if depth == 16 else 70), np.zeros_like(classes)]
    frame(root / f"RGB/{name}.png", classes.shape)
    png(root / f"GT/LABELS/{name}.png", np.stack(channels, axis=-1), depth=depth)


@pytest.mark.parametrize("above", ["", "RAND_CITYSCAPES"])
def test_synthia_reads_the_class_from_the_16_bit_red_channel(tmp_path: Path, above: str) -> None:
    root = tmp_path / above
    synthia(root, "0000000", np.arange(23)[None].repeat(4, axis=0))
    assert not cv2.imread(str(root / "GT/LABELS/0000000.png"))[..., 2].any(), (
        "an 8-bit reader must not see the classes"
    )
    labels = open_dataset("synthia", tmp_path, split="train", space=CITYSCAPES_19).labels(0)
    assert labels.tolist() == [SYNTHIA] * 4


def test_synthia_indices_are_contiguous_with_16_classes(tmp_path: Path) -> None:
    synthia(
        tmp_path,
        "0000000",
        np.array([[3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11, 0, 300]]),
    )
    labels = open_dataset("synthia", tmp_path, split="train", space=CITYSCAPES_16).labels(0)
    assert labels[0].tolist() == [*range(16), 255, 255]


def test_synthia_converted_to_8_bits_is_refused(tmp_path: Path) -> None:
    synthia(tmp_path, "0000000", np.arange(23)[None], depth=8)
    dataset = open_dataset("synthia", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(
        DataError, match=r"0000000\.png: labels must be a 16-bit RGB image.*archive again"
    ):
        dataset.labels(0)


def test_synthia_skips_frames_without_labels(tmp_path: Path) -> None:
    synthia(tmp_path, "0000000", np.arange(23)[None])
    frame(tmp_path / "RGB/0000001.png")
    dataset = open_dataset("synthia", tmp_path, split="train", space=CITYSCAPES_19)
    assert len(dataset) == 1 and list(dataset.skipped_files.values()) == ["no labels"]
    with pytest.raises(UsageError, match="synthia has no split 'val'; use train"):
        open_dataset("synthia", tmp_path, split="val", space=CITYSCAPES_19)


def rio(city: Path) -> None:
    """Write two training frames and three test frames of Cross-City, one of them without labels."""
    frame(city / "Images/Train/pano_00001_0_0.png")
    frame(city / "Images/Train/pano_00001_0_180.jpg")
    for name in ("pano_00002_2_180.jpg", "pano_00003_1_180.png", "pano_00004_1_180.jpg"):
        frame(city / "Images/Test" / name)
    png(city / "Labels/Test/pano_00002_2_180_eval.png", IDS)
    png(city / "Labels/Test/pano_00002_2_180.png", IDS[..., None].repeat(3, axis=2))
    png(city / "Labels/Test/pano_00003_1_180.png", IDS, palette=bytes(34 * 3))


@pytest.mark.parametrize("root", [".", "Rio"])
def test_crosscity_pairs_test_frames_and_reads_its_13_classes(tmp_path: Path, root: str) -> None:
    rio(tmp_path / "Rio")
    train = open_dataset("crosscity-rio", tmp_path / root, split="train", space=CITYSCAPES_13)
    assert [p.image.name for p in train.pairs] == ["pano_00001_0_0.png", "pano_00001_0_180.jpg"]
    assert all(p.labels is None for p in train.pairs) and train.image(1).shape == (*IDS.shape, 3)
    val = open_dataset("crosscity-rio", tmp_path / root, split="val", space=CITYSCAPES_13)
    assert [p.image.name for p in val.pairs] == ["pano_00002_2_180.jpg", "pano_00003_1_180.png"]
    assert [path.name for path in val.skipped_files] == ["pano_00004_1_180.jpg"]
    order = [7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    for i in range(2):
        _, labels = val.pair(i)
        assert labels[0, order].tolist() == list(range(13))
        assert set(np.delete(labels[0], order).tolist()) == {255}


def test_crosscity_ignores_ids_outside_its_classes_in_a_larger_space(tmp_path: Path) -> None:
    rio(tmp_path)
    labels = open_dataset("crosscity-rio", tmp_path, split="test", space=CITYSCAPES_19).labels(0)
    classes = [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    assert labels[0].tolist() == [t if t in classes else 255 for t in expected()[0].tolist()]


def test_cities_of_crosscity_share_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FADA_DATASETS", str(tmp_path))
    rio(tmp_path / "crosscity/Rio")
    assert len(open_dataset("crosscity-rio", None, split="train", space=CITYSCAPES_19)) == 2
    with pytest.raises(DataError, match="contains Rio, but no folder Tokyo"):
        open_dataset("crosscity-tokyo", None, split="train", space=CITYSCAPES_19)


@pytest.mark.parametrize(("value", "depth"), [(255, 8), (65535, 16)])
def test_cityscapes_license_plate_is_ignored_at_8_and_16_bits(
    tmp_path: Path, value: int, depth: int
) -> None:
    frame(tmp_path / "leftImg8bit/val/bonn/bonn_0_0_leftImg8bit.png", (1, 3))
    png(
        tmp_path / "gtFine/val/bonn/bonn_0_0_gtFine_labelIds.png",
        np.array([[26, value, 7]]),
        depth=depth,
    )
    labels = open_dataset("cityscapes", tmp_path, split="val", space=CITYSCAPES_19).labels(0)
    assert labels.tolist() == [[13, 255, 0]]


def test_cityscapes_indices_are_contiguous_in_a_smaller_space(tmp_path: Path) -> None:
    frame(tmp_path / "leftImg8bit/val/bonn/bonn_0_0_leftImg8bit.png")
    png(tmp_path / "gtFine/val/bonn/bonn_0_0_gtFine_labelIds.png", IDS)
    labels = open_dataset("cityscapes", tmp_path, split="val", space=CITYSCAPES_13).labels(0)
    # road, sidewalk, building, traffic light, traffic sign, vegetation, sky, person, rider, car,
    # bus, motorcycle, bicycle
    order = [7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    assert labels[0, order].tolist() == list(range(13))
    assert set(np.delete(labels[0], order).tolist()) == {255}


def test_cityscapes_train_may_lack_labels(tmp_path: Path) -> None:
    frame(tmp_path / "leftImg8bit/train/bonn/bonn_0_0_leftImg8bit.png")
    dataset = open_dataset("cityscapes", tmp_path, split="train", space=CITYSCAPES_19)
    assert not dataset.labeled
    with pytest.raises(DataError, match="has no labels"):
        dataset.labels(0)


def test_different_sizes_are_refused_with_both_sizes(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png", (20, 40))
    png(tmp_path / "labels/00001.png", IDS)
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"00001\.png: the frame is 40x20 but its labels are 34x16"):
        dataset.pair(0)


def test_truncated_palette_file_is_refused(tmp_path: Path) -> None:
    frame(tmp_path / "images/00001.png")
    label = tmp_path / "labels/00001.png"
    png(label, IDS, palette=bytes(34 * 3))
    label.write_bytes(label.read_bytes()[:60])
    dataset = open_dataset("gta5", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"labels/00001\.png: not a readable image"):
        dataset.labels(0)


def test_missing_root_error_names_layout_and_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images/00001\.png.*download it from https.*--data-root"):
        open_dataset("gta5", tmp_path / "no", split="train", space=CITYSCAPES_19)


def test_unknown_data_set_or_split_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"gta5, synthia, cityscapes, crosscity-rio, .*or the path"
    ):
        open_dataset("kitti", tmp_path, split="train", space=CITYSCAPES_19)
    with pytest.raises(UsageError, match="use one of train, val, test"):
        open_dataset("cityscapes", tmp_path, split="tst", space=CITYSCAPES_19)
