"""Decoded frames in memory, for data that is read again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class FrameCache:
    """Keep decoded images up to a limit in bytes; those that do not fit are read each time.

    Nothing is dropped, because a training reads all frames equally often. Threads may share a
    cache. A copy for another process is empty.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._images: dict[Path, Image] = {}
        self._lock = threading.Lock()

    def get(self, path: Path, read: Callable[[Path], Image]) -> Image:
        """Return a stored image, or read it and store it if it fits.

        The array must not be changed. Errors of `read` are raised and not stored.
        """
        stored = self._images.get(path)
        if stored is not None:
            return stored
        image = read(path)
        with self._lock:
            if path not in self._images and self.size + image.nbytes <= self.limit:
                # A view would keep the memory of the array that it belongs to.
                image = image if image.base is None else image.copy()
                image.flags.writeable = False
                self._images[path] = image
                self.size += image.nbytes
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameCache, (self.limit,)
