"""Still images as a source."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from fractions import Fraction
from pathlib import Path

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_rgb
from fada_deploy.runtime.sources.base import Frame


class ImageSource:
    """Still pictures: `items` gives each one's name within the source and its file."""

    is_video = False
    is_live = False
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, name: str, items: Mapping[str, Path]) -> None:
        self.name = name
        self._items = items

    def count(self) -> int:
        """Return how many pictures there are, good or bad."""
        return len(self._items)

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield each picture as its EXIF turns it, or the error that names it."""
        for index, (item, path) in enumerate(self._items.items()):
            try:
                yield Frame(read_rgb(path), self.name, index, item, time.monotonic())
            except DataError as error:
                yield error
