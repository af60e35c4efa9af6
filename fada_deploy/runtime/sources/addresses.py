"""Addresses of live sources: streams, cameras and the standard input."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

# The standard input, as in most command-line tools.
PIPE = "-"
SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")
_CAMERA = "camera:"
# The beginning of a login in a path, as in `user=admin&password=…`.
_LOGIN = re.compile(
    r"(?<=[/;&_])"
    r"(user|username|usr|login|password|passwd|passphrase|pass|pwd|token|key|secret|auth)=",
    re.IGNORECASE,
)


def is_live_address(address: str) -> bool:
    """Return whether a command-line argument is a stream, a camera, or `-` for the standard input.

    A camera is `camera:N`, or just the number N if no file or folder has that name.
    """
    if address == PIPE or address.lower().startswith(SCHEMES):
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

    User names, passwords and the query, which often holds a token, are left out. A password may
    contain any character, so everything before the last `@` is left out, also if it belongs to a
    path. Some recorders take the login as a part of the path (`/user=admin&password=…`), which is
    left out from there on. Four hexadecimal digits tell addresses apart whose names would be equal.
    """
    if address == PIPE:
        return "pipe"
    if (number := camera_number(address)) is not None:
        return f"camera-{number}"
    scheme, _, rest = address.partition("://")
    digits = hashlib.sha256(rest.encode()).hexdigest()[:4]
    if login := _LOGIN.search(rest):
        rest = rest[: login.start()]
    shown, question, query = rest.partition("?")
    if "@" in query:
        # Either the query or the password contains `?`, so nothing of it is safe to show.
        return f"{scheme.lower()}://{digits}"
    hidden, _, shown = shown.rpartition("@")
    ending = f"?{digits}" if question or login or "/" in hidden else ""
    return f"{scheme.lower()}://{shown}{ending}"
