"""Rectangles of an image."""

from __future__ import annotations

from typing import NamedTuple


class Region(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return the row and column slices of the region."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def even(self) -> Region:
        """Return the smallest surrounding region with even edges, as half-size chroma needs."""
        left, top = self.left - self.left % 2, self.top - self.top % 2
        right, bottom = self.left + self.width, self.top + self.height
        return Region(left, top, right + right % 2 - left, bottom + bottom % 2 - top)
