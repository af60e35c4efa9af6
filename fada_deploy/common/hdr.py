"""Convert HDR video (HLG or PQ, BT.2020) to the SDR colors that networks are trained on.

Phones record HLG or PQ. Read as if they were SDR, such frames look dull. Each color is converted by
a table: transfer function, tone curve, BT.2020 to BT.709 primaries, gamma.
"""

from __future__ import annotations

import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Values of FFmpeg's AVColorTransferCharacteristic → name.
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}

# Luminance in cd/m² of the brightest HDR color that keeps detail, and of white in SDR (ITU-R
# BT.2408: white of graphics and of paper).
_PEAK, _WHITE = 1000.0, 203.0
_GAMMA = 2.4
# Weights of luminance in BT.2020, and its primaries in those of BT.709 (ITU-R BT.2087).
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)
_TABLE_SIZE = 33
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# Filter graphs are not thread-safe, so each thread has its own.
_per_thread = threading.local()


def is_hdr(frame: Any) -> bool:
    """Return whether a decoded PyAV frame has an HDR transfer function."""
    return int(frame.color_trc) in HDR_TRANSFERS


def tone_mapped_rgb(frame: Any) -> NDArray[np.uint8]:
    """Return a decoded HDR frame of PyAV as (H, W, 3) uint8 RGB in SDR colors."""
    graphs = _per_thread.__dict__.setdefault("graphs", {})
    key = (
        frame.format.name, frame.width, frame.height, int(frame.color_trc), int(frame.colorspace),
        int(frame.color_range),
    )  # fmt: skip
    if key not in graphs:
        graphs.clear()
        graphs[key] = _make_graph(frame)
    graph = graphs[key]
    graph.push(frame)
    return np.asarray(graph.pull().to_ndarray(format="rgb24"), np.uint8)


def sdr_colors(signal: NDArray[np.float64], transfer: str) -> NDArray[np.float64]:
    """Return the SDR signals (…, 3) in 0…1 of HDR signals (…, 3) in 0…1.

    `transfer` is "PQ" (SMPTE ST 2084) or "HLG" (ITU-R BT.2100, for a display of 1,000 cd/m²). The
    tone curve is that of ITU-R BT.2390, on the largest of the three components, so that hues stay.
    """
    nits = _pq_to_nits(signal) if transfer == "PQ" else _hlg_to_nits(signal)
    largest = nits.max(axis=-1, keepdims=True)
    mapped = nits * (_tone_curve(largest) / np.maximum(largest, 1e-6))
    linear = (mapped / _WHITE) @ _TO_BT709.T
    return np.asarray(linear.clip(0, 1) ** (1 / _GAMMA))


def _pq_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    power = signal ** (1 / _PQ_M2)
    ratio = np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)
    return np.asarray(10_000 * ratio ** (1 / _PQ_M1))


def _nits_to_pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    power = (nits / 10_000) ** _PQ_M1
    return np.asarray(((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2)


def _hlg_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    # The gamma of the whole system at 1,000 cd/m² is 1.2.
    luminance = (scene @ _LUMA_2020)[..., None]
    return np.asarray(_PEAK * luminance**0.2 * scene)


def _tone_curve(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compress 0…_PEAK to 0…_WHITE: the identity in the dark, a Hermite spline above."""
    peak = _nits_to_pq(np.array(_PEAK))
    value = np.minimum(_nits_to_pq(nits) / peak, 1)
    highest = _nits_to_pq(np.array(_WHITE)) / peak
    knee = 1.5 * highest - 0.5
    t = ((value - knee) / (1 - knee)).clip(0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * highest
    )
    return _pq_to_nits(np.where(value < knee, value, spline) * peak)


@cache
def _table(transfer: str) -> str:
    """Return a table of `sdr_colors` in the .cube format; red varies fastest."""
    levels = np.linspace(0, 1, _TABLE_SIZE)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
    colors = sdr_colors(np.stack([red, green, blue], axis=-1), transfer).reshape(-1, 3)
    lines = "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in colors)
    return f"LUT_3D_SIZE {_TABLE_SIZE}\n{lines}\n"


def _make_graph(frame: Any) -> Any:
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.cube"
        path.write_text(_table(HDR_TRANSFERS[int(frame.color_trc)]), "ascii")
        table = graph.add("lut3d", file=str(path), interp="tetrahedral")
        rgb = graph.add("format", "rgb24")
        sink = graph.add("buffersink")
        source.link_to(table)
        table.link_to(rgb)
        rgb.link_to(sink)
        graph.configure()
    return graph
