"""`evaluate` against scores counted pixel by pixel, with a frame that cannot be read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest

import fada_deploy
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metrics import Scores, confusion_matrix
from fada_deploy.common.progress import set_progress_factory
from fada_deploy.data import open_dataset
from fada_deploy.data.problems import find_problems
from fada_deploy.data.statistics import compute_statistics
from fada_deploy.evaluation import evaluate


def test_scores_every_pixel_and_reports_the_unreadable_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truths = [rng.choice(np.array([0, 1, 13, 255], np.uint8), (9, 13)) for _ in range(3)]
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for i, truth in enumerate(truths):
        assert cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.full((9, 13, 3), i, np.uint8))
        assert cv2.imwrite(str(tmp_path / f"labels/{i}.png"), truth)
    (tmp_path / "images/1.png").write_bytes(b"not a readable image")
    toml = tmp_path / "set.toml"
    toml.write_text('[splits.val]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n')
    predictions = {i: rng.choice(np.array([0, 1, 5], np.uint8), (9, 13)) for i in (0, 2)}

    def predict(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [predictions[int(f[0, 0, 0])] for f in frames]

    result = evaluate(
        predict, open_dataset(str(toml), None, split="val", space=CITYSCAPES_19), batch=2
    )

    count = {k: [0, 0] for k in (0, 1, 13)}  # class: [intersection, union]
    for i, prediction in predictions.items():
        for truth, predicted in zip(truths[i].flat, prediction.flat, strict=True):
            for k, pair in count.items():
                if truth != 255:
                    pair[0] += int(truth == k and predicted == k)
                    pair[1] += int(truth == k or predicted == k)
    for k, (hit, union) in count.items():
        assert result.scores.iou[k] == pytest.approx(hit / union)
    assert result.scores.miou == pytest.approx(np.mean([h / u for h, u in count.values()]))
    assert "pole" in result.scores.absent and "road" not in result.scores.absent
    assert result.frames == 2 and len(result.failed) == 1 and "1.png" in result.failed[0]


def test_a_frame_without_labels_is_reported_and_the_others_are_scored(
    streets: Path, tmp_path: Path
) -> None:
    shutil.copytree(streets / "cityscapes", tmp_path, dirs_exist_ok=True)
    lost = sorted((tmp_path / "gtFine/val").rglob("*_labelIds.png"))[0]
    lost.unlink()
    frames = open_dataset("cityscapes", tmp_path, split="val", space=CITYSCAPES_19)
    result = evaluate(lambda images: [np.zeros(i.shape[:2], np.uint8) for i in images], frames)
    assert result.frames == len(frames) - 1 and frames.labeled
    assert [lost.name.split("_gtFine")[0] in line for line in result.failed] == [True]
    (problem,) = [p.text for p in find_problems(frames, compute_statistics(frames, frames=False))]
    assert f"1 of {len(frames)} frames have no labels" in problem


class Bars:
    """A progress factory that records what is reported to it."""

    def __init__(self) -> None:
        self.opened: list[tuple[int | None, str]] = []
        self.done = 0

    def __call__(
        self, *, total: int | None, description: str, unit: str, initial: int
    ) -> nullcontext[Bars]:
        self.opened.append((total, description))
        return nullcontext(self)

    def update(self, n: int = 1) -> None:
        self.done += n

    def set_postfix(self, values: object) -> None: ...


def test_reports_progress_per_frame(blocks: Path) -> None:
    dataset = open_dataset(str(blocks / "target.toml"), None, split="val", space=CITYSCAPES_19)
    bars = Bars()
    set_progress_factory(bars)
    try:
        evaluate(lambda frames: [np.zeros(f.shape[:2], np.uint8) for f in frames], dataset, batch=5)
    finally:
        set_progress_factory(None)
    assert bars.opened == [(6, "scoring")] and bars.done == 6


def test_data_set_without_a_readable_frame_raises_data_error(blocks: Path, tmp_path: Path) -> None:
    shutil.copytree(blocks / "target", tmp_path / "target")
    shutil.copy(blocks / "target.toml", tmp_path)
    for image in (tmp_path / "target/val/images").iterdir():
        image.write_bytes(b"not a readable image")
    dataset = open_dataset(str(tmp_path / "target.toml"), None, split="val", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"none of the 6 frames.*00\.png"):
        evaluate(lambda frames: [], dataset)


def test_error_in_predict_is_raised(blocks: Path) -> None:
    dataset = open_dataset(str(blocks / "target.toml"), None, split="val", space=CITYSCAPES_19)

    def predict(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise MemoryError

    with pytest.raises(MemoryError):
        evaluate(predict, dataset)


def test_labels_without_a_class_raise_data_error(blocks: Path, tmp_path: Path) -> None:
    """As with a wrong encoding, for which no score exists."""
    shutil.copytree(blocks / "target/val", tmp_path / "val")
    for path in (tmp_path / "val/labels").iterdir():
        assert cv2.imwrite(str(path), np.full((64, 96), 255, np.uint8))
    toml = tmp_path / "set.toml"
    toml.write_text('[splits.val]\nimages = "val/images/*.png"\nlabels = "val/labels/{stem}.png"\n')
    dataset = open_dataset(str(toml), None, split="val", space=CITYSCAPES_19)
    with pytest.raises(DataError, match=r"none of the classes of cityscapes-19.*fada data check"):
        evaluate(lambda frames: [np.zeros(f.shape[:2], np.uint8) for f in frames], dataset)


def test_a_data_set_of_another_label_space_is_refused(blocks: Path) -> None:
    dataset = open_dataset(str(blocks / "target.toml"), None, split="val", space=CITYSCAPES_19)
    with pytest.raises(UsageError, match=r"of cityscapes-19, .* of driving-11"):
        fada_deploy.evaluate("builtin", dataset)
    with pytest.raises(ValueError, match="predicted class 18"):
        confusion_matrix(np.uint8([0, 255]), np.uint8([18, 30]), 11)


def test_means_without_labeled_pixels_are_null() -> None:
    matrix = np.zeros((19, 19), np.int64)
    matrix[9, 9] = 7  # terrain, which the smaller label spaces do not have
    document = Scores(CITYSCAPES_19, matrix).to_dict()
    assert document["miou"] == 1.0
    assert set(document["means"].values()) == {None}
