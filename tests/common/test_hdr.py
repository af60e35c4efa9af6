"""HDR colors in SDR: levels that the ITU's reports name, and decoded videos."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fada_deploy.common.hdr import sdr_colors, tone_mapped_rgb
from fada_deploy.common.video import open_video, upright_rgb

# Primaries of BT.709 in those of BT.2020 (ITU-R BT.2087, table 1).
FROM_BT709 = np.array(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
COLOR_TRC = {"PQ": 16, "HLG": 18}


def pq(nits: np.ndarray) -> np.ndarray:
    """Return the PQ signal of luminances (SMPTE ST 2084)."""
    y = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def write_video(path: Path, levels: np.ndarray, transfer: str) -> Path:
    """Write one lossless 10-bit frame of the YCbCr levels (H, W, 3)."""
    height, width, _ = levels.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            COLOR_TRC[transfer], 9, 9, 1,
        )  # fmt: skip
        frame = av.VideoFrame(width, height, "yuv444p10le")
        for plane, values in zip(frame.planes, np.moveaxis(levels, -1, 0), strict=True):
            rows = np.zeros((height, plane.line_size // 2), "<u2")
            rows[:, :width] = values
            plane.update(rows.tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    """Return the 10-bit YCbCr levels of BT.2020 signals (…, 3), limited range."""
    luma = rgb @ [0.2627, 0.6780, 0.0593]
    blue, red = (rgb[..., 2] - luma) / 1.8814, (rgb[..., 0] - luma) / 1.4746
    return np.stack([64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red], -1).round()


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_levels_of_the_report(transfer: str) -> None:
    """ITU-R BT.2408: 38 % is 18 % gray (26 cd/m²) in both; white, 203 cd/m², is 58 % and 75 %."""
    white = 0.58 if transfer == "PQ" else 0.75
    gray, bright, black = sdr_colors(np.array([[0.38] * 3, [white] * 3, [0.0] * 3]), transfer)
    assert gray == pytest.approx((26 / 203) ** (1 / 2.4), abs=0.01) and not black.any()
    assert (bright > 0.8).all() and (bright < 1).all()
    ramp = sdr_colors(np.linspace(0, 1, 1001)[:, None].repeat(3, 1), transfer)
    assert (np.diff(ramp, axis=0) > -1e-9).all() and ramp[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_dark_colors_of_bt709_stay(primary: int) -> None:
    color = np.full(3, 2.0)
    color[primary] = 20.0
    sdr = sdr_colors(pq(FROM_BT709 @ color), "PQ")
    np.testing.assert_allclose(sdr, (color / 203) ** (1 / 2.4), atol=0.005)


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_decoded_frames(transfer: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    signals = rng.uniform(0.1, 0.6, (16, 24, 3))
    path = write_video(tmp_path / "v.mkv", ycbcr(signals), transfer)
    container, stream = open_video(path)
    with container:
        (frame,) = container.decode(stream)
    expected = 255 * sdr_colors(signals, transfer)
    error = np.abs(upright_rgb(frame) - expected)
    # The colors between the points of the table are interpolated, which shows near the borders of
    # the gamut.
    assert error.mean() < 1 and np.percentile(error, 98) < 6
    plain = np.abs(frame.to_ndarray(format="rgb24") - expected)
    assert plain.mean() > 8


def test_threads_and_sizes_do_not_share_a_graph(tmp_path: Path) -> None:
    frames = []
    for size in ((16, 24), (8, 32)):
        levels = ycbcr(np.full((*size, 3), 0.38))
        container, stream = open_video(write_video(tmp_path / f"{size[0]}.mkv", levels, "HLG"))
        with container:
            frames += list(container.decode(stream))
    shapes: list[tuple[int, ...]] = []

    def convert() -> None:
        shapes.extend(tone_mapped_rgb(frame).shape for frame in (*frames, *frames))

    threads = [threading.Thread(target=convert) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shapes) == [(8, 32, 3)] * 4 + [(16, 24, 3)] * 4
