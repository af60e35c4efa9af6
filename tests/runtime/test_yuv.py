"""Overlays drawn in YUV planes equal overlays drawn in RGB up to rounding."""

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
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.overlay.region import Region
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import CORNERS, OverlayStyle
from fada_deploy.runtime.overlay.yuv import (
    overlay_yuv,
    palette_to_yuv,
    read_region,
    write_region,
    yuv_planes,
)
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import SaveOptions, save_results

# Y′, Cb and Cr rows of ITU-R BT.709 (1) and BT.601 (6).
MATRIX = {
    1: [[0.2126, 0.7152, 0.0722], [-0.114572, -0.385428, 0.5], [0.5, -0.454153, -0.045847]],
    6: [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
}


def smooth(size_hw: tuple[int, int]) -> np.ndarray:
    """Return an image without hard edges, which chroma subsampling hardly changes."""
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
    """Run the test with OpenCV only and with the compiled kernels."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert kernel_loader.wait()
    else:
        # A background thread that is still loading would set `ready` during the test.
        kernel_loader.wait()
        monkeypatch.setattr(kernel_loader, "ready", None)


@pytest.mark.parametrize("matrix", [1, 6])
def test_palette_tables_follow_the_standards(matrix: int) -> None:
    tables = palette_to_yuv(CITYSCAPES_19.palette, matrix).astype(float)
    expected = np.array([[219], [224], [224]]) * (
        np.array(MATRIX[matrix]) @ (CITYSCAPES_19.palette / 255.0).T
    )
    np.testing.assert_allclose(tables, expected + np.array([[16], [128], [128]]), atol=0.51)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_overlay_yuv_blends_every_plane(matrix: int, alpha: float) -> None:
    rgb, labels = smooth((96, 128)), toy.scene(0, (96, 128))[1]
    frame, tables = frame_of(rgb, matrix), palette_to_yuv(toy.SPACE.palette, matrix)
    before = [plane.copy() for plane in yuv_planes(frame)]
    drawn = overlay_yuv(frame, labels, tables, alpha)
    for table, under, blended in zip(tables, before, yuv_planes(drawn), strict=True):
        color = table[labels].astype(float)
        if under.shape != labels.shape:
            color = color.reshape(48, 2, 64, 2).mean((1, 3))
        np.testing.assert_allclose(blended, alpha * color + (1 - alpha) * under, atol=1.01)
    # The input frame belongs to the decoder and must not change.
    for plane, old in zip(yuv_planes(frame), before, strict=True):
        np.testing.assert_array_equal(plane, old)


def decoded_result(matrix: int) -> Result:
    frame = frame_of(smooth((540, 960)), matrix)
    rgb, labels = frame.to_ndarray(format="rgb24"), toy.scene(1, (540, 960))[1]
    return Result(
        labels, rgb, toy.SPACE, 0.0, 0.0, "rgb", "s", 0, "0", 0, Fraction(1, 10), decoded=frame
    )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("legend", ["auto", *CORNERS, "none"])
@pytest.mark.parametrize("matrix", [1, 6])
def test_yuv_drawing_equals_rgb_drawing(matrix: int, legend: str) -> None:
    result, style = decoded_result(matrix), OverlayStyle(legend=legend)
    in_yuv = OverlayRenderer(style, toy.SPACE).draw_for_video(result).to_ndarray(format="rgb24")
    in_rgb = OverlayRenderer(style, toy.SPACE).draw(result)
    error = np.abs(in_yuv.astype(float) - in_rgb)
    assert error.mean() < 1.5
    # Compare pixels away from class boundaries and the panel, whose chroma is subsampled.
    plain = OverlayRenderer(OverlayStyle(legend="none"), toy.SPACE).draw(result)
    panel = (in_rgb != plain).any(-1)
    calm = cv2.dilate(panel.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    for edge in np.nonzero(np.diff(result.labels[0]))[0]:
        calm[:, max(0, edge - 3) : edge + 5] = False
    assert error[calm].max() <= 6
    # Inside the panel only the edges of letters and swatches differ.
    if legend != "none":
        assert panel.any() and error[panel].mean() < 12


@pytest.mark.parametrize("legend", CORNERS)
def test_yuv_legend_changes_its_region_only(legend: str) -> None:
    """Outside the region of the panel, the planes are those of a drawing without a legend."""
    result = decoded_result(6)
    planes = {}
    for position in (legend, "none"):
        drawn = OverlayRenderer(OverlayStyle(legend=position), toy.SPACE).draw_for_video(result)
        planes[position] = [plane.copy() for plane in yuv_planes(drawn)]
    rgb = OverlayRenderer(OverlayStyle(legend=legend), toy.SPACE).draw(result)
    plain = OverlayRenderer(OverlayStyle(legend="none"), toy.SPACE).draw(result)
    rows, columns = np.nonzero((rgb != plain).any(-1))
    left, top = int(columns.min()), int(rows.min())
    region = Region(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top).even()
    for changed, before, divisor in zip(planes[legend], planes["none"], (1, 2, 2), strict=True):
        rows, columns = np.nonzero(changed != before)
        assert region.top // divisor <= rows.min()
        assert rows.max() < (region.top + region.height) // divisor
        assert region.left // divisor <= columns.min()
        assert columns.max() < (region.left + region.width) // divisor
        # The panel darkens everything, so the change reaches all four edges of the region.
        assert rows.max() - rows.min() + 1 >= region.height // divisor - 1
        assert columns.max() - columns.min() + 1 >= region.width // divisor - 1


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize(
    "region", [Region(0, 0, 64, 48), Region(22, 10, 40, 30), Region(2, 4, 2, 2)]
)
def test_region_round_trip(matrix: int, region: Region) -> None:
    """Reading converts like the full frame; writing one color is exact and stays inside."""
    frame = frame_of(smooth((48, 64)), matrix)
    whole = frame.to_ndarray(format="rgb24").astype(int)
    part = read_region(frame, region)
    assert part.shape == (region.height, region.width, 3)
    # Chroma is interpolated, so pixels at the edges of a region differ slightly.
    assert np.abs(whole[region.slices] - part).mean() < 4
    before = [plane.copy() for plane in yuv_planes(frame)]
    write_region(frame, region, np.full_like(part, (200, 30, 90)))
    expected = palette_to_yuv(np.full((256, 3), (200, 30, 90), np.uint8), matrix)[:, 0]
    for plane, old, value, divisor in zip(
        yuv_planes(frame), before, expected, (1, 2, 2), strict=True
    ):
        inside = np.zeros(plane.shape, bool)
        rows, columns = (slice(s.start // divisor, s.stop // divisor) for s in region.slices)
        inside[rows, columns] = True
        assert np.abs(plane[inside].astype(int) - int(value)).max() <= 1
        np.testing.assert_array_equal(plane[~inside], old[~inside])


def test_other_styles_are_drawn_in_rgb() -> None:
    result = decoded_result(6)
    for style in (
        OverlayStyle(contours=True),
        OverlayStyle(side_by_side=True),
        OverlayStyle(classes=(toy.SPACE.names[0],)),
    ):
        assert isinstance(OverlayRenderer(style, toy.SPACE).draw_for_video(result), np.ndarray)
    renderer = OverlayRenderer(OverlayStyle(), toy.SPACE)
    assert isinstance(renderer.draw_for_video(replace(result, decoded=None)), np.ndarray)


@pytest.mark.parametrize("width", [2, 62, 250, 960])
def test_compiled_equals_opencv(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Cover partial blocks, padded lines, uniform areas, single pixels and mixtures."""
    pytest.importorskip("numba")
    assert kernel_loader.wait()
    rng = np.random.default_rng(width)
    frame = av.VideoFrame(width, 48, "yuv420p")
    for plane in yuv_planes(frame):
        plane[:] = rng.integers(0, 256, plane.shape)
    labels = rng.integers(0, 19, (48, width), np.uint8)
    labels[:32] = np.repeat(np.repeat(labels[:4], 8, 0), 5, 1)[:, :width]
    labels[:16] = 7
    labels.flags.writeable = False
    tables = palette_to_yuv(CITYSCAPES_19.palette, 6)
    for alpha in (0.0, 0.3, 0.5, 0.9, 1.0):
        compiled = yuv_planes(overlay_yuv(frame, labels, tables, alpha))
        with monkeypatch.context() as patch:
            patch.setattr(kernel_loader, "ready", None)
            expected = yuv_planes(overlay_yuv(frame, labels, tables, alpha))
        for one, other in zip(compiled, expected, strict=True):
            error = np.abs(one.astype(int) - other)
            # Products that are almost halfway may round differently; alpha 0.5 has none.
            assert error.max() <= (alpha not in (0.0, 0.5, 1.0)) and error.mean() < 0.02


def test_rejects_labels_of_another_size() -> None:
    """The kernel has no bounds checks and would read and write beyond its arrays."""
    kernel_loader.wait()
    tables = palette_to_yuv(CITYSCAPES_19.palette, 6)
    for size in ((46, 62), (50, 62), (47, 62), (48, 60)):
        with pytest.raises(cv2.error):
            overlay_yuv(av.VideoFrame(62, 48, "yuv420p"), np.zeros(size, np.uint8), tables, 0.5)


def test_yuv_drawing_needs_plain_yuv420p() -> None:
    assert is_plain_yuv420p(av.VideoFrame(64, 48, "yuv420p"))
    for width, kind in ((63, "yuv420p"), (64, "yuv420p10le"), (64, "rgb24")):
        assert not is_plain_yuv420p(av.VideoFrame(width, 48, kind))
    full, other = av.VideoFrame(64, 48, "yuv420p"), av.VideoFrame(64, 48, "yuv420p")
    full.color_range, other.colorspace = 2, 9
    assert not is_plain_yuv420p(full) and not is_plain_yuv420p(other)


@pytest.mark.parametrize("matrix", [1, 6])
def test_videos_drawn_in_yuv_and_rgb_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: int
) -> None:
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
                    segmenter,
                    open_sources([clip]),
                    SaveOptions(
                        tmp_path / folder, x264_preset="medium", style=OverlayStyle(legend="none")
                    ),
                )
            )
        with av.open(str(tmp_path / folder / "overlay/v.mp4")) as made:
            assert int(made.streams.video[0].codec_context.colorspace) == (
                matrix if folder == "yuv" else 1
            )
        return [rgb.astype(float) for _, rgb in toy.read_video(tmp_path / folder / "overlay/v.mp4")]

    in_yuv = label("yuv")
    monkeypatch.setattr(OverlayRenderer, "draw_for_video", OverlayRenderer.draw)
    in_rgb = label("rgb")
    assert len(in_yuv) == len(in_rgb) == 4
    for a, b in zip(in_yuv, in_rgb, strict=True):
        assert np.abs(a - b).mean() < 2.5
