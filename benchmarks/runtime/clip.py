"""The video that is measured: a given file, or a rendered drive."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import cache_folder
from fada_deploy.common.video import open_video
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.videos import VideoSource

RENDERED_SECONDS = 8.0


class ClipInfo(NamedTuple):
    """Number of frames and size of a clip."""

    frames: int
    width: int
    height: int


class LoopedSource:
    """A source that repeats a clip until it has yielded `count` frames; timestamps increase."""

    is_video = True
    is_live = False
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, path: Path, count: int) -> None:
        self.name = str(path)
        video = VideoSource(path)
        video.probe()
        self.rate = video.rate
        self._count = count

    def count(self) -> int:
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield the frames; raise the error of a damaged clip."""
        index = offset = 0
        while True:
            last = step = 0
            with closing(VideoSource(Path(self.name)).frames()) as items:
                for item in items:
                    if isinstance(item, DataError):
                        raise item
                    assert item.pts is not None and item.time_base is not None
                    step, last = item.pts - last, item.pts
                    pts = offset + item.pts
                    yield replace(item, source=self.name, index=index, item=f"{index:06d}", pts=pts)
                    index += 1
                    if index == self._count:
                        return
            offset += last + max(1, step)


def rendered_clip(size_hw: tuple[int, int]) -> Path:
    """Return a rendered drive in the cache folder; render it if it does not exist."""
    height, width = size_hw
    folder = cache_folder() / f"benchmark-clip-{width}x{height}-{RENDERED_SECONDS:g}s"
    if not (folder / "clip.mp4").is_file():
        from fada_deploy.synth.clip import write_clip

        print(f"rendering {folder / 'clip.mp4'}", file=sys.stderr)
        write_clip(folder, RENDERED_SECONDS, size_hw=size_hw)
    return folder / "clip.mp4"


def clip_info(clip: Path) -> ClipInfo:
    """Return the number of frames and the size of a clip."""
    container, stream = open_video(clip)
    with container:
        size = int(stream.codec_context.width), int(stream.codec_context.height)
    count = VideoSource(clip).count()
    if count is None:
        raise SystemExit(f"the number of frames of {clip} is unknown; use another --video")
    return ClipInfo(count, *size)
