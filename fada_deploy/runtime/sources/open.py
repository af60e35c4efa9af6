"""Where frames come from: a video, a picture, a folder of either, a glob, or several of these.

A source yields its frames in order, and in place of a frame that cannot be had a `DataError` that
names it, so that one bad picture does not cost the good ones.
"""

from __future__ import annotations

import glob
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import IMAGE_SUFFIXES, read_rgb
from fada_deploy.common.video import ALLOWED, VIDEO_SUFFIXES, open_video, upright_rgb
from fada_deploy.runtime.overlay.yuv import is_plain_yuv420p

# A container's length may end half a second after the last picture without anything being missing.
_SLACK_S = 0.5


@dataclass(frozen=True)
class Frame:
    """One picture: `rgb` (H, W, 3) uint8, where and when it comes from.

    `source` is the source's name, `index` counts its frames from 0, and `item` names the frame
    within it ("" where the source is one picture). `pts` × `time_base` are seconds (None for a still
    picture). `captured` is `time.monotonic()` when it was read. `decoded`: see `Result`.
    """

    rgb: NDArray[np.uint8]
    source: str
    index: int
    item: str
    captured: float
    pts: int | None = None
    time_base: Fraction | None = None
    decoded: Any = None


class Pause:
    """Comes where nothing more lies ready: what was gathered goes on without it."""


PAUSE = Pause()
Item = Frame | DataError | Pause


class Source(Protocol):
    """Frames with a name.

    `moving`: the frames make one film, at `rate` frames a second, with sound in the file `audio`.
    """

    name: str
    moving: bool
    rate: Fraction | None
    audio: Path | None

    def count(self) -> int | None:
        """Return how many frames to expect, if that can be known."""
        ...

    def frames(self) -> Generator[Item, None, None]:
        """Yield the frames in order, a `DataError` for what cannot be read, `PAUSE` before a wait."""
        ...


@dataclass(frozen=True)
class End:
    """Comes behind the last frame of a source, so that its files can be finished."""

    source: Source


class ImageSource:
    """Still pictures: `items` gives each one's name within the source and its file."""

    moving = False
    rate: Fraction | None = None
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


class VideoSource:
    """A video file: every frame with its own timestamp, turned as its rotation flag says.

    `hardware`, a key of `common.video.HARDWARE`, decodes it.
    """

    moving = True

    def __init__(self, path: Path, hardware: str | None = None) -> None:
        self.name = str(path)
        self.rate: Fraction | None = None
        self.audio: Path | None = None
        self.pixel_aspect: Fraction | None = None
        self._path = path
        self._hardware = hardware
        self._count: int | None = None
        # The time of the picture before.
        self._last: int | None = None

    def probe(self) -> None:
        """Read the header; raise `DataError` for what is no video."""
        container, stream = open_video(self._path)
        with container:
            self.rate = stream.average_rate
            self.pixel_aspect = stream.sample_aspect_ratio or None
            self.audio = self._path if container.streams.audio else None
            self._count = stream.frames or round(_end(container, stream) * (self.rate or 0)) or None

    def count(self) -> int | None:
        """Return the number of frames as the header has it, or by length and rate."""
        with suppress(DataError):
            self.probe()
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield all frames that decode; behind them the error, if the file is cut short or damaged."""
        try:
            self.probe()
            container, stream = open_video(self._path, self._hardware)
        except DataError as error:
            yield error
            return
        with container:
            stream.thread_type = "AUTO"
            damaged, count, end = 0, 0, Fraction(0)
            self._last = None
            for picture in _decode(container, stream):
                if picture is None:
                    damaged += 1
                    continue
                frame = self._frame(picture, count)
                count += 1
                assert frame.pts is not None and frame.time_base is not None
                end = max(end, (frame.pts + (picture.duration or 0)) * frame.time_base)
                yield frame
            promised = _end(container, stream)
            if damaged or end < promised - Fraction(_SLACK_S):
                lost = f", {damaged} packet{'s' * (damaged > 1)} could not" if damaged else ""
                yield DataError(
                    f"{self.name}: cut short or damaged; {count} frames up to {float(end):.2f} s "
                    f"of {float(max(promised, end)):.2f} s could be decoded{lost}"
                )

    def _frame(self, picture: Any, index: int) -> Frame:
        pts, time_base = picture.pts, picture.time_base
        if time_base is None:
            # Bare streams carry no clock.
            pts, time_base = index, 1 / (self.rate or Fraction(25))
        elif pts is None:
            # Some give a time to every other picture alone; the first has none where none has.
            step = 1 / ((self.rate or Fraction(25)) * time_base)
            pts = 0 if self._last is None else self._last + max(1, round(step))
        self._last = pts
        if index == 0 and self.pixel_aspect is not None and picture.rotation % 180:
            self.pixel_aspect = 1 / self.pixel_aspect
        decoded = picture if is_plain_yuv420p(picture) else None
        rgb, item = upright_rgb(picture), f"{index:06d}"
        return Frame(rgb, self.name, index, item, time.monotonic(), pts, time_base, decoded)


def _end(container: Any, stream: Any) -> Fraction:
    """Return when the header says that the pictures end, in seconds; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return Fraction((stream.start_time or 0) + stream.duration) * Fraction(stream.time_base)
    # Matroska knows the length of the whole alone, which may be that of its sound.
    alone = len(container.streams) == 1 and container.duration is not None
    return Fraction(container.duration, 1_000_000) if alone else Fraction(0)


