"""Useless labels are found: wrong encodings, masks of one class, photos, and colors of no class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.label_space import CITYSCAPES_19, DRIVING_11, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.problems import Problem, absent_classes, find_problems, ignored_fraction
from fada_deploy.data.statistics import compute_statistics

Run = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(0)
# A street: road, building, vegetation, sky and car, with a few ignored pixels.
TRAIN_IDS = np.repeat(np.array([0, 2, 8, 10, 13, 255], np.uint8), [20, 20, 20, 20, 15, 5])
TO_LABEL_IDS = {c.train_id: c.label_id for c in CITYSCAPES_19.classes} | {255: 0}


def street() -> np.ndarray:
    return np.tile(TRAIN_IDS, (30, 1))


def make(
    folder: Path,
    labels: np.ndarray,
    encoding: str,
    *,
    space: LabelSpace = CITYSCAPES_19,
    suffix: str = ".png",
    count: int = 4,
) -> FrameDataset:
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        frame = RNG.integers(0, 256, (*labels.shape[:2], 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"images/{i}.png"), frame)
        path = folder / f"labels/{i}{suffix}"
        if suffix == ".npy":
            np.save(path, labels)
        else:
            assert cv2.imwrite(str(path), labels)
    (folder / "mine.toml").write_text(
        f"[labels]\n{encoding}\n[splits.train]\n"
        f'images = "images/*.png"\nlabels = "labels/{{stem}}{suffix}"\n'
    )
    return open_dataset(str(folder / "mine.toml"), None, split="train", space=space)


def problems(dataset: FrameDataset, allowed: float = 0.5) -> list[Problem]:
    return find_problems(dataset, compute_statistics(dataset, frames=True), allowed_ignored=allowed)


def test_the_right_encoding_has_no_problem(tmp_path: Path) -> None:
    dataset = make(tmp_path, street(), 'encoding = "trainId"')
    statistics = compute_statistics(dataset, frames=True)
    assert not problems(dataset) and ignored_fraction(statistics) == 0.05
    assert absent_classes(dataset, statistics)[:3] == ("sidewalk", "wall", "fence")


def test_label_id_on_train_ids_names_the_encoding_that_fits(tmp_path: Path) -> None:
    dataset = make(tmp_path, street(), 'encoding = "labelId"')
    (problem,) = problems(dataset)
    # Of the street's trainIds only 8 and 13 are labelIds of a class: sidewalk and wall.
    assert problem.serious and "65 %" in problem.text and 'encoding = "trainId"' in problem.text
    assert not problems(dataset, allowed=0.7)


def test_train_id_on_label_ids_names_the_encoding_that_fits(tmp_path: Path) -> None:
    labels = np.vectorize(TO_LABEL_IDS.get)(street()).astype(np.uint8)
    dataset = make(tmp_path, labels, 'encoding = "trainId"')
    assert any(
        p.serious and "4 of 4 files" in p.text and 'encoding = "labelId"' in p.text
        for p in problems(dataset)
    )


def test_index_on_train_ids_of_a_smaller_space(tmp_path: Path) -> None:
    dataset = make(tmp_path, street(), 'encoding = "index"', space=DRIVING_11)
    assert any('encoding = "trainId"' in p.text for p in problems(dataset) if p.serious)


@pytest.mark.parametrize(("high", "encoding"), [(1, "trainId"), (255, "index"), (255, "trainId")])
def test_masks_of_one_class_are_named(tmp_path: Path, high: int, encoding: str) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[:20] = high
    found = problems(make(tmp_path, mask, f'encoding = "{encoding}"'))
    if high == 255:
        assert found[0].serious and "ids 0 and 255, as masks of one class" in found[0].text
    else:
        # Ids 0 and 1 are road and sidewalk, which is possible.
        assert not [p for p in found if p.serious]


def test_swapped_images_and_labels_are_named(tmp_path: Path) -> None:
    photo = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    found = problems(make(tmp_path, photo, 'encoding = "trainId"'))
    assert any(p.serious and "swapped" in p.text for p in found)


COLORS = 'encoding = "palette"\ncolors = { road = [10, 20, 30], sky = [200, 100, 50] }'


def colored() -> np.ndarray:
    """Return BGR labels: half road, a third sky, and a sixth of a color that no class has."""
    labels = np.zeros((30, 60, 3), np.uint8)
    labels[:, :30] = (30, 20, 10)
    labels[:, 30:50] = (50, 100, 200)
    labels[:, 50:] = (9, 8, 7)
    return labels


def test_colors_of_no_class_are_named_with_their_share(tmp_path: Path) -> None:
    (problem,) = problems(make(tmp_path, colored(), COLORS))
    assert not problem.serious and "[7, 8, 9] (16.7 %)" in problem.text


@pytest.mark.parametrize("damage", ["jpeg", "resize"])
def test_labels_with_many_near_colors_are_refused(tmp_path: Path, damage: str) -> None:
    labels = cv2.resize(colored(), (600, 300), interpolation=cv2.INTER_NEAREST)
    noisy = cv2.add(labels, RNG.integers(0, 5, labels.shape, dtype=np.uint8))
    if damage == "jpeg":
        dataset = make(tmp_path, noisy, COLORS, suffix=".jpg")
    else:
        dataset = make(
            tmp_path, cv2.resize(noisy, (450, 211), interpolation=cv2.INTER_AREA), COLORS
        )
    found = problems(dataset)
    assert any(p.serious and "nearest neighbor" in p.text for p in found)


@pytest.mark.parametrize("form", ["gray+alpha", "rgb", "npy", "npy-negative", "16-bit", "red"])
def test_other_forms_of_label_images_are_read(tmp_path: Path, form: str) -> None:
    labels, expected = street(), street()
    suffix, encoding = ".png", 'encoding = "trainId"'
    written: np.ndarray = labels
    if form == "gray+alpha":
        written = np.dstack([labels] * 3 + [np.full_like(labels, 255)])
    elif form == "rgb":
        written = np.dstack([labels] * 3)
    elif form == "npy":
        written, suffix = labels.astype(np.int64), ".npy"
    elif form == "npy-negative":
        written = labels.astype(np.int16)
        written[written == 255] = -1
        suffix, encoding = ".npy", 'encoding = "mapping"\nvalues = { 0 = "road", 2 = "building" }'
        expected = np.where(np.isin(labels, [0, 2]), labels, 255)
    elif form == "16-bit":
        written = labels.astype(np.uint16)
    else:
        written = np.dstack([np.zeros_like(labels), np.zeros_like(labels), labels])
        encoding += '\nchannel = "red"'
    dataset = make(tmp_path, written, encoding, suffix=suffix)
    np.testing.assert_array_equal(dataset.labels(0), expected)


def test_ids_in_the_red_channel_are_one_line_with_the_way_out(tmp_path: Path) -> None:
    labels = np.dstack([np.zeros_like(street()), np.zeros_like(street()), street()])
    dataset = make(tmp_path, labels, 'encoding = "trainId"')
    errors = compute_statistics(dataset, frames=False).errors
    assert len(errors) == 4 and 'channel = "red"' in errors[0]


def exif(path: Path, orientation: int) -> None:
    """Put an EXIF orientation into a JPEG."""
    tiff = (
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0" * 4
    )
    body = b"Exif\0\0" + tiff
    data = path.read_bytes()
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    path.write_bytes(data[:2] + segment + data[2:])


def test_labels_drawn_on_raw_pixels_are_named(tmp_path: Path) -> None:
    dataset = make(tmp_path, street(), 'encoding = "trainId"')
    for pair in dataset.pairs:
        jpeg = pair.image.with_suffix(".jpg")
        assert cv2.imwrite(str(jpeg), cv2.imread(str(pair.image)))
        exif(jpeg, 6)
    toml = tmp_path / "mine.toml"
    toml.write_text(toml.read_text().replace("images/*.png", "images/*.jpg"))
    dataset = open_dataset(str(toml), None, split="train", space=CITYSCAPES_19)
    errors = compute_statistics(dataset, frames=True).errors
    assert len(errors) == 4 and "EXIF orientation" in errors[0]


def test_data_check_reports_problems_and_exits_with_1(fada: Run, tmp_path: Path) -> None:
    make(tmp_path, street(), 'encoding = "labelId"')
    code, out, _ = fada("data", "check", tmp_path / "mine.toml")
    assert code == 1 and "problem: " in out and 'encoding = "trainId"' in out
    code, out, _ = fada("data", "check", tmp_path / "mine.toml", "--json", "--allow-ignored", 0.9)
    assert code == 0 and json.loads(out)["problems"] == []


def test_training_refuses_useless_labels_before_it_starts(fada: Run, tmp_path: Path) -> None:
    make(tmp_path, street(), 'encoding = "labelId"')
    command = (
        "train", "--src", tmp_path / "mine.toml", "--tgt", tmp_path / "images", "--recipe", "small",
        "--size", "96x64", "--stages", "source", "--set", "source.iterations=1", "--batch", "2",
        "--out", "run",
    )  # fmt: skip
    code, _, err = fada(*command)
    assert code == 1 and "65 %" in err and 'encoding = "trainId"' in err
    assert not Path("run").exists()
    code, _, err = fada(*command, "--allow-ignored", "0.7")
    assert code == 0, err
    rows = json.loads(Path("run/sources.json").read_text())["sources"]
    assert rows[0]["frames"] == 4 and rows[0]["ignored"] == pytest.approx(0.65)
    # The table is logged before the first iteration.
    assert err.index("absent classes") < err.index("source 1/1")
    assert "absent classes" in Path("run/report.html").read_text()
