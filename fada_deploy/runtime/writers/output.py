"""What the writer of one kind of output gets."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import free_name
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.writers.encoder import PART_SUFFIX
from fada_deploy.runtime.writers.options import SaveOptions

if TYPE_CHECKING:
    from av import VideoFrame

Image = NDArray[np.uint8]

logger = logging.getLogger(__name__)

_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
# Longest name in bytes; Linux and Windows allow 255 with the suffix.
_MAX_NAME = 200


@dataclass(frozen=True, eq=False)
class DrawnResult:
    """A result and its overlay; `overlay` is None if overlays are not saved.

    The overlay is (H, W, 3) uint8 RGB, or a PyAV frame if it was drawn in YUV.
    """

    result: Result
    overlay: Image | VideoFrame | None


@dataclass
class Output:
    """One kind of output of one source.

    Attributes:
        source: The source.
        name: Name of the source in output paths.
        first: Its first result, which sets the size and time base of videos.
        options: What is saved, and where.
        is_interrupted: Whether the source was stopped before its end; set before the output is
            completed.
    """

    source: Source
    name: str
    first: DrawnResult
    options: SaveOptions
    is_interrupted: bool = False

    @property
    def space(self) -> LabelSpace:
        """The label space of the results."""
        return self.first.result.space

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of the timestamps of a video."""
        assert self.first.result.time_base is not None
        return self.first.result.time_base

    def video_path(self, kind: str) -> Path:
        """Return the video file of the source."""
        return self.source_path(kind, PART_SUFFIX if self.options.as_part else ".mp4")

    def source_path(self, kind: str, suffix: str) -> Path:
        """Return the file that holds all results of the source."""
        return self.options.file or self._below(kind, f"{self.name}{suffix}")

    def frame_path(self, kind: str, suffix: str, result: Result) -> Path:
        """Return the file of one result; a single image has no folder of its own."""
        if self.options.file is not None:
            return self.options.file
        if result.item:
            return self._below(kind, self.name, f"{result.item}{suffix}")
        return self._below(kind, f"{self.name}{suffix}")

    def set_aside_frames(self, kind: str) -> None:
        """Give the folder of an earlier recording of this live source a number."""
        folder = self._below(kind, self.name)
        if self.source.is_live and self.source.is_video and folder.is_dir():
            kept = folder.rename(free_name(folder))
            logger.info("the earlier %s is now %s", folder, kept)

    def _below(self, kind: str, *parts: str) -> Path:
        """Return a path in the folder of a kind of output; it cannot lead out of that folder."""
        folder = self.options.out / kind
        path = folder.joinpath(*parts)
        if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
            raise DataError(f"{self.source.name}: its output {path} would be outside {folder}")
        return path


WriteResult = Callable[[DrawnResult], None]


def safe_name(text: str) -> str:
    """Return a name that every file system stores, and that is no path and no hidden file.

    Characters that separate folders or that a file system refuses become `_`. Names of devices on
    Windows, such as `con`, get a `_`.
    """
    name = _UNSAFE.sub("_", text).strip(" .")
    name = _DEVICE.sub(r"\1_", name)
    while len(os.fsencode(name)) > _MAX_NAME:
        name = name[:-1]
    return name or "source"


def _own_name(source: str) -> str:
    """Return the last part of the name of a source, without the suffix of a file."""
    _, address, rest = source.partition("://")
    if address and "/" not in rest.strip("/"):
        return rest.strip("/")
    return Path(source).resolve().name if os.path.isdir(source) else Path(source).stem


def output_names(sources: Iterable[Source], tree: Path | None = None) -> Mapping[str, str]:
    """Return the safe name of each source in output paths: its stem, numbered if it is taken.

    The name of a stream without a path, such as `rtsp://192.168.1.10`, is its host.

    Names that differ in case alone are one file on Windows and macOS, so they are numbered too.
    Names of sources below the folder `tree` begin with their subfolder.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for source in sources:
        path = Path(source.name)
        stem = safe_name(_own_name(source.name))
        if tree is not None and path.is_relative_to(tree) and path != tree:
            folders = (safe_name(part) for part in path.relative_to(tree).parent.parts)
            stem = "/".join([*folders, stem])
        name, number = stem, 2
        while unicodedata.normalize("NFC", name).casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        names[source.name] = name
        taken.add(unicodedata.normalize("NFC", name).casefold())
    return names
