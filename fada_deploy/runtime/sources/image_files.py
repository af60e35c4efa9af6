"""Whether an image file is complete, or still being written or truncated."""

from __future__ import annotations

import os
from pathlib import Path

# Last bytes of a complete file. Some versions of OpenCV fill the missing part of a truncated JPEG
# with gray without an error, so decoding alone does not detect it.
_JPEG_END = b"\xff\xd9"
_LAST_BYTES = {".png": b"IEND\xaeB`\x82", ".jpg": _JPEG_END, ".jpeg": _JPEG_END}
_TAIL_BYTES = 4096
_JPEG_START, _START_OF_SCAN = b"\xff\xd8", b"\xda"
# JPEG markers without a length field: restarts, start of image, and an obsolete one (TEM).
_WITHOUT_LENGTH = frozenset(bytes([marker]) for marker in (*range(0xD0, 0xD9), 0x01))


def has_file_end(path: Path) -> bool:
    """Return whether a file ends like a complete PNG or JPEG; True for other formats.

    Zeros may follow the end, because some cameras pad their files.
    """
    end = _LAST_BYTES.get(path.suffix.lower(), b"")
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().rstrip(b"\0").endswith(end)


def is_truncated_jpeg(path: Path) -> bool:
    """Return whether a JPEG has no end marker after the start of its scan.

    Embedded previews have end markers of their own, but they come before the scan. False for files
    of other formats.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    data, position = path.read_bytes(), 0
    if not data.startswith(_JPEG_START):
        return False
    # Header segments up to the start of the scan: 0xff (repeated any number of times), a marker
    # byte, and, for most markers, a length.
    while (
        data[position : position + 1] == b"\xff"
        and data[position + 1 : position + 2] != _START_OF_SCAN
    ):
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
    return _JPEG_END not in data[position:]
