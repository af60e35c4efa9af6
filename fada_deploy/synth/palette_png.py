"""Write label maps as palette PNGs (color type 3) like those of GTA5, which OpenCV cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.files import atomic_path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_palette_png(path: Path, indices: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    """Write indices (H, W) uint8 with a palette (256, 3) uint8 RGB. The write is atomic."""
    height, width = indices.shape
    # Every row starts with its filter type; 0 is no filter.
    rows = np.pad(indices, ((0, 0), (1, 0)))
    data = b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)),
            _chunk(b"IEND", b""),
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
