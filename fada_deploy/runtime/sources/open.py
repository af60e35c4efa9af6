"""Open files, folders, globs, cameras and streams as sources of frames."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import cast

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import IMAGE_SUFFIXES
from fada_deploy.common.video import ALLOWED, VIDEO_SUFFIXES
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.sources.streams import SCHEMES, LiveSource, is_live_address
from fada_deploy.runtime.sources.videos import VideoSource

SourceSpec = str | Path | int | Source


def open_sources(
    sources: Sequence[SourceSpec | Sequence[SourceSpec]], *, hardware: str | None = None
) -> list[Source]:
    """Turn files, folders, globs and live addresses into sources; what has `frames` is taken as it is.

    A folder gives one source of its pictures and one for each video in it, a number the camera, a list its
    members. Live sources are read at the same time, all others one after the other. `hardware` decodes video files
    (see `VideoSource`). Raise `DataError` for what
    does not exist, holds nothing, or is neither video nor picture, and `UsageError` for nothing at all.
    """
    if not sources:
        raise UsageError(f"nothing to label; give {ALLOWED}, a folder or a glob")
    found: dict[str, Source] = {}
    everything = list(_flat(sources))
    alone = len(everything) == 1
    for given in everything:
        if isinstance(given, int) or (isinstance(given, str) and is_live_address(given)):
            given = LiveSource(str(given))
        made = (
            _open_path(str(given), hardware, alone=alone)
            if isinstance(given, str | Path)
            else [given]
        )
        for source in made:
            # The same file twice is the same file.
            found.setdefault(source.name, source)
    live = [s for s in found.values() if s.is_live]
    if live and len(found) > 1 and not all(isinstance(s, LiveSource) for s in found.values()):
        raise UsageError(
            f"{live[0].name} is live, and the others would wait for its end; give streams and cameras alone, or "
            "one watched folder"
        )
    return list(found.values())


def _flat(sources: Sequence[SourceSpec | Sequence[SourceSpec]]) -> Generator[SourceSpec, None, None]:
    for given in sources:
        if isinstance(given, list | tuple):
            yield from given
        else:
            yield cast("SourceSpec", given)


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
