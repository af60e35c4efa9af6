"""Atomic files, the cache folder, locks and numbered folders."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from fada_deploy.common.errors import UsageError

LOCK = ".lock"
# Longest temporary name in bytes, unless the final name is longer itself.
_MAX_NAME = 64
_TOKEN_BYTES = 3
_DAY_S = 24 * 3600
# Part of a temporary name that tells its process, as a regular expression.
PROCESS = r"\.\d+(-[0-9a-f]{6})?"


# A full disk, an exceeded quota, and a limit of the size of files.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Errors of a disk, and not of a connection from which a file is downloaded.
_DISK_ERRORS = NO_SPACE | {errno.EIO, errno.EROFS}


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; flush and rename it on success, remove it on failure.

    The temporary name has the suffix of `final`, since writers choose the format by the suffix.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(final)
    try:
        yield temporary
        rename_flushed(temporary, final)
    except OSError as error:
        # A write to a file that is open, as on a full disk, does not name the file.
        if error.errno in _DISK_ERRORS and error.filename is None:
            raise type(error)(error.errno, error.strerror, str(final)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file is on the disk, so that it can be renamed."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def rename_flushed(temporary: Path, final: Path) -> None:
    """Give a complete file its final name, after its content has reached the disk."""
    flush_to_disk(temporary)
    temporary.replace(final)


def temporary_path(final: Path) -> Path:
    """Return a new temporary path beside `final` that `partial_files` recognizes.

    The name is `.<stem>.<pid>-<random>.partial<suffix>`, shortened if the file system might refuse
    its length. A shortened stem ends with a hash, so that files with a common prefix do not
    collide. The random part tells apart threads, and processes of containers, whose numbers are
    often equal.
    """
    return final.with_name(_temporary_name(final))


def final_path(temporary: Path) -> Path:
    """Return the path to which a temporary file belongs; its name may be a shortened one.

    Other paths are returned unchanged.
    """
    if not (match := re.fullmatch(rf"\.(.*){PROCESS}\.partial", temporary.stem)):
        return temporary
    return temporary.with_name(match[1] + temporary.suffix)


def _temporary_name(final: Path) -> str:
    limit = max(_MAX_NAME, len(os.fsencode(final.name)))
    process = f"{os.getpid()}-{secrets.token_hex(_TOKEN_BYTES)}"
    ending = f".{process}.partial{final.suffix}"
    if len(os.fsencode(f".{final.stem}{ending}")) <= limit:
        return f".{final.stem}{ending}"
    digest = _digest(final)
    if len(os.fsencode(f".{digest}{ending}")) > limit:  # the suffix is not a file format
        ending = f".{process}.partial"
    stem = final.stem
    while stem and len(os.fsencode(f".{stem}-{digest}{ending}")) > limit:
        stem = stem[:-1]
    return f".{stem}-{digest}{ending}"


def _digest(final: Path) -> str:
    return hashlib.sha256(os.fsencode(final.name)).hexdigest()[:8]


def remove_partial(folder: Path, file: Path | None = None, *, except_in: str = "") -> None:
    """Remove the temporary files that killed processes left anywhere under `folder`.

    Those in its subfolder `except_in` are kept. With `file`, remove only those of that file, in
    `folder` itself.
    """
    for path in partial_files(folder, file):
        if path.relative_to(folder).parts[0] != except_in:
            path.unlink(missing_ok=True)


def remove_old_partial(folder: Path) -> None:
    """Remove temporary files that are older than a day, which nothing writes to any more."""
    for path in folder.glob(".*.partial*"):
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > _DAY_S:
                path.unlink()


def partial_files(folder: Path, file: Path | None = None) -> list[Path]:
    """Return the temporary files of `atomic_path`, of any process, anywhere under `folder`.

    With `file`, return only those of that file, in `folder` itself.
    """
    if file is None:
        return sorted(folder.rglob(".*.partial*"))
    # A shortened name has as many characters as the number of its process leaves.
    stem, suffix = re.escape(file.stem), re.escape(file.suffix)
    own = rf"\.({stem}|.*-{_digest(file)}){PROCESS}\.partial({suffix})?"
    return sorted(path for path in folder.iterdir() if re.fullmatch(own, path.name))


def free_name(path: Path) -> Path:
    """Return a path, numbered from 2 on if it exists."""
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    name, number = path, 2
    while name.exists():
        name, number = path.with_name(f"{stem}-{number}{suffix}"), number + 1
    return name


def walk_files(
    folder: Path,
    suffixes: Collection[str],
    on_error: Callable[[OSError], None] | None = None,
    skip: Callable[[Path], bool] = lambda folder: False,
) -> list[Path]:
    """Return the visible files anywhere below a folder that have one of the suffixes, sorted.

    Linked folders are followed, but none is entered twice, so a link to a parent folder ends.
    `on_error` gets the error of each folder that cannot be read. Folders below `folder` for which
    `skip` is true are left out.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        stat = os.stat(root)
        if (key := (stat.st_dev, stat.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(key)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not skip(Path(root, name))
        )
        names = (name for name in files if not name.startswith("."))
        found += [Path(root, n) for n in names if Path(n).suffix.lower() in suffixes]
    return sorted(found)


def cache_folder() -> Path:
    """Return the user's folder for files that can be computed again.

    That is `$XDG_CACHE_HOME/fada_deploy` if the variable is set, and otherwise the default of the
    operating system (`~/.cache/fada_deploy` on Linux). Raise `OSError` if there is no home folder.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fada_deploy"
    path = user_cache_path("fada_deploy", appauthor=False)
    if not path.is_absolute():  # platformdirs could not expand "~"
        raise OSError("this user has no home folder")
    return path


@contextmanager
def lock(folder: Path, name: str = LOCK, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process; raise `UsageError` if another process has locked it.

    With `wait`, wait until the other process has released it instead. Locks of other names in the
    same folder are independent. The operating system releases the lock however the process ends.
    """
    from filelock import FileLock, Timeout  # slow to import

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file_lock = FileLock(path)
    try:
        file_lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        where = f"{folder}: another process is working in this folder"
        if name != LOCK:
            where = f"{folder / name.removeprefix('.').removesuffix('.lock')}: another process is "
            where += "writing this file"
        raise UsageError(
            f"{where}; wait until it ends, stop it with Ctrl-C or `kill`, or name another output"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove open files; the next lock reuses the file
            path.unlink()
        file_lock.release()


def write_text(final: Path, text: str) -> None:
    """Write UTF-8 text atomically; bytes of file names that are not UTF-8 are kept."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, "utf-8", "surrogateescape")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def numbered_dir(parent: Path, stem: str) -> Path:
    """Create and return `parent/stem-NNN`, one above the highest number, starting at 001."""
    parent.mkdir(parents=True, exist_ok=True)
    suffixes = [p.name.removeprefix(f"{stem}-") for p in parent.glob(f"{stem}-*")]
    number = max((int(text) for text in suffixes if text.isdigit()), default=0) + 1
    while True:
        path = parent / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
