"""A folder that grows: its pictures as they come, each once.

Where a recorder, an upload or a mounted share puts pictures one by one. The folder is listed again and again,
which works on every file system, those that tell nobody of a change among them.
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

_KNOWN = IMAGE_SUFFIXES | VIDEO_SUFFIXES
# What programs call a file that they are still writing, wherever in the name: a.png.part, a.tmp.png.
_TEMPORARY = frozenset({".crdownload", ".part", ".partial", ".temp", ".tmp"})
# How a whole file ends. Some versions of OpenCV fill what is missing of a JPEG with gray and say nothing.
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
# Markers of a JPEG without a length: restarts, its start, and an old one.
_ALONE = frozenset(bytes([number]) for number in (*range(0xD0, 0xD9), 0x01))
# A listing that takes long, as of a hundred thousand files, is made the less often: a thirtieth of the time.
_REST = 30.0
# Seconds: `stop` is noticed within.
_NAP = 0.2


@dataclass
class _Waiting:
    """A file not taken yet: its name within the source, its size and time, and since when it has had them."""

    item: str
    stamp: tuple[int, int]
    since: float
    tried: bool = False


class FolderWatcher:
    """The pictures in a folder, then those that come into it, until `stop`; each name once.

    Pictures that come together come in the order of their names. A file is taken when its size and time have been
    the same for `settle_s` and it decodes; what is cut short or does not decode after `give_up_s` without a
    change is named by a `DataError`, and the others go on. A file that is replaced after it was taken is not taken
    again. Hidden files, temporary names (a.png.part, a.tmp.png) and folders are passed over; so are videos,
    which one `DataError` says. The folder is listed every `poll_s` seconds. When it is gone, a `DataError`
    ends the watch.

    `dropped` counts pictures that were deleted before their turn came. Raise `DataError` where there is no such
    folder, `UsageError` for times that are none.
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
        give_up_s: float = 5.0,
    ) -> None:
        if poll_s <= 0 or settle_s < 0 or give_up_s < settle_s:
            raise UsageError(
                f"no watch lists every {poll_s:g} s, settles in {settle_s:g} s and gives up in {give_up_s:g} s; "
                "the first is above 0, the second at least 0, the third no less than the second"
            )
        self.name = str(folder)
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise DataError(f"{folder}: no such folder to watch; make it first, empty or not")
        self._poll_s, self._settle_s, self._give_up_s = poll_s, settle_s, give_up_s
        # A flag alone, without a lock: a signal handler may set it at any moment.
        self._stopped = False
        self._waiting: dict[str, _Waiting] = {}
        self._done: set[str] = set()
        self._items: set[str] = set()
        self._videos_said = False
        self.dropped = 0

    def count(self) -> None:
        """Return None: nobody knows."""
        return None

    def stop(self) -> None:
        """End the watch; pictures whose turn has not come are left."""
        self._stopped = True

    def frames(self) -> Generator[Item, None, None]:
        """Yield pictures as they come until the watch is stopped, the error that names each broken one, pauses."""
        index = 0
        while not self._stopped:
            start = time.monotonic()
            try:
                videos = self._list()
            except OSError as error:
                yield DataError(
                    f"{self.name}: the watched folder is gone ({error.strerror}) after {index} pictures; "
                    "start the watch again when it is back"
                )
                return
            listed = time.monotonic()
            if videos and not self._videos_said:
                self._videos_said = True
                yield DataError(
                    f"{self.name}/{videos[0]}: a watch takes pictures, and leaves videos alone; "
                    "label them with `fada infer FILE…`"
                )
            for name in self._settled():
                found = self._take(name, index)
                if found is not None:
                    index += 1
                    yield found
                if self._stopped:
                    return
            # What was gathered goes on; and who has stopped listening is noticed though nothing comes.
            yield PAUSE
            self._sleep(
                self._poll_s if self._waiting else max(self._poll_s, _REST * (listed - start))
            )

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))

    def _list(self) -> list[str]:
        """Note what is new, what has changed and what is gone; return the names of videos."""
        videos, new = [], []
        there = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name in self._done:
                    continue
                suffix = _suffix(entry.name)
                if suffix in VIDEO_SUFFIXES:
                    videos.append(entry.name)
                elif suffix in IMAGE_SUFFIXES and (stamp := _stamp(entry)) is not None:
                    there.add(entry.name)
                    if entry.name not in self._waiting:
                        new.append((entry.name, stamp))
                    elif self._waiting[entry.name].stamp != stamp:
                        waiting = self._waiting[entry.name]
                        waiting.stamp, waiting.since, waiting.tried = stamp, time.monotonic(), False
        for name in self._waiting.keys() - there:
            self._items.discard(self._waiting.pop(name).item)
        stems = Counter(Path(name).stem for name, _ in new)
        # What was found together settles together, and so comes in the order of its names.
        now = time.monotonic()
        for name, stamp in sorted(new):
            item = self._item(name, alone=stems[Path(name).stem] == 1)
            self._waiting[name] = _Waiting(item, stamp, now)
        return sorted(videos)

    def _item(self, name: str, *, alone: bool) -> str:
        """Return a file's name within the source: its stem, or what no other one has, whose output stays."""
        item, number = Path(name).stem if alone else name, 2
        if item in self._items:
            item = name
        while item in self._items:
            item, number = f"{name}-{number}", number + 1
        self._items.add(item)
        return item

    def _settled(self) -> Iterator[str]:
        now = time.monotonic()
        for name in sorted(self._waiting):
            waiting = self._waiting[name]
            age = now - waiting.since
            # One that did not decode is looked at once more, when it is given up.
            if age >= (self._give_up_s if waiting.tried else self._settle_s):
                yield name

    def _take(self, name: str, index: int) -> Frame | DataError | None:
        """Return a settled picture, the error of one that is given up, None for what has to wait or is gone."""
        path, waiting = self._folder / name, self._waiting[name]
        last = time.monotonic() - waiting.since >= self._give_up_s
        waiting.tried = True
        found: Frame | DataError
        try:
            if not _is_whole(path):
                if not last:
                    return None
                if _is_cut_jpeg(path):
                    raise DataError(
                        f"{path}: is cut short; it did not grow for {self._give_up_s:g} s"
                    )
            found = Frame(read_rgb(path), self.name, index, waiting.item, time.monotonic())
        except (DataError, OSError) as error:
            if not last and path.exists():
                return None
            found = (
                error
                if isinstance(error, DataError)
                else DataError(f"{path}: cannot be read ({error.strerror})")
            )
        now = _stamp(path)
        if now == waiting.stamp:
            del self._waiting[name]
            self._done.add(name)
            return found
        if now is None:
            self.dropped += 1
        # Gone, or written to after all: the next listing sees to it.
        return None


def _suffix(name: str) -> str:
    """Return a picture's or video's suffix in small letters, "" for others, hidden ones and temporary names."""
    stem, suffix = os.path.splitext(name.lower())
    if (
        name.startswith(".")
        or suffix not in _KNOWN
        or not _TEMPORARY.isdisjoint(Path(stem).suffixes)
    ):
        return ""
    return suffix


def _stamp(file: os.DirEntry[str] | Path) -> tuple[int, int] | None:
    """Return (bytes, nanoseconds of the last change), None for what is gone or no file."""
    try:
        if not file.is_file():
            return None
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _is_whole(path: Path) -> bool:
    """Say whether a file ends as one of its kind does; zeros may follow, as some cameras pad their files."""
    end = _ENDS.get(path.suffix.lower(), b"")
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return file.read().rstrip(b"\0").endswith(end)


def _is_cut_jpeg(path: Path) -> bool:
    """Say whether a JPEG has no end behind the start of its scan; previews in its head have ends of their own."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    data, place = path.read_bytes(), 0
    if not data.startswith(b"\xff\xd8"):
        return False
    # Segments of the head, up to the start of the scan: a marker (0xff, as often as one likes, and a number) and,
    # but for those that stand alone, a length.
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        number = data[place + 1 : place + 2]
        if number == b"\xff":
            place += 1
        elif number in _ALONE:
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
    return _ENDS[".jpg"] not in data[place:]
