"""Unlabeled recordings as a target: a video, a folder of videos, or a folder of images.

Frames are sampled by time and near-duplicates (of a car that stands still) are dropped. Whole
clips are held out, never single frames, because a neighbor of a training frame tests nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.decoding import timed_frames
from fada_deploy.common.documents import decode_json, encode_json
from fada_deploy.common.errors import DataError
from fada_deploy.common.files import walk_files, write_text
from fada_deploy.common.images import IMAGE_SUFFIXES, read_rgb, write_png
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.read_ahead import read_ahead
from fada_deploy.common.runs import contains_results
from fada_deploy.common.system import usable_cores
from fada_deploy.common.video import SUPPORTED_FILES, VIDEO_SUFFIXES, open_video, upright_rgb
from fada_deploy.data.base import FrameDataset, Pair, read_mask

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.1
_LABEL_FOLDERS = frozenset({"annotations", "gtfine", "labels", "masks"})
_THUMBNAIL_WH = (32, 18)
# Timestamps of damaged recordings run back by less; they do not begin anew.
_JITTER_S = 1.0
_MIB = 1 << 20
# Of the 255 bytes that a file name may have; a digest is added.
_STEM_BYTES = 200
# The last file that is written for a video.
_DONE = "done"

OnError = Callable[[DataError], None]


@dataclass(frozen=True)
class Sampling:
    """Which frames of a recording are used.

    `every` is the time between two frames of a video in seconds. A frame is dropped if its 32×18
    gray thumbnail differs from the previous one by less than `min_change` (mean absolute
    difference, 0…255).
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
    on_error: OnError = lambda error: None,
) -> tuple[FrameDataset, FrameDataset]:
    """Sample recordings into two data sets without labels: (training, held-out).

    Frames of videos are written as PNG files to `cache`. Images are used in place; `cache` keeps
    which of them. Folders of label maps, runs, and output folders of `fada infer` are skipped. At
    most a tenth of the frames is held out, in whole clips. If no clip is that short, the last tenth
    of the longest clip is held out, and the tenth before it is not used.

    `on_error` receives one error for each file that cannot be used. Raise `DataError` if no file
    can be used.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; recordings are a video, or a folder of videos or "
            "images"
        )
    # Read the mask first, because sampling hours of video takes long.
    mask = None if ego_mask is None else read_mask(ego_mask)
    sampling = sampling or Sampling()
    clips: dict[str, list[Pair]] = {}
    # Before the frames of videos are written: `cache` may be in the folder.
    videos, image_folders = _videos_and_images(path, cache)
    for video in videos:
        try:
            clips[str(video)] = _sample_video(video, cache, sampling, on_error)
        except DataError as error:
            if video == path:
                raise
            on_error(error)
            continue
        logger.info("%s: sampled %d frames", video.name, len(clips[str(video)]))
    for folder, images in image_folders.items():
        parts = (path.name, *Path(folder).relative_to(path).parts)
        if _LABEL_FOLDERS & {part.lower() for part in parts}:
            logger.info("%s: skipped, because its name is that of a folder of label maps", folder)
            continue
        clips[folder] = _distinct_images(images, cache, sampling, on_error)
        logger.info("%s: using %d of %d images", folder, len(clips[folder]), len(images))
    clips = {name: pairs for name, pairs in clips.items() if pairs}
    if not clips:
        raise DataError(f"{path}: contains no readable video or image; expected {SUPPORTED_FILES}")
    train, held_out = split_by_clip(clips)

    def no_labels(labels: Path) -> NDArray[np.uint8]:
        raise DataError(f"{labels}: recordings have no labels")

    base = FrameDataset(path.stem, "train", space, train, no_labels, mask)
    return base, replace(base, split="val", pairs=held_out)


def split_by_clip(clips: dict[str, list[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """Split clips into (training, held-out) frames.

    The choice depends only on the names and lengths of the clips.
    """
    limit = HELD_OUT_FRACTION * sum(map(len, clips.values()))
    held_out: list[Pair] = []
    train = dict(clips)

    def order(name: str) -> bytes:
        return hashlib.sha256(os.fsencode(Path(name).name)).digest()

    for name in sorted(clips, key=order):
        if len(held_out) + len(clips[name]) <= limit:
            held_out += train.pop(name)
    longest = max(train, key=lambda name: len(train[name]))
    if not held_out and len(train[longest]) >= 5:
        tenth = max(1, round(HELD_OUT_FRACTION * len(train[longest])))
        held_out = train[longest][-tenth:]
        train[longest] = train[longest][: -2 * tenth]
    return [pair for pairs in train.values() for pair in pairs], held_out


def _videos_and_images(path: Path, cache: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the videos, and the images by their folder."""
    if path.is_file():
        return [path], {}

    cache = cache.resolve()

    def skip(folder: Path) -> bool:
        if folder.resolve() == cache:
            return True
        try:
            found = contains_results(folder)
        except OSError:
            return False  # it cannot be read, and is left out like every such folder
        if found:
            logger.info("%s: skipped, because it contains results of fada_deploy", folder)
        return found

    videos: list[Path] = []
    images: dict[str, list[Path]] = {}
    for file in walk_files(path, VIDEO_SUFFIXES | IMAGE_SUFFIXES, skip=skip):
        if file.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(file)
        else:
            images.setdefault(str(file.parent), []).append(file)
    return videos, images


def _thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _changed(
    previous: NDArray[np.float32] | None, thumbnail: NDArray[np.float32], sampling: Sampling
) -> bool:
    if previous is None:
        return True
    return float(np.abs(thumbnail - previous).mean()) >= sampling.min_change