def _decode(container: Any, stream: Any) -> Generator[Any, None, None]:
    """Yield decoded frames, and None for each packet that is broken."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            yield None
            return
        if packet is None:
            return
        yield from decoded(packet)


def decoded(packet: Any) -> Generator[Any, None, None]:
    """Yield the frames that a PyAV packet gives, and None where it is broken."""
    import av

    if packet.is_corrupt:
        yield None
    flushing = packet.size == 0
    while True:
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield None
            # While the decoder is emptied, the frames behind the broken one are still to be had.
            if flushing:
                continue
        return


Given = str | Path | int | Source


def open_sources(
    sources: Sequence[Given | Sequence[Given]], *, hardware: str | None = None
) -> list[Source]:
    """Turn files, folders, globs and live addresses into sources; what has `frames` is taken as it is.

    A folder gives one source of its pictures and one for each video in it, a number the camera, a list its
    members. Live sources are read at the same time, all others one after the other. `hardware` decodes video files
    (see `VideoSource`). Raise `DataError` for what
    does not exist, holds nothing, or is neither video nor picture, and `UsageError` for nothing at all.
    """
    if not sources:
        raise UsageError(f"nothing to label; give {ALLOWED}, a folder or a glob")
    # A live source is made of what is here.
    from fada_deploy.runtime.sources.streams import LiveSource, is_live

    found: dict[str, Source] = {}
    everything = list(_flat(sources))
    alone = len(everything) == 1
    for given in everything:
        if isinstance(given, int) or (isinstance(given, str) and is_live(given)):
            given = LiveSource(str(given))
        made = (
            _open_path(str(given), hardware, alone=alone)
            if isinstance(given, str | Path)
            else [given]
        )
        for source in made:
            # The same file twice is the same file.
            found.setdefault(source.name, source)
    live = [s for s in found.values() if getattr(s, "live", False)]
    if live and len(found) > 1 and not all(isinstance(s, LiveSource) for s in found.values()):
        raise UsageError(
            f"{live[0].name} is live, and the others would wait for its end; give streams and cameras alone, or "
            "one watched folder"
        )
    return list(found.values())


def _flat(sources: Sequence[Given | Sequence[Given]]) -> Generator[Given, None, None]:
    for given in sources:
        if isinstance(given, list | tuple):
            yield from given
        else:
            yield cast("Given", given)


def _open_path(given: str, hardware: str | None, *, alone: bool) -> list[Source]:
    path = Path(given)
    if path.is_dir():
        return _open_folder(path, hardware)
    if path.is_file():
        return [_open_file(path, hardware, alone=alone)]
    if glob.has_magic(given):
        matches = [Path(m) for m in sorted(glob.glob(given, recursive=True)) if _is_known(Path(m))]
        if not matches:
            raise DataError(f"{given}: matches no file that is {ALLOWED}")
        return [_open_file(m, hardware, alone=alone and len(matches) == 1) for m in matches]
    if "://" in given:
        from fada_deploy.runtime.sources.streams import SCHEMES

        raise UsageError(f"{given}: no such kind of stream; there are {' '.join(SCHEMES)}")
    raise DataError(f"{given}: no such file or folder; give {ALLOWED}, a folder or a glob")


def _open_file(path: Path, hardware: str | None, *, alone: bool) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(str(path), {"": path})
    video = VideoSource(path, hardware)
    # A broken one among others is named when its turn comes.
    if alone:
        video.probe()
    return video


def _open_folder(path: Path, hardware: str | None) -> list[Source]:
    files = sorted(p for p in path.iterdir() if _is_known(p))
    pictures = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        below = (
            f"; folders below it are not looked into, give '{path}/**/*.mp4'"
            if subfolders(path)
            else ""
        )
        raise DataError(f"{path}: an empty folder, or nothing in it is {ALLOWED}{below}")
    videos: list[Source] = [
        VideoSource(p, hardware) for p in files if p.suffix.lower() in VIDEO_SUFFIXES
    ]
    stems = Counter(p.stem for p in pictures)
    items = {p.stem if stems[p.stem] == 1 else p.name: p for p in pictures}
    return [ImageSource(str(path), items), *videos] if pictures else videos


def subfolders(path: Path) -> int:
    """Return how many folders lie in a folder, hidden ones left out."""
    return sum(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())


def _is_known(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES
