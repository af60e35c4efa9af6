"""Picture sizes as people write them; imports nothing, so that `fada --help` stays fast."""

from __future__ import annotations


def parse_size(text: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT" into (height, width); raise `ValueError` on anything else."""
    width, _, height = text.lower().partition("x")
    size = (int(height), int(width))
    if min(size) < 1:
        raise ValueError(f"{text!r} is no size")
    return size
