"""Decoded frames in memory or in a folder, for data that is read again and again."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy._version import __version__
from fada_deploy.common.errors import UsageError, one_line
from fada_deploy.common.files import remove_old_partial, temporary_path

logger = logging.getLogger(__name__)

SizeHW = tuple[int, int]
SUFFIX = ".frame"
# Writes after which a folder is measured again, because other processes write to it too.
_MEASURE_EVERY = 100


class Stored(NamedTuple):
    """A decoded frame or label map, and the size of its file's image, which it may not have."""

    image: NDArray[np.uint8]
    file_hw: SizeHW


class FrameCache(Protocol):
    """Where decoded images are kept up to a limit; those that do not fit are read each time.

    Nothing is dropped, because a training reads all frames equally often. Threads may share a
    cache. Returned arrays must not be changed. Errors of `read` are raised and not stored.
    """

    def frame(self, path: Path, size_hw: SizeHW | None, read: Callable[[], Stored]) -> Stored:
        """Return a frame resized to `size_hw`, or in the size of the file for None."""
        ...

    def labels(self, path: Path, size_hw: SizeHW | None, read: Callable[[], Stored]) -> Stored:
        """Return labels, as `frame` returns a frame."""
        ...


def open_cache(gib: float, folder: Path | None = None) -> FrameCache | None:
    """Return a cache of up to `gib` GiB in memory, or in a folder; None for 0 GiB.

    Raise `UsageError` for a negative size, and if the folder has no limit or cannot be written.
    """
    if not isinstance(gib, int | float) or not 0 <= gib < math.inf:
        raise UsageError(f"the size of the cache must be at least 0 GiB, got {gib!r}")
    if folder is None:
        return MemoryCache(int(gib * 2**30)) if gib else None
    if not gib:
        raise UsageError(f"the cache folder {folder} needs a size; add --cache GIB")
    return FolderCache(folder, int(gib * 2**30))


class MemoryCache:
    """Frames and labels in the memory of this process; a copy for another process is empty."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._images: dict[tuple[Path, SizeHW | None], Stored] = {}
        self._lock = threading.Lock()

    def frame(self, path: Path, size_hw: SizeHW | None, read: Callable[[], Stored]) -> Stored:
        """Return a stored image, or read it and store it if it fits."""
        key = path, size_hw
        if (stored := self._images.get(key)) is not None:
            return stored
        image, file_hw = read()
        with self._lock:
            if key not in self._images and self.size + image.nbytes <= self.limit:
                # A view would keep the memory of the array that it belongs to.
                image = image if image.base is None else image.copy()
                image.flags.writeable = False
                self._images[key] = Stored(image, file_hw)
                self.size += image.nbytes
        return Stored(image, file_hw)

    labels = frame

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryCache, (self.limit,)


class FolderCache:
    """Frames in the files of a folder, which several processes and later runs share.

    A frame that changed on the disk has a new entry. Labels are read each time: they are decoded
    quickly, and depend on the label space of a run.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock, self._writes = threading.Lock(), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_old_partial(folder)
            self.size = self._measured()
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(
                f"the cache folder {folder} cannot be used ({error.strerror}); choose another"
            ) from None

    def frame(self, path: Path, size_hw: SizeHW | None, read: Callable[[], Stored]) -> Stored:
        """Return a stored frame, or read it and store it if it fits."""
        try:
            file = self._file(path, size_hw)
        except OSError:
            return read()  # whose error names the problem
        with suppress(Exception):  # a damaged header raises errors of Python's parser, and others
            with file.open("rb") as handle:
                image, file_hw = np.load(handle), np.load(handle)
            if image.dtype == np.uint8 and image.ndim == 3:
                return Stored(image, (int(file_hw[0]), int(file_hw[1])))
        stored = read()
        self._write(file, stored)
        return stored

    def labels(self, path: Path, size_hw: SizeHW | None, read: Callable[[], Stored]) -> Stored:
        """Read labels; they are not stored."""
        return read()

    def _file(self, path: Path, size_hw: SizeHW | None) -> Path:
        state = path.stat()
        # Versions of OpenCV decode and resize with other roundings.
        versions = f"{__version__} {cv2.__version__}"
        parts = (path.resolve(), state.st_size, state.st_mtime_ns, size_hw, versions)
        digest = hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape"))
        return self.folder / f"{digest.hexdigest()[:32]}{SUFFIX}"

    def _write(self, file: Path, stored: Stored) -> None:
        temporary = temporary_path(file)
        try:
            if not self._reserve(stored.image.nbytes):
                return
            with temporary.open("wb") as handle:
                np.save(handle, stored.image)
                np.save(handle, np.array(stored.file_hw, np.int32))
            # Not flushed: an entry that a crash damages is read from its image again.
            temporary.replace(file)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if self.limit:
                logger.warning("no more frames are kept in %s: %s", self.folder, one_line(error))
            self.limit = 0

    def _reserve(self, num_bytes: int) -> bool:
        """Return whether an entry fits, and count it."""
        with self._lock:
            if self.size + num_bytes > self.limit:
                return False
            self.size += num_bytes
            self._writes += 1
            if self._writes % _MEASURE_EVERY == 0:
                self.size = self._measured()
            return True

    def _measured(self) -> int:
        """Return the bytes of all entries."""
        total = 0
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # replaced meanwhile
                total += entry.stat().st_size if entry.name.endswith(SUFFIX) else 0
        return total

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderCache, (self.folder, self.limit)
