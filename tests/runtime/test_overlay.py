"""OverlayRenderer equals the plain NumPy formula; the legend fits and tells the classes."""

from __future__ import annotations

import numpy as np
import pytest
import toy

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.runtime.kernels.loader import compiled
from fada_deploy.runtime.overlay import legend as drawing
from fada_deploy.runtime.overlay.blend import class_fractions, colorize, overlay
from fada_deploy.runtime.overlay.legend import Legend
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.result import Result


def random_labels(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 19, size, dtype=np.uint8)


def test_colors_are_the_palette() -> None:
    labels = random_labels((33, 47))
    np.testing.assert_array_equal(
        colorize(labels, CITYSCAPES_19.palette), CITYSCAPES_19.palette[labels]
    )
    bgr = CITYSCAPES_19.palette[:, ::-1]
    np.testing.assert_array_equal(colorize(labels, bgr), bgr[labels])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_blending(alpha: float) -> None:
    labels = random_labels((20, 30))
    frame = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = alpha * CITYSCAPES_19.palette[labels].astype(float) + (1 - alpha) * frame
    np.testing.assert_allclose(
        overlay(frame, labels, CITYSCAPES_19.palette, alpha), expected, atol=0.51
    )


def test_contours_lie_between_classes_only() -> None:
    frame, labels = toy.scene(0)
    plain = overlay(frame, labels, toy.SPACE.palette, 0.5)
    lined = overlay(frame, labels, toy.SPACE.palette, 0.5, contours=True)
    assert sorted(set(np.nonzero((plain != lined).any(-1))[1])) == [32, 64, 96]


@pytest.mark.parametrize("implementation", ["opencv", "compiled"])
@pytest.mark.parametrize("size_hw", [(64, 100), (1, 1), (7, 9), (130, 257)])
def test_fractions(
    monkeypatch: pytest.MonkeyPatch, size_hw: tuple[int, int], implementation: str
) -> None:
    if implementation == "opencv":
        compiled.wait()
        monkeypatch.setattr(compiled, "ready", None)
    else:
        pytest.importorskip("numba")
        assert compiled.wait()
    single, areas = random_labels(size_hw), random_labels(size_hw)
    areas[: size_hw[0] // 2] = 3
    locked = areas.copy()
    locked.flags.writeable = False
    for labels in (single, areas, areas[:, ::-1], locked):
        expected = np.bincount(labels.ravel(), minlength=19) / labels.size
        np.testing.assert_allclose(class_fractions(labels, 19), expected)


@pytest.mark.parametrize("has_type", [True, False])
@pytest.mark.parametrize(
    "size", [(1080, 1920), (540, 960), (360, 480), (192, 320), (64, 300), (300, 64), (9, 9), (1, 1)]
)
def test_a_legend_stays_inside_and_shows_its_colors(
    size: tuple[int, int], has_type: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_type and not drawing._HAS_TYPE:
        pytest.skip("this OpenCV has no typeface")
    monkeypatch.setattr(drawing, "_HAS_TYPE", has_type)
    picture = np.full((*size, 3), 128, np.uint8)
    fractions = np.zeros(19)
    fractions[[0, 13]] = 0.7, 0.3
    Legend(CITYSCAPES_19.names, CITYSCAPES_19.palette, size).draw(picture, fractions)
    colors = {tuple(int(v) for v in c) for c in np.unique(picture.reshape(-1, 3), axis=0)}
    if min(size) >= 360:
        assert {(128, 64, 128), (0, 0, 142)} <= colors
        assert (244, 35, 232) not in colors
        assert (picture[:, size[1] // 2 :] == 128).all()
    else:
        assert colors == {(128, 128, 128)}


def test_a_legend_keeps_the_classes_it_has_shown() -> None:
    legend = Legend(CITYSCAPES_19.names, CITYSCAPES_19.palette, (540, 960))
    heights = []
    for present in ([0, 1, 2], [0, 1], [0, 1, 2]):
        picture = np.zeros((540, 960, 3), np.uint8)
        fractions = np.zeros(19)
        fractions[present] = 1 / len(present)
        legend.draw(picture, fractions)
        heights.append(int(np.nonzero(picture.any((1, 2)))[0].max()))
    assert len(set(heights)) == 1


def test_classes_that_are_not_shown_are_bare_frame_and_one_region() -> None:
    frame, labels = toy.scene(0)
    shown = np.zeros(256, np.bool_)
    shown[1] = True
    picture = overlay(frame, labels, toy.SPACE.palette, 1.0, shown=shown)
    np.testing.assert_array_equal(
        picture, np.where((labels == 1)[..., None], toy.SPACE.palette[1], frame)
    )
    lined = overlay(frame, labels, toy.SPACE.palette, 1.0, shown=shown, contours=True)
    edges = {32 * i for i in range(1, 4) if 1 in (labels[0, 32 * i - 1], labels[0, 32 * i])}
    assert set(np.nonzero((picture != lined).any(-1))[1].tolist()) == edges


def test_a_drawing_is_the_result_s_own_overlay_in_either_order() -> None:
    frame, labels = toy.scene(0, (540, 960))
    # Scenes are painted in the palette; these are not.
    frame = frame // 3 + 41
    rgb = Result(labels, frame, toy.SPACE, 0.0, 0.0)
    bgr = Result(labels, frame[..., ::-1], toy.SPACE, 0.0, 0.0, color="bgr")
    look = OverlayStyle(0.3, contours=True, classes=(toy.SPACE.names[0],))
    drawn = OverlayRenderer(look, toy.SPACE).draw(rgb)
    expected = rgb.overlay(0.3, legend=True, contours=True, classes=look.classes)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(OverlayRenderer(look, toy.SPACE).draw(bgr)[..., ::-1], expected)
    # The panel names what is colored and nothing else.
    panel = drawn[:80, :300].reshape(-1, 3)
    others = [c for i, c in enumerate(toy.SPACE.palette[: toy.SPACE.num_classes]) if i]
    assert (panel == toy.SPACE.palette[0]).all(1).any() and not any(
        (panel == c).all(1).any() for c in others
    )
