"""Addresses of live sources: streams, cameras and the standard input."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

# The standard input, as in most command-line tools.
PIPE = "-"
SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")
_CAMERA = "camera:"


def is_live_address(address: str) -> bool:
    """Return whether a command-line argument is a stream, a camera, or `-` for the standard input.

    A camera is `camera:N`, or just the number N if no file or folder has that name.
    """
    if address == PIPE or address.startswith(SCHEMES):
        return True
    if address.startswith(_CAMERA):
        return camera_number(address) is not None
    return address.isdecimal() and not Path(address).exists()


def camera_number(address: str) -> int | None:
    """Return N for `camera:N` or `N`, None for any other address."""
    number = address.removeprefix(_CAMERA)
    return int(number) if number.isdecimal() else None


def display_name(address: str) -> str:
    """Return the name of a live source for logs, documents and file names; it contains no secret.

    User names, passwords and the query, which often holds a token, are left out. Four hexadecimal
    digits tell addresses apart that differ in their query only.
    """
    if address == PIPE:
        return "pipe"
    if (number := camera_number(address)) is not None:
        return f"camera-{number}"
    # A password may contain "/" or "@", so the host begins behind the last "@" that can end it.
    scheme, _, rest = address.partition("://")
    rest, question, query = rest.partition("?")
    if "@" in rest.partition("/")[0]:
        netloc, slash, path = rest.partition("/")
        rest = netloc.rpartition("@")[2] + slash + path
    elif re.match(r"[^/]*:(?!\d*/)[^@]*@", rest):
        rest = rest.rpartition("@")[2]
    if question:
        rest += f"?{hashlib.sha256(query.encode()).hexdigest()[:4]}"
    return f"{scheme}://{rest}"
