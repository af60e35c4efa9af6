"""Addresses of live sources: streams, cameras and the standard input."""

from __future__ import annotations

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
    """Return the name of a live source for logs and file names; it contains no password."""
    if address == PIPE:
        return "pipe"
    if (number := camera_number(address)) is not None:
        return f"camera-{number}"
    return re.sub(r"//[^/@]*@", "//", address)
