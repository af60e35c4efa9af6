"""What a caller does with a `Result`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from fada_deploy import MissingExtraError, Result, UsageError
from fada_deploy.common.images import read_raw, read_rgb
from fada_deploy.common.label_space import CITYSCAPES_19


def make_result(color: str = "rgb", confidence: bool = False) -> Result:
    labels = np.zeros((8, 12), np.uint8)
    labels[:, 6:] = CITYSCAPES_19.index_of("car")
    labels[0, 0] = 255
    frame = np.full((8, 12, 3), (200, 100, 50) if color == "rgb" else (50, 100, 200), np.uint8)
    probabilities = np.full((8, 12), 0.75, np.float32) if confidence else None
    return Result(labels, frame, CITYSCAPES_19, 0.0, 0.01, color=color, confidence=probabilities)


def test_fractions_by_class_name() -> None:
    fractions = make_result().fractions
    assert fractions["car"] == pytest.approx(0.5)
    assert fractions["road"] == pytest.approx(47 / 96)
    assert list(fractions) == list(CITYSCAPES_19.names)


def test_results_compare_and_hash_by_identity() -> None:
    first, second = make_result(), make_result()
    assert first == first and first != second and len({first, second}) == 2


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_saves_the_same_overlay_in_either_channel_order(tmp_path: Path, color: str) -> None:
    result = make_result(color)
    saved = read_rgb(result.save(tmp_path / "new" / f"{color}.png"))
    expected = 0.5 * np.array(CITYSCAPES_19.palette[13]) + 0.5 * np.array((200, 100, 50))
    np.testing.assert_allclose(saved[4, 9], expected, atol=1)


def test_saves_masks_and_colors(tmp_path: Path) -> None:
    result = make_result()
    mask = read_raw(result.save(tmp_path / "mask.png", kind="mask"))
    assert mask[4, 9] == 13 and mask[4, 1] == 0 and mask[0, 0] == 255
    color = read_rgb(result.save(tmp_path / "color.png", kind="color"))
    assert tuple(color[4, 9]) == (0, 0, 142)
    jpeg = cv2.imread(str(result.save(tmp_path / "overlay.jpg")))
    assert jpeg.shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("name", "kind", "fact"),
    [
        ("a.jpg", "mask", r"\.png"),
        ("a.png", "video", "overlay, mask, color"),
        ("a.bmp", "overlay", r"\.jpg"),
    ],
)
def test_save_rejects_what_it_cannot_write(tmp_path: Path, name: str, kind: str, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        make_result().save(tmp_path / name, kind=kind)
    assert not list(tmp_path.iterdir())


def test_supervision_detections_have_one_mask_per_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the constructor's arguments; see below for the real package."""
    package = ModuleType("supervision")
    package.Detections = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", package)
    monkeypatch.setattr("fada_deploy.runtime.result.require_package", lambda package, extra: None)
    detections = make_result(confidence=True).to_supervision()
    assert detections.class_id.tolist() == [0, 13]
    assert detections.data["class_name"].tolist() == ["road", "car"]
    assert detections.xyxy.tolist() == [[0, 0, 6, 8], [6, 0, 12, 8]]
    assert detections.mask.sum(axis=(1, 2)).tolist() == [47, 48]
    assert detections.confidence == pytest.approx([0.75, 0.75])


def test_supervision_accepts_the_detections() -> None:
    supervision = pytest.importorskip("supervision")
    detections = make_result().to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 2
    assert detections.area.tolist() == [47, 48]


def test_missing_supervision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.common.system.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="supervision"):
        make_result().to_supervision()
