"""OverlayRenderer in a film's own planes gives the film that drawing in RGB gives, by rounding."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy import Segmenter
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.video import is_plain_yuv420p
from fada_deploy.runtime.kernels.loader import compiled
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.overlay.yuv import (
    overlay_planes,
    palette_planes,
    planes_of,
)
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers import save as sinks
from fada_deploy.runtime.writers.save import SaveOptions, save_results

# Cb, Cr and Y′ of ITU-R BT.601 and BT.709, written out once more.
MATRIX = {
    1: [[0.2126, 0.7152, 0.0722], [-0.114572, -0.385428, 0.5], [0.5, -0.454153, -0.045847]],
    6: [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
}


def smooth(size_hw: tuple[int, int]) -> np.ndarray:
    """A picture without hard edges, whose colors halve well."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def frame_of(rgb: np.ndarray, matrix: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=matrix
    )
    frame.colorspace, frame.color_range = matrix, 1
    return frame


@pytest.fixture(params=["opencv", "compiled"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything here by OpenCV alone and by the compiled kernels."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert compiled.wait()
    else:
        # A loader that is at work would set it in the middle of the test.
        compiled.wait()
        monkeypatch.setattr(compiled, "ready", None)


@pytest.mark.parametrize("matrix", [1, 6])
def test_the_tables_are_the_standards(matrix: int) -> None:
    found = palette_planes(CITYSCAPES_19.palette, matrix).astype(float)
    expected = np.array([[219], [224], [224]]) * (
        np.array(MATRIX[matrix]) @ (CITYSCAPES_19.palette / 255.0).T
    )
    np.testing.assert_allclose(found, expected + np.array([[16], [128], [128]]), atol=0.51)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_planes_are_blended(matrix: int, alpha: float) -> None:
    rgb, labels = smooth((96, 128)), toy.scene(0, (96, 128))[1]
    frame, tables = frame_of(rgb, matrix), palette_planes(toy.SPACE.palette, matrix)
    before = [plane.copy() for plane in planes_of(frame)]
    drawn = overlay_planes(frame, labels, tables, alpha)
    for table, under, found in zip(tables, before, planes_of(drawn), strict=True):
        color = table[labels].astype(float)
        if under.shape != labels.shape:
            color = color.reshape(48, 2, 64, 2).mean((1, 3))
        np.testing.assert_allclose(found, alpha * color + (1 - alpha) * under, atol=1.01)
    # The decoder still needs its own frame, unchanged.
    for plane, old in zip(planes_of(frame), before, strict=True):
        np.testing.assert_array_equal(plane, old)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("matrix", [1, 6])
def test_a_drawing_in_planes_is_the_drawing_in_rgb(matrix: int) -> None:
    frame = frame_of(smooth((540, 960)), matrix)
    rgb, labels = frame.to_ndarray(format="rgb24"), toy.scene(1, (540, 960))[1]
    result = Result(
        labels, rgb, toy.SPACE, 0.0, 0.0, "rgb", "s", 0, "0", 0, Fraction(1, 10), decoded=frame
    )
    in_planes = (
        OverlayRenderer(OverlayStyle(), toy.SPACE)
        .draw_for_film(result)
        .to_ndarray(format="rgb24")
        .astype(float)
    )
    in_rgb = OverlayRenderer(OverlayStyle(), toy.SPACE).draw(result).astype(float)
    assert np.abs(in_planes - in_rgb).mean() < 1.5
    # Away from where classes meet, whose colors are halved, and from letters.
    calm = np.ones(labels.shape, bool)
    calm[:300, :400] = False
    for edge in np.nonzero(np.diff(labels[0]))[0]:
        calm[:, max(0, edge - 3) : edge + 5] = False
    assert np.abs(in_planes - in_rgb)[calm].max() <= 6
    # Looks that need whole pictures are drawn in RGB.
    for look in (
        OverlayStyle(contours=True),
        OverlayStyle(beside=True),
        OverlayStyle(classes=(toy.SPACE.names[0],)),
    ):
        assert isinstance(OverlayRenderer(look, toy.SPACE).draw_for_film(result), np.ndarray)
    assert isinstance(
        OverlayRenderer(OverlayStyle(), toy.SPACE).draw_for_film(replace(result, decoded=None)),
        np.ndarray,
    )


@pytest.mark.parametrize("width", [2, 62, 250, 960])
def test_compiled_or_not_is_the_same(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Widths of whole blocks and not, lines with padding behind them, areas, single pixels and their mixture."""
    pytest.importorskip("numba")
    assert compiled.wait()
    rng = np.random.default_rng(width)
    frame = av.VideoFrame(width, 48, "yuv420p")
    for plane in planes_of(frame):
        plane[:] = rng.integers(0, 256, plane.shape)
    labels = rng.integers(0, 19, (48, width), np.uint8)
    labels[:32] = np.repeat(np.repeat(labels[:4], 8, 0), 5, 1)[:, :width]
    labels[:16] = 7
    labels.flags.writeable = False
    tables = palette_planes(CITYSCAPES_19.palette, 6)
    for alpha in (0.0, 0.3, 0.5, 0.9, 1.0):
        found = planes_of(overlay_planes(frame, labels, tables, alpha))
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "ready", None)
            expected = planes_of(overlay_planes(frame, labels, tables, alpha))
        for one, other in zip(found, expected, strict=True):
            off = np.abs(one.astype(int) - other)
            # A product that is half-way but for its last bit; at half opacity there are none.
            assert off.max() <= (alpha not in (0.0, 0.5, 1.0)) and off.mean() < 0.02


def test_labels_of_another_size_are_refused() -> None:
    """The kernel would read and write beyond its arrays."""
    compiled.wait()
    tables = palette_planes(CITYSCAPES_19.palette, 6)
    for size in ((46, 62), (50, 62), (47, 62), (48, 60)):
        with pytest.raises(cv2.error):
            overlay_planes(av.VideoFrame(62, 48, "yuv420p"), np.zeros(size, np.uint8), tables, 0.5)


def test_which_frames_can_be_drawn_in() -> None:
    assert is_plain_yuv420p(av.VideoFrame(64, 48, "yuv420p"))
    for width, kind in ((63, "yuv420p"), (64, "yuv420p10le"), (64, "rgb24")):
        assert not is_plain_yuv420p(av.VideoFrame(width, 48, kind))
    full, other = av.VideoFrame(64, 48, "yuv420p"), av.VideoFrame(64, 48, "yuv420p")
    full.color_range, other.colorspace = 2, 9
    assert not is_plain_yuv420p(full) and not is_plain_yuv420p(other)


@pytest.mark.parametrize("matrix", [1, 6])
def test_a_film_by_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: int) -> None:
    clip = tmp_path / "v.mp4"
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = matrix
        context.color_range = 1
        for i in range(4):
            out.mux(stream.encode(frame_of(np.roll(smooth((192, 320)), 8 * i, 1), matrix)))
        out.mux(stream.encode(None))

    def label(folder: str) -> list[np.ndarray]:
        with Segmenter(toy.color_model(tmp_path / "m.onnx")) as segmenter:
            list(
                save_results(
                    segmenter, open_sources([clip]), SaveOptions(tmp_path / folder, preset="medium")
                )
            )
        with av.open(str(tmp_path / folder / "overlay/v.mp4")) as made:
            assert int(made.streams.video[0].codec_context.colorspace) == (
                matrix if folder == "planes" else 1
            )
        return [rgb.astype(float) for _, rgb in toy.read_video(tmp_path / folder / "overlay/v.mp4")]

    in_planes = label("planes")
    monkeypatch.setattr(sinks.OverlayRenderer, "draw_for_film", sinks.OverlayRenderer.draw)
    in_rgb = label("rgb")
    assert len(in_planes) == len(in_rgb) == 4
    for a, b in zip(in_planes, in_rgb, strict=True):
        assert np.abs(a - b).mean() < 2.5
