"""A folder that is watched for new images, as a live source.

The folder is listed repeatedly instead of using change notifications, because network file systems
do not send them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import IMAGE_SUFFIXES, read_rgb
from fada_deploy.common.video import VIDEO_SUFFIXES
from fada_deploy.runtime.sources.base import PAUSE, Frame, Item
from fada_deploy.runtime.sources.image_files import has_file_end, is_truncated_jpeg
from fada_deploy.runtime.sources.stream_clock import sleep_until

_SUPPORTED = IMAGE_SUFFIXES | VIDEO_SUFFIXES
# Suffixes of files that are still being written, anywhere in the name: a.png.part, a.tmp.png.
_TEMPORARY = frozenset({".crdownload", ".part", ".partial", ".temp", ".tmp"})
# Listing an idle folder takes at most 1/30 of the time, however many files it holds.
_IDLE_FACTOR = 30.0


@dataclass
class _PendingFile:
    """A file that was not read yet.

    `item` is its name within the source, `stamp` its size and modification time, `since` when this
    stamp was first seen, and `tried` whether reading has failed with this stamp.
    """

    item: str
    stamp: tuple[int, int]
    since: float
    tried: bool = False


class FolderWatcher:
    """The images in a folder, and those that are added to it until `stop` is called.

    Each file name is read once, even if the file is replaced later. Images that are found together
    are sorted by name. Hidden files, temporary names (a.png.part, a.tmp.png) and subfolders are
    ignored. Videos are ignored too, with one `DataError`. If the folder disappears, the watch ends
    with a `DataError`.

    Args:
        folder: The folder to watch; it must exist and may be empty.
        poll_s: Seconds between two listings of the folder.
        settle_s: A file is read when its size and modification time have not changed for this
            many seconds.
        timeout_s: A file that still cannot be decoded after this many seconds without a change is
            reported as a `DataError`.

    Attributes:
        dropped: Images that were deleted before they were read.

    Raises:
        DataError: The folder does not exist.
        UsageError: A time is out of range.
    """

    is_video = False
    is_live = True
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(
        self,
        folder: str | Path,
        *,
        poll_s: float = 0.2,
        settle_s: float = 0.3,
        timeout_s: float = 5.0,
    ) -> None:
        if poll_s <= 0 or settle_s < 0 or timeout_s < settle_s:
            raise UsageError(
                "poll_s must be greater than 0, settle_s at least 0 and timeout_s at least "
                f"settle_s, got {poll_s:g}, {settle_s:g} and {timeout_s:g} s"
            )
        self.name = str(folder)
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise DataError(f"{folder}: no such folder; create it before watching it")
        self._poll_s, self._settle_s, self._timeout_s = poll_s, settle_s, timeout_s
        # A plain flag without a lock, because a signal handler may set it at any time.
        self._stopped = False
        self._pending: dict[str, _PendingFile] = {}
        self._read_names: set[str] = set()
        # Files that could not be read, as they were then.
        self._failed: dict[str, _PendingFile] = {}
        self._items: set[str] = set()
        self._reported_videos = False
        self.dropped = 0

    def count(self) -> None:
        """Return None: the number of images is unknown."""
        return None

    def stop(self) -> None:
        """End the watch; pending images are not read."""
        self._stopped = True

    def frames(self) -> Generator[Item, None, None]:
        """Yield images as they arrive, an error for each unreadable one, and pauses."""
        index = 0
        while not self._stopped:
            start = time.monotonic()
            try:
                videos = self._list_folder()
            except OSError as error:
                yield DataError(
                    f"{self.name}: the watched folder disappeared ({error.strerror}) after {index} "
                    "images; restart the watch when it is back"
                )
                return
            listing_s = time.monotonic() - start
            if videos and not self._reported_videos:
                self._reported_videos = True
                yield DataError(
                    f"{self.name}/{videos[0]}: videos in a watched folder are ignored; "
                    "process them with `fada infer FILE`"
                )
            for name in self._settled_names():
                item = self._read(name, index)
                if item is not None:
                    index += 1
                    yield item
                if self._stopped:
                    return
            # Also lets the consumer close this generator while nothing arrives.
            yield PAUSE
            idle_s = max(self._poll_s, _IDLE_FACTOR * listing_s)
            seconds = self._poll_s if self._pending else idle_s
            sleep_until(time.monotonic() + seconds, lambda: self._stopped)

    def _list_folder(self) -> list[str]:
        """Update the pending files; return the names of video files."""
        videos, new = [], []
        present = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name in self._read_names:
                    continue
                suffix = _supported_suffix(entry.name)
                if suffix in VIDEO_SUFFIXES:
                    videos.append(entry.name)
                elif suffix in IMAGE_SUFFIXES and (stamp := _stamp(entry)) is not None:
                    present.add(entry.name)
                    if self._is_unchanged(entry.name, stamp):
                        continue
                    pending = self._pending.get(entry.name)
                    if pending is None:
                        new.append((entry.name, stamp))
                    elif pending.stamp != stamp:
                        pending.stamp, pending.since = stamp, time.monotonic()
                        pending.tried = False
        for files in (self._pending, self._failed):
            for name in files.keys() - present:
                self._items.discard(files.pop(name).item)
        stems = Counter(Path(name).stem for name, _ in new)
        # One time for all: files that are found together settle together, so they are read in the
        # order of their names.
        now = time.monotonic()
        for name, stamp in sorted(new):
            item = self._unique_item(name, unique_stem=stems[Path(name).stem] == 1)
            self._pending[name] = _PendingFile(item, stamp, now)
        return sorted(videos)

    def _is_unchanged(self, name: str, stamp: tuple[int, int]) -> bool:
        """Return whether a file has been as it is now when it could not be read.

        If it has changed, it is read again, under the same name.
        """
        failed = self._failed.get(name)
        if failed is None or failed.stamp == stamp:
            return failed is not None
        self._items.discard(self._failed.pop(name).item)
        return False

    def _unique_item(self, name: str, *, unique_stem: bool) -> str:
        """Return a file's name within the source: its stem, its full name, or that with a number.

        The first one that no other file has, so that no output file is overwritten.
        """
        item, number = Path(name).stem if unique_stem else name, 2
        if item in self._items:
            item = name
        while item in self._items:
            item, number = f"{name}-{number}", number + 1
        self._items.add(item)
        return item

    def _settled_names(self) -> Iterator[str]:
        now = time.monotonic()
        for name in sorted(self._pending):
            pending = self._pending[name]
            # A file that failed once is tried again only when its timeout is over.
            if now - pending.since >= (self._timeout_s if pending.tried else self._settle_s):
                yield name

    def _read(self, name: str, index: int) -> Frame | DataError | None:
        """Read a settled file; return its frame, or its error after the timeout, otherwise None."""
        path, pending = self._folder / name, self._pending[name]
        timed_out = time.monotonic() - pending.since >= self._timeout_s
        pending.tried = True
        item: Frame | DataError
        try:
            if not has_file_end(path):
                if not timed_out:
                    return None
                if is_truncated_jpeg(path):
                    raise DataError(f"{path}: truncated; unchanged for {self._timeout_s:g} s")
            item = Frame(read_rgb(path), self.name, index, pending.item, time.monotonic())
        except (DataError, OSError) as error:
            if not timed_out and path.exists():
                return None
            item = (
                error
                if isinstance(error, DataError)
                else DataError(f"{path}: cannot be read ({error.strerror})")
            )
        stamp = _stamp(path)
        if stamp == pending.stamp:
            del self._pending[name]
            if isinstance(item, DataError):
                # A copy that has stalled may go on.
                self._failed[name] = pending
            else:
                self._read_names.add(name)
            return item
        if stamp is None:
            self.dropped += 1
        # Deleted, or changed while it was read: the next listing decides.
        return None


def _supported_suffix(name: str) -> str:
    """Return the lower-case suffix of an image or video name, "" for hidden and temporary names."""
    stem, suffix = os.path.splitext(name.lower())
    temporary = not _TEMPORARY.isdisjoint(Path(stem).suffixes)
    return "" if name.startswith(".") or suffix not in _SUPPORTED or temporary else suffix


def _stamp(file: os.DirEntry[str] | Path) -> tuple[int, int] | None:
    """Return (size in bytes, modification time in ns), None if the file is gone or not a file."""
    try:
        if not file.is_file():
            return None
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
