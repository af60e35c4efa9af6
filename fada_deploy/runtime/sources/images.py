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
    """One image file or a folder of them; `items` maps each image's name to its file."""

    is_video = False
    is_live = False
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, name: str, items: Mapping[str, Path]) -> None:
        self.name = name
        self._items = items

    def count(self) -> int:
        """Return the number of image files, including unreadable ones."""
        return len(self._items)

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield each image, rotated by its EXIF orientation, or the error that names its file."""
        for index, (item, path) in enumerate(self._items.items()):
            try:
                yield Frame(read_rgb(path), self.name, index, item, time.monotonic())
            except DataError as error:
                yield error


class UnreadableSource:
    """A source without frames, which yields one error; the other sources are still processed."""

    is_video = False
    is_live = False
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, name: str, error: DataError) -> None:
        self.name = name
        self._error = error

    def count(self) -> int:
        """Return 0."""
        return 0

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield the error."""
        yield self._error
