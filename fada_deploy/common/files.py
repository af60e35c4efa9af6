"""Files that are whole or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fada_deploy.common.errors import UsageError


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; flush and rename it on success, remove it on failure.

    The temporary keeps the suffix of `final`, since writers choose their format by it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed left half-written anywhere under `folder`."""
    for path in folder.rglob(".*.partial*"):
        path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder for what can be made again: `$XDG_CACHE_HOME/fada_deploy`, or under `~/.cache`.

    Raise `OSError` when there is no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fada_deploy"
    except RuntimeError as error:
        raise OSError(str(error)) from None


LOCK = ".lock"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; raise `UsageError` when another one holds it.

    The lock is the operating system's, which lets go of it however the process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{folder}: another process is at work on it; wait for it, or stop it with Ctrl-C or `kill`"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_text(final: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, "utf-8")


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def numbered_dir(parent: Path, stem: str) -> Path:
    """Create and return the first free `parent/stem-NNN`, counting from 001."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [p.name.removeprefix(f"{stem}-") for p in parent.glob(f"{stem}-*")]
    number = max((int(n) for n in taken if n.isdigit()), default=0) + 1
    while True:
        path = parent / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
