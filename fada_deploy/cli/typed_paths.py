"""Show paths in messages as the user typed them, although the library works with absolute ones."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_as_typed: dict[str, str] = {}


def remember_arguments(arguments: Sequence[str]) -> None:
    """Remember the relative paths among the arguments of the command line."""
    _as_typed.clear()
    for argument in arguments:
        # Also the value of --option=VALUE.
        for text in {argument, argument.partition("=")[2]}:
            if text and not os.path.isabs(text) and os.path.exists(text):
                _as_typed[os.path.realpath(text)] = text.rstrip("/")


def with_typed_paths(message: str) -> str:
    """Return a message with absolute paths replaced by what the user typed for them."""
    for absolute in sorted(_as_typed, key=len, reverse=True):
        # Not in the middle of a longer path or file name.
        path = rf"(?<![\w./-]){re.escape(absolute)}(?![\w-]|\.\w)"
        message = re.sub(path, _as_typed[absolute].replace("\\", r"\\"), message)
    return message
