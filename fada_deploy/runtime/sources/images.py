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
    """One image file or a folder of them; `items` maps each image's name to its file.

    `first_index` is the number of the first image, if these are a part of a folder.
    """

    is_video = False
    is_live = False
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, name: str, items: Mapping[str, Path], first_index: int = 0) -> None:
        self.name = name
        self.items = dict(items)
        self._first_index = first_index

    def count(self) -> int:
        """Return the number of image files, including unreadable ones."""
        return len(self.items)

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield each image, rotated by its EXIF orientation, or the error that names its file."""
        for index, (item, path) in enumerate(self.items.items(), self._first_index):
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
