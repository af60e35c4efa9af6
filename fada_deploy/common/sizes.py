"""Image sizes as text. Imports nothing, so that `fada --help` stays fast."""

from __future__ import annotations


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "WIDTHxHEIGHT"; raise `ValueError` for any other text."""
    width, _, height = text.lower().partition("x")
    size = (int(height), int(width))
    if min(size) < 1:
        raise ValueError(f"size must be WIDTHxHEIGHT of at least 1x1, got {text!r}")
    return size
