"""Open files, folders, globs, cameras and streams as sources of frames."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import walk_files
from fada_deploy.common.images import IMAGE_SUFFIXES
from fada_deploy.common.video import SUPPORTED_FILES, VIDEO_SUFFIXES
from fada_deploy.runtime.sources.addresses import SCHEMES, display_name, is_live_address
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.images import ImageSource, UnreadableSource
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.sources.videos import VideoSource

# A path, glob or address; the number of a camera; or a source that is already open.
SourceSpec = str | Path | int | Source


def open_sources(
    sources: SourceSpec | Sequence[SourceSpec | Sequence[SourceSpec]],
    *,
    hardware: str | None = None,
    recursive: bool = False,
) -> list[Source]:
    """Open files, folders, globs, cameras and stream addresses as sources.

    A folder becomes one source for its images and one for each of its videos. Subfolders are
    searched only if `recursive`, and are sources of their own. A number is a camera (a string of
    digits only if no such path exists). Lists are flattened, `Source` objects are returned
    unchanged, and a path that is named twice is opened once. Among several sources, a path that
    does not exist, a folder without supported files and a glob that matches nothing each become a
    source that yields one error.

    Args:
        sources: What to open. Live sources are read at the same time, files one after the other;
            the two kinds cannot be mixed.
        hardware: Device that decodes video files, a key of `HARDWARE_ENCODERS` [the CPU].
        recursive: Also search the subfolders of folders. Linked folders are followed once.

    Raises:
        DataError: The only source does not exist, is empty or unreadable.
        UsageError: `sources` is empty or mixes live sources with files.
    """
    # Also a single source; a text is a sequence, too.
    specs = list(_flatten([sources]))
    if not specs:
        raise UsageError(f"no source given; name {SUPPORTED_FILES}, a folder or a glob")
    single = len(specs) == 1
    opened: dict[str, Source] = {}
    for spec in specs:
        try:
            items = _open(spec, hardware, single=single, recursive=recursive)
        except DataError as error:
            if single:
                raise
            items = [UnreadableSource(str(spec), error)]
        except OSError as error:
            unreadable = _cannot_be_read(str(spec), error)
            if single:
                raise unreadable from None
            items = [UnreadableSource(str(spec), unreadable)]
        for source in items:
            _tell_apart(source, opened)
            other = opened.setdefault(source.name, source)
            if spec is source and other is not source and not isinstance(source, LiveSource):
                raise UsageError(f"two open sources have the name {source.name!r}")
    _refuse_mixture(list(opened.values()))
    return list(opened.values())


def _tell_apart(source: Source, opened: Mapping[str, Source]) -> None:
    """Number the name of a stream whose address differs from that of a stream of the same name.

    Names do not contain the login, which may be all that tells the cameras of a recorder apart.
    """
    if not isinstance(source, LiveSource):
        return
    name, number = source.name, 2
    while isinstance(other := opened.get(source.name), LiveSource) and not other.reads(source):
        source.name, number = f"{name}#{number}", number + 1


def subfolders(folder: Path) -> int:
    """Return the number of visible folders in a folder."""
    try:
        return sum(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())
    except OSError as error:
        raise _cannot_be_read(str(folder), error) from None


def _cannot_be_read(name: str, error: OSError) -> DataError:
    return DataError(f"{name} cannot be read ({error.strerror})")


def _refuse_mixture(sources: Sequence[Source]) -> None:
    """Raise `UsageError` if a live source would block others: only streams can be read together."""
    live = [source for source in sources if source.is_live]
    if live and len(sources) > 1 and not all(isinstance(s, LiveSource) for s in sources):
        raise UsageError(
            f"{live[0].name} is a live source and cannot be combined with files or folders; "
            "name only streams and cameras, or one watched folder"
        )


def _flatten(sources: Sequence[Any]) -> Iterator[SourceSpec]:
    for spec in sources:
        if isinstance(spec, str | Path | int) or hasattr(spec, "frames"):
            yield cast("SourceSpec", spec)
        elif isinstance(spec, Iterable) and not isinstance(spec, bytes | Mapping):
            yield from _flatten(list(spec))
        else:
            raise UsageError(
                "a source must be a path, an address, a number or an open source, got "
                f"{type(spec).__name__}"
            )


def _open(spec: SourceSpec, hardware: str | None, *, single: bool, recursive: bool) -> list[Source]:
    if isinstance(spec, int) or (isinstance(spec, str) and is_live_address(spec)):
        return [LiveSource(spec)]
    if not isinstance(spec, str | Path):
        return [spec]
    path, text = Path(spec), str(spec)
    if path.is_dir():
        return _open_tree(path, hardware) if recursive else _open_folder(path, hardware)
    if path.is_file():
        return [_open_file(path, hardware, single=single)]
    if "://" in text:
        name = display_name(text)
        raise UsageError(f"{name}: unknown kind of stream; supported is {' '.join(SCHEMES)}")
    if glob.has_magic(text):
        return _open_glob(text, hardware, single=single)
    raise DataError(f"{text}: no such file or folder")


def _open_glob(pattern: str, hardware: str | None, *, single: bool) -> list[Source]:
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in paths if _is_supported(path)]
    if not paths:
        raise DataError(f"{pattern}: matches no file that is {SUPPORTED_FILES}")
    return [_open_file(path, hardware, single=single and len(paths) == 1) for path in paths]


def _open_file(path: Path, hardware: str | None, *, single: bool) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(str(path), {"": path})
    video = VideoSource(path, hardware)
    # One of several videos reports its error when it is read, so that the others are processed.
    if single:
        video.probe()
    return video


def _open_tree(folder: Path, hardware: str | None) -> list[Source]:
    """Open the files of a folder and of all folders below it."""
    files: dict[Path, list[Path]] = {}
    errors: list[OSError] = []
    for path in walk_files(folder, VIDEO_SUFFIXES | IMAGE_SUFFIXES, errors.append):
        files.setdefault(path.parent, []).append(path)
    unreadable: list[Source] = [
        UnreadableSource(name := str(error.filename), _cannot_be_read(name, error))
        for error in errors
    ]
    if not files and not unreadable:
        raise DataError(f"{folder}: no folder below it contains a file that is {SUPPORTED_FILES}")
    readable = (s for below, paths in files.items() for s in _open_files(below, paths, hardware))
    return [*readable, *unreadable]


def _open_folder(folder: Path, hardware: str | None) -> list[Source]:
    # Hidden files are those of the system, such as macOS's `._photo.jpg` on memory cards.
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    files = sorted(path for path in visible if _is_supported(path))
    if not files:
        hint = "; subfolders are not searched, use --recursive" if subfolders(folder) else ""
        raise DataError(f"{folder}: the folder contains no file that is {SUPPORTED_FILES}{hint}")
    return _open_files(folder, files, hardware)


def _open_files(folder: Path, files: Sequence[Path], hardware: str | None) -> list[Source]:
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    videos: list[Source] = [
        VideoSource(p, hardware) for p in files if p.suffix.lower() in VIDEO_SUFFIXES
    ]
    stems, names = Counter(path.stem for path in images), {path.name for path in images}
    items = {
        path.stem if stems[path.stem] == 1 and path.stem not in names else path.name: path
        for path in images
    }
    return [ImageSource(str(folder), items), *videos] if images else videos


def _is_supported(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES
