"""The overlay equals the NumPy formula; the legend fits, lists the classes and picks its corner."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import toy

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, LabelClass, LabelSpace
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.overlay import legend as legend_module
from fada_deploy.runtime.overlay.blend import class_fractions, colorize, overlay
from fada_deploy.runtime.overlay.legend import Legend
from fada_deploy.runtime.overlay.region import Region
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import CORNERS, LEGEND_POSITIONS, OverlayStyle
from fada_deploy.runtime.result import Result

SKY, CAR = CITYSCAPES_19.names.index("sky"), CITYSCAPES_19.names.index("car")
SIZE = (540, 960)


def random_labels(size_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 19, size_hw, dtype=np.uint8)


def quadrant(corner: str, size_hw: tuple[int, int] = SIZE) -> tuple[slice, slice]:
    height, width = size_hw
    vertical, horizontal = corner.split("-")
    return (
        slice(0, height // 2) if vertical == "top" else slice(height // 2, height),
        slice(0, width // 2) if horizontal == "left" else slice(width // 2, width),
    )


def video_result(labels: np.ndarray, index: int = 0, *, source: str = "v.mp4") -> Result:
    frame = np.full((*labels.shape, 3), 128, np.uint8)
    return Result(
        labels, frame, CITYSCAPES_19, 0.0, 0.0, "rgb", source, index, "", index, Fraction(1, 10)
    )


def panel_of(result: Result, renderer: OverlayRenderer) -> Region:
    """Return the bounding box of what the legend changed in an image."""
    plain = OverlayRenderer(OverlayStyle(legend="none"), result.space).draw(result)
    rows, columns = np.nonzero((renderer.draw(result) != plain).any(-1))
    return Region(
        int(columns.min()),
        int(rows.min()),
        int(columns.max() - columns.min()) + 1,
        int(rows.max() - rows.min()) + 1,
    )


def test_colorize_uses_the_palette() -> None:
    labels = random_labels((33, 47))
    np.testing.assert_array_equal(
        colorize(labels, CITYSCAPES_19.palette), CITYSCAPES_19.palette[labels]
    )
    bgr = CITYSCAPES_19.palette[:, ::-1]
    np.testing.assert_array_equal(colorize(labels, bgr), bgr[labels])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay_blends_colors(alpha: float) -> None:
    labels = random_labels((20, 30))
    frame = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = alpha * CITYSCAPES_19.palette[labels].astype(float) + (1 - alpha) * frame
    np.testing.assert_allclose(
        overlay(frame, labels, CITYSCAPES_19.palette, alpha), expected, atol=0.51
    )


def test_contours_lie_only_between_classes() -> None:
    frame, labels = toy.scene(0)
    plain = overlay(frame, labels, toy.SPACE.palette, 0.5)
    lined = overlay(frame, labels, toy.SPACE.palette, 0.5, contours=True)
    assert sorted(set(np.nonzero((plain != lined).any(-1))[1])) == [32, 64, 96]


def test_classes_that_are_not_drawn_show_the_frame_and_share_one_contour() -> None:
    frame, labels = toy.scene(0)
    drawn = np.zeros(256, np.bool_)
    drawn[1] = True
    image = overlay(frame, labels, toy.SPACE.palette, 1.0, drawn=drawn)
    np.testing.assert_array_equal(
        image, np.where((labels == 1)[..., None], toy.SPACE.palette[1], frame)
    )
    lined = overlay(frame, labels, toy.SPACE.palette, 1.0, drawn=drawn, contours=True)
    edges = {32 * i for i in range(1, 4) if 1 in (labels[0, 32 * i - 1], labels[0, 32 * i])}
    assert set(np.nonzero((image != lined).any(-1))[1].tolist()) == edges


@pytest.mark.parametrize("implementation", ["opencv", "compiled"])
@pytest.mark.parametrize("size_hw", [(64, 100), (1, 1), (7, 9), (130, 257)])
def test_class_fractions(
    monkeypatch: pytest.MonkeyPatch, size_hw: tuple[int, int], implementation: str
) -> None:
    if implementation == "opencv":
        kernel_loader.wait()
        monkeypatch.setattr(kernel_loader, "ready", None)
    else:
        pytest.importorskip("numba")
        assert kernel_loader.wait()
    single, areas = random_labels(size_hw), random_labels(size_hw)
    areas[: size_hw[0] // 2] = 3
    read_only = areas.copy()
    read_only.flags.writeable = False
    for labels in (single, areas, areas[:, ::-1], read_only):
        expected = np.bincount(labels.ravel(), minlength=19) / labels.size
        np.testing.assert_allclose(class_fractions(labels, 19), expected)


def test_style_rejects_values_outside_the_allowed_ones() -> None:
    for alpha in (-0.1, 1.1):
        with pytest.raises(UsageError, match=str(alpha)):
            OverlayStyle(alpha)
    for legend in ("center", "", True):
        with pytest.raises(UsageError) as error:
            OverlayStyle(legend=legend)  # type: ignore[arg-type]
        assert all(position in str(error.value) for position in LEGEND_POSITIONS)
    with pytest.raises(UsageError, match="lorry"):
        OverlayRenderer(OverlayStyle(classes=("road", "lorry")), CITYSCAPES_19)


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("has_typeface", [True, False])
@pytest.mark.parametrize(
    "size", [(1080, 1920), (540, 960), (360, 480), (192, 320), (64, 300), (300, 64), (9, 9), (1, 1)]
)
def test_legend_stays_in_its_corner_and_shows_its_colors(
    size: tuple[int, int], has_typeface: bool, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_typeface and not legend_module._HAS_TYPEFACE:
        pytest.skip("this OpenCV has no typeface")
    monkeypatch.setattr(legend_module, "_HAS_TYPEFACE", has_typeface)
    image = np.full((*size, 3), 128, np.uint8)
    fractions = np.zeros(19)
    fractions[[0, 13]] = 0.7, 0.3
    legend = Legend(CITYSCAPES_19.names, CITYSCAPES_19.palette, size, position)
    legend.draw(image, np.zeros(size, np.uint8), fractions)
    codes = np.unique(image.astype(np.int64) @ (65_536, 256, 1))
    colors = {(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()}
    if min(size) >= 192:
        assert {(128, 64, 128), (0, 0, 142)} <= colors
        assert (244, 35, 232) not in colors
        for other in CORNERS:
            assert (image[quadrant(other, size)] != 128).any() == (other == position)
    else:
        assert colors == {(128, 128, 128)}


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("size", [(540, 960), (541, 963)])
def test_legend_lies_one_padding_from_the_edges(position: str, size: tuple[int, int]) -> None:
    """Compare with the region computed by hand for letters of 15 pixels and two lines."""
    letter, line_height, padding = 15, 23, 10
    labels = np.full(size, SKY, np.uint8)
    labels[quadrant("top-left", size)] = CAR
    result = video_result(labels)
    panel = panel_of(result, OverlayRenderer(OverlayStyle(legend=position), CITYSCAPES_19))
    names = max(legend_module._text_width(name, letter) for name in ("sky", "car"))
    width = 22 + names + legend_module._text_width("100%", letter) + 42
    height = 2 * line_height + padding
    left = padding if position.endswith("left") else size[1] - padding - width
    top = padding if position.startswith("top") else size[0] - padding - height
    assert panel == Region(left, top, width, height)


@pytest.mark.parametrize("size", [(192, 320), (128, 256)])
def test_legend_fits_the_default_sizes(size: tuple[int, int]) -> None:
    """Also with the longest names; the panel holds at least four lines."""
    for names in (["road", "car", "sky", "building"], ["traffic sign", "motorcycle", "train"]):
        labels = np.zeros(size, np.uint8)
        for i, name in enumerate(names):
            labels[:, i * size[1] // len(names) :] = CITYSCAPES_19.names.index(name)
        panel = panel_of(video_result(labels), OverlayRenderer(OverlayStyle(), CITYSCAPES_19))
        assert panel.height == 14 * len(names) + 6
        assert panel.width < 0.5 * size[1]


@pytest.mark.parametrize("legend", ["top-right", "auto"])
def test_warns_once_per_source_if_the_requested_legend_does_not_fit(
    legend: str, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = OverlayRenderer(OverlayStyle(legend=legend), CITYSCAPES_19)
    for source in ("a.mp4", "b.mp4"):
        for index in range(3):
            renderer.draw(video_result(np.zeros((40, 60), np.uint8), index, source=source))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (2 if legend != "auto" else 0)
    for source, message in zip(("a.mp4", "b.mp4"), messages, strict=False):
        assert message.startswith(f"{source}: ") and "60x40" in message


def test_legend_looks_the_same_in_every_corner() -> None:
    labels = np.full(SIZE, SKY, np.uint8)
    result = video_result(labels)
    panels = []
    for position in CORNERS:
        renderer = OverlayRenderer(OverlayStyle(legend=position), CITYSCAPES_19)
        region = panel_of(result, renderer)
        panels.append(renderer.draw(result)[region.slices])
    for panel in panels[1:]:
        np.testing.assert_array_equal(panel, panels[0])


def test_legend_none_draws_no_panel() -> None:
    result = video_result(random_labels(SIZE))
    image = OverlayRenderer(OverlayStyle(legend="none"), CITYSCAPES_19).draw(result)
    expected = overlay(result.frame, result.labels, CITYSCAPES_19.palette, 0.5)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("free_corner", CORNERS)
@pytest.mark.parametrize("hidden_class", ["car", "person", "pole", "traffic sign", "road"])
def test_auto_legend_takes_the_corner_without_important_classes(
    free_corner: str, hidden_class: str
) -> None:
    labels = np.full(SIZE, CITYSCAPES_19.names.index(hidden_class), np.uint8)
    labels[quadrant(free_corner)] = SKY
    panel = panel_of(video_result(labels), OverlayRenderer(OverlayStyle(), CITYSCAPES_19))
    vertical, horizontal = (part.start for part in panel.slices)
    rows, columns = quadrant(free_corner)
    assert rows.start <= vertical < rows.stop and columns.start <= horizontal < columns.stop


def test_auto_legend_counts_only_the_pixels_under_the_panel() -> None:
    """The top left has the most cars, but none of them where the panel would be."""
    labels = np.full(SIZE, SKY, np.uint8)
    for corner in CORNERS[1:]:
        rows, columns = quadrant(corner)
        labels[rows, columns][110:160, 200:280] = CAR
        edge_row = 20 if corner.startswith("top") else SIZE[0] - 21
        edge_column = 20 if corner.endswith("left") else SIZE[1] - 21
        labels[edge_row, edge_column] = CAR
    labels[120:270, 240:480] = CAR
    panel = panel_of(video_result(labels), OverlayRenderer(OverlayStyle(), CITYSCAPES_19))
    assert (panel.left, panel.top) == (10, 10)


def test_auto_legend_prefers_top_left_on_a_tie() -> None:
    for labels in (np.full(SIZE, SKY, np.uint8), np.full(SIZE, CAR, np.uint8)):
        panel = panel_of(video_result(labels), OverlayRenderer(OverlayStyle(), CITYSCAPES_19))
        assert (panel.left, panel.top) == (10, 10)


def test_auto_legend_works_without_the_names_of_cityscapes() -> None:
    classes = tuple(LabelClass(f"c{i}", i, i, (i, i, i)) for i in range(3))
    space = LabelSpace("other", classes)
    labels = np.zeros(SIZE, np.uint8)
    labels[quadrant("top-left")] = 1
    result = replace(video_result(labels), space=space)
    panel = panel_of(result, OverlayRenderer(OverlayStyle(), space))
    assert (panel.left, panel.top) == (10, 10)


def test_auto_legend_keeps_its_corner_for_the_source() -> None:
    """Later frames have cars in that corner; another source and an image choose on their own."""
    renderer = OverlayRenderer(OverlayStyle(), CITYSCAPES_19)
    first = np.full(SIZE, CAR, np.uint8)
    first[quadrant("bottom-right")] = SKY
    later = np.full(SIZE, SKY, np.uint8)
    later[quadrant("bottom-right")] = CAR
    tops = [panel_of(video_result(first, 0), renderer).left]
    tops += [panel_of(video_result(later, i), renderer).left for i in (1, 2)]
    assert tops[0] > SIZE[1] // 2 and len(set(tops)) == 1
    # A change of the frame size in the middle of a video keeps the corner, too.
    smaller = video_result(later[::2, ::2][:, :400].copy(), 3)
    assert panel_of(smaller, renderer).left > 200
    assert panel_of(video_result(later, 4, source="other.mp4"), renderer).left == 10
    image = replace(video_result(later), pts=None)
    assert panel_of(image, renderer).left == 10
    renderer.forget("v.mp4")
    assert panel_of(video_result(later, 5), renderer).left == 10


def test_legend_keeps_the_lines_of_earlier_classes() -> None:
    legend = Legend(CITYSCAPES_19.names, CITYSCAPES_19.palette, SIZE)
    bottoms = []
    for present in ([0, 1, 2], [0, 1], [0, 1, 2]):
        image = np.zeros((*SIZE, 3), np.uint8)
        fractions = np.zeros(19)
        fractions[present] = 1 / len(present)
        legend.draw(image, np.zeros(SIZE, np.uint8), fractions)
        bottoms.append(int(np.nonzero(image.any((1, 2)))[0].max()))
    assert len(set(bottoms)) == 1


def test_even_region_surrounds_a_region() -> None:
    assert Region(3, 4, 5, 6).even() == Region(2, 4, 6, 6)
    assert Region(2, 5, 5, 5).even() == Region(2, 4, 6, 6)
    assert Region(0, 0, 2, 2).even() == Region(0, 0, 2, 2)


def test_renderer_draws_the_same_in_rgb_and_bgr() -> None:
    frame, labels = toy.scene(0, SIZE)
    # Scenes are painted in the palette's colors; this frame must differ from the legend's swatches.
    frame = frame // 3 + 41
    rgb = Result(labels, frame, toy.SPACE, 0.0, 0.0)
    bgr = Result(labels, frame[..., ::-1], toy.SPACE, 0.0, 0.0, color="bgr")
    style = OverlayStyle(0.3, "top-left", contours=True, classes=(toy.SPACE.names[0],))
    image = OverlayRenderer(style, toy.SPACE).draw(rgb)
    np.testing.assert_array_equal(OverlayRenderer(style, toy.SPACE).draw(bgr)[..., ::-1], image)
    # The panel lists the selected class only.
    panel = image[:80, :300].reshape(-1, 3)
    others = [c for i, c in enumerate(toy.SPACE.palette[: toy.SPACE.num_classes]) if i]
    assert (panel == toy.SPACE.palette[0]).all(1).any()
    assert not any((panel == c).all(1).any() for c in others)


def test_side_by_side_puts_the_frame_on_the_left() -> None:
    result = video_result(random_labels(SIZE))
    image = OverlayRenderer(OverlayStyle(side_by_side=True), CITYSCAPES_19).draw(result)
    np.testing.assert_array_equal(image[:, : SIZE[1]], result.frame)
    alone = OverlayRenderer(OverlayStyle(), CITYSCAPES_19).draw(result)
    np.testing.assert_array_equal(image[:, SIZE[1] :], alone)
