"""A target that is just recordings: a video, a folder of videos, or a folder of pictures.

Frames are sampled by time, near-duplicates (a car standing at a light) are dropped, and whole clips
are held out, never single frames, since neighbors of a training frame prove nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import IMAGE_SUFFIXES, read_rgb, write_png
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.video import SUPPORTED_FILES, VIDEO_SUFFIXES, open_video, upright_rgb
from fada_deploy.data.base import FrameDataset, Pair, read_mask

HELD_OUT = 0.1
_LABEL_FOLDERS = frozenset({"annotations", "gtfine", "labels", "masks"})
_THUMB_WH = (32, 18)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a recording are worth training on.

    `every` seconds between frames of a video; two neighbors whose 32×18 gray thumbnails differ by
    less than `min_change` (mean absolute difference, 0…255) count as the same view.
    """

    every: float = 0.5
    min_change: float = 3.0


def open_recordings(
    path: Path,
    *,
    cache: Path,
    space: LabelSpace,
    sampling: Sampling | None = None,
    ego_mask: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    left_out: Callable[[DataError], None] = lambda error: None,
) -> tuple[FrameDataset, FrameDataset]:
    """Sample recordings into (train, held-out) data sets without labels.

    Frames of videos are kept as PNG under `cache`; pictures are used where they lie, but for folders
    of label maps. At most a tenth of the frames is held out, in whole clips; where no clip is that
    short the longest gives its last tenth, after a gap of the same length. `left_out` gets an error
    for each file that cannot be used. Raise `DataError` when nothing is usable.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; recordings are a video, or a folder of videos or pictures"
        )
    # Before hours of video are sampled.
    mask = None if ego_mask is None else read_mask(ego_mask)
    sampling = sampling or Sampling()
    clips: dict[str, list[Pair]] = {}
    for video in _videos(path):
        try:
            clips[str(video)] = _sample_video(video, cache, sampling, left_out)
        except DataError as error:
            if video == path:
                raise
            left_out(error)
            continue
        say(f"{video.name}: {len(clips[str(video)])} frames")
    for folder, images in _picture_folders(path).items():
        if _LABEL_FOLDERS & {
            part.lower() for part in (path.name, *Path(folder).relative_to(path).parts)
        }:
            say(f"{folder}: passed over, as label maps are no target")
            continue
        clips[folder] = _distinct_pictures(images, folder, sampling, left_out)
        say(f"{folder}: {len(clips[folder])} of {len(images)} pictures")
    clips = {name: pairs for name, pairs in clips.items() if pairs}
    if not clips:
        raise DataError(f"{path}: no video and no picture that can be read; allowed is {SUPPORTED_FILES}")
    train, held_out = split_by_clip(clips)

    def no_labels(labels: Path) -> NDArray[np.uint8]:
        raise DataError(f"{labels}: recordings have no labels")

    base = FrameDataset(path.stem, "train", space, train, no_labels, mask)
    return base, replace(base, split="val", pairs=held_out)


def split_by_clip(clips: dict[str, list[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """Split clips into (train, held-out) frames; the choice depends on the clips' names and lengths alone."""
    room = HELD_OUT * sum(map(len, clips.values()))
    held_out: list[Pair] = []
    train = dict(clips)
    for name in sorted(clips, key=lambda name: hashlib.sha256(Path(name).name.encode()).digest()):
        if len(held_out) + len(clips[name]) <= room:
            held_out += train.pop(name)
    longest = max(train, key=lambda name: len(train[name]))
    if not held_out and len(train[longest]) >= 5:
        tenth = max(1, round(HELD_OUT * len(train[longest])))
        held_out = train[longest][-tenth:]
        train[longest] = train[longest][: -2 * tenth]
    return [pair for pairs in train.values() for pair in pairs], held_out


def _videos(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("[!.]*") if p.suffix.lower() in VIDEO_SUFFIXES)


def _picture_folders(path: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    if path.is_dir():
        for image in sorted(p for p in path.rglob("[!.]*") if p.suffix.lower() in IMAGE_SUFFIXES):
            found.setdefault(str(image.parent), []).append(image)
    return found


def _thumb(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    gray = cv2.cvtColor(
        cv2.resize(rgb, _THUMB_WH, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
    )
    return gray.astype(np.float32)


def _changed(
    last: NDArray[np.float32] | None, thumb: NDArray[np.float32], sampling: Sampling
) -> bool:
    return last is None or float(np.abs(thumb - last).mean()) >= sampling.min_change


def _distinct_pictures(
    images: Sequence[Path], group: str, sampling: Sampling, left_out: Callable[[DataError], None]
) -> list[Pair]:
    pairs: list[Pair] = []
    last: NDArray[np.float32] | None = None
    for image in images:
        try:
            thumb = _thumb(read_rgb(image))
        except DataError as error:
            left_out(error)
            continue
        if _changed(last, thumb, sampling):
            pairs.append(Pair(image, None, group))
            last = thumb
    return pairs


def _sample_video(
    video: Path, cache: Path, sampling: Sampling, left_out: Callable[[DataError], None]
) -> list[Pair]:
    # One name a video, a sampling and a version of the file, so that a resumed run finds its frames.
    stat = video.stat()
    key = f"{video.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{sampling.every}:{sampling.min_change}"
    folder = cache / f"{video.stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if not (folder / "done").is_file():
        last: NDArray[np.float32] | None = None
        for index, rgb in _timed_frames(video, sampling.every, left_out):
            thumb = _thumb(rgb)
            if _changed(last, thumb, sampling):
                write_png(folder / f"{index:07d}.png", rgb)
                last = thumb
        if folder.is_dir():
            (folder / "done").touch()
    return [Pair(image, None, str(video)) for image in sorted(folder.glob("[!.]*.png"))]


def _timed_frames(
    video: Path, every: float, left_out: Callable[[DataError], None]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (frame number, RGB) at least `every` seconds apart, by the frames' own timestamps."""
    import av

    container, stream = open_video(video)
    with container:
        due = float("-inf")
        stream.thread_type = "AUTO"
        try:
            for index, frame in enumerate(container.decode(stream)):
                seconds = index / 25 if frame.time is None else frame.time
                if seconds >= due:
                    due = seconds + every - 1e-6
                    yield index, upright_rgb(frame)
        except av.error.FFmpegError:
            # A recording cut short still has all its frames up to the cut.
            left_out(DataError(f"{video}: cut short or damaged; the frames up to there are used"))