def _distinct_images(
    images: Sequence[Path], cache: Path, sampling: Sampling, on_error: OnError
) -> list[Pair]:
    """Return the images of a folder that differ from the previous one.

    The choice is kept in `cache`, because a resumed run would have to decode all images again.
    """
    listing = cache / f"images-{_state(images, sampling)}.json"
    chosen = _read_choice(listing, len(images))
    errors = [] if chosen is None else [_read_error(images[i]) for i in chosen.unreadable]
    # An image that could not be read because of a network disk or a permission may be readable now.
    if chosen is None or None in errors:
        chosen = _choose_images(images, sampling)
        errors = [_read_error(images[i]) for i in chosen.unreadable]
        # A cache that cannot be written costs time only.
        with suppress(OSError):
            write_text(listing, encode_json(chosen).decode())
    for error in errors:
        if error is not None:
            on_error(error)
    return [Pair(images[i], None, str(images[i].parent)) for i in chosen.indices]


def _read_error(image: Path) -> DataError | None:
    try:
        read_rgb(image)
    except DataError as error:
        return error
    return None


@dataclass(frozen=True)
class _Choice:
    """Which images of a folder are used, and which cannot be read, by their index."""

    indices: list[int]
    unreadable: list[int]


def _state(images: Sequence[Path], sampling: Sampling) -> str:
    """Return a hash of the names, sizes and times of images."""
    digest = hashlib.sha256(f"{sampling.min_change}".encode())
    for image in images:
        digest.update(os.fsencode(image.name) + b"\0")
        with suppress(OSError):
            status = image.stat()
            digest.update(f"{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _read_choice(listing: Path, count: int) -> _Choice | None:
    """Return a stored choice among `count` images; None if there is none, or if it is damaged."""
    try:
        choice = decode_json(listing.read_bytes(), _Choice)
    except (OSError, ValueError):
        return None
    known = all(0 <= i < count for i in (*choice.indices, *choice.unreadable))
    return choice if known else None


def _choose_images(images: Sequence[Path], sampling: Sampling) -> _Choice:
    threads = usable_cores()
    thumbnails = read_ahead(
        lambda i: _thumbnail(read_rgb(images[i])), len(images), threads=threads, depth=2 * threads
    )
    choice = _Choice([], [])
    previous: NDArray[np.float32] | None = None
    with closing(thumbnails), progress_bar(len(images), "comparing images", unit="image") as bar:
        for i, thumbnail in enumerate(thumbnails):
            bar.update(1)
            if isinstance(thumbnail, DataError):
                choice.unreadable.append(i)
            elif _changed(previous, thumbnail, sampling):
                choice.indices.append(i)
                previous = thumbnail
    return choice


def _sample_video(video: Path, cache: Path, sampling: Sampling, on_error: OnError) -> list[Pair]:
    # The folder's name identifies the version of the file and the sampling, so a resumed run finds
    # its frames again. A copy of the video has another time, but the same version.
    key = f"{_version(video)}:{sampling.every}:{sampling.min_change}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    stem = os.fsdecode(os.fsencode(video.stem)[:_STEM_BYTES])
    folder = cache / f"{stem}-{digest}"
    done = folder / _DONE
    if is_sampled(folder):
        for line in done.read_text("utf-8", "surrogateescape").splitlines():
            on_error(DataError(line))
    else:
        errors: list[DataError] = []
        previous: NDArray[np.float32] | None = None
        for index, rgb in _timed_frames(video, sampling.every, errors.append):
            thumbnail = _thumbnail(rgb)
            if _changed(previous, thumbnail, sampling):
                write_png(folder / f"{index:07d}.png", rgb)
                previous = thumbnail
        for error in errors:
            on_error(error)
        if folder.is_dir():
            # A resumed run reports the errors again.
            lines = "".join(f"{error}\n" for error in errors)
            write_text(done, lines)
    return [Pair(image, None, str(video)) for image in sorted(folder.glob("[!.]*.png"))]


def is_sampled(folder: Path) -> bool:
    """Return whether a folder has all frames of a video, and not only those before a kill."""
    return (folder / _DONE).is_file()


def _version(video: Path) -> str:
    """Return the SHA-256 of the file's size and of its first and last MiB."""
    try:
        size = video.stat().st_size
        digest = hashlib.sha256(f"{size}".encode())
        with video.open("rb") as handle:
            digest.update(handle.read(_MIB))
            handle.seek(max(0, size - _MIB))
            digest.update(handle.read(_MIB))
    except OSError as error:
        raise DataError(f"{video}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _timed_frames(
    video: Path, every: float, on_error: OnError
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (frame number, RGB) of frames at least `every` seconds apart by their timestamps.

    Timestamps that jump back by more than a second begin anew, as where two recordings were joined
    unchanged.
    """
    container, stream = open_video(video)
    total = stream.frames or None
    with container, progress_bar(total, f"sampling {video.name}", unit="frame") as bar:
        used_s: float | None = None
        stream.thread_type = "AUTO"
        index = damaged = 0
        for timed in timed_frames(container, stream):
            bar.update(1)
            if timed is None:
                damaged += 1
                continue
            time_s = float(timed.time_s)
            # A tolerance, since timestamps are rounded to the time base of the file.
            if used_s is None or not used_s - _JITTER_S <= time_s < used_s + every - 1e-6:
                used_s = time_s
                yield index, upright_rgb(timed.decoded)
            index += 1
        if damaged:
            on_error(DataError(f"{video}: truncated or damaged; used the {index} readable frames"))
