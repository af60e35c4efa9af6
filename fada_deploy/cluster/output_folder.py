"""The output folder of a job: a local one, or one in an object store such as S3."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError, MissingExtraError, UsageError, one_line
from fada_deploy.common.files import atomic_path, rename_flushed

# Folder of unfinished files inside the output folder.
PARTS = ".parts"
# Scheme of an address → package that fsspec needs for it.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}


class OutputFolder:
    """Writes files under names relative to a folder, each of them completely or not at all.

    It can be sent to other processes.

    Args:
        url: A path, or an address that fsspec knows: `file:///path`, `s3://bucket/folder`. A path
            must be on a file system that all machines share.

    Raises:
        UsageError: fsspec does not know this kind of address.
        MissingExtraError: A package for this kind of address is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        scheme, separator, rest = self.url.partition("://")
        is_local = not separator or scheme == "file"
        self.path: Path | None = None
        if is_local:
            self.path = Path(rest if separator else self.url).absolute()
        else:
            self._open()

    def __str__(self) -> str:
        return str(self.path or self.url)

    def _open(self) -> tuple[Any, str]:
        """Return fsspec's file system and the folder in it; fsspec keeps them in a cache."""
        try:
            import fsspec  # type: ignore[import-untyped]
        except ImportError:
            raise MissingExtraError("fsspec", "ray") from None
        scheme = self.url.partition("://")[0]
        try:
            system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError:
            package = _PACKAGES.get(scheme, scheme)
            raise MissingExtraError(package, package) from None
        except ValueError:
            raise UsageError(
                f"{self.url}: unknown kind of address; use a path, s3://bucket/folder or another "
                "address that fsspec knows"
            ) from None
        return system, str(root)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Yield a new local folder, from which `put` moves files here; it is removed at the end."""
        parent = None
        if self.path is not None:
            parent = self.path / PARTS
            parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="fada-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, file: Path, name: str) -> None:
        """Move a local file here."""
        with self._errors(name):
            if self.path is not None:
                final = self.path / name
                final.parent.mkdir(parents=True, exist_ok=True)
                rename_flushed(file, final)
                return
            system, root = self._open()
            system.put_file(str(file), f"{root}/{name}")
            file.unlink()

    def move(self, name: str, new_name: str) -> None:
        """Rename a file; do nothing if it is not there because it was renamed before."""
        with self._errors(new_name), suppress(FileNotFoundError):
            if self.path is not None:
                final = self.path / new_name
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path / name, final)
                return
            system, root = self._open()
            # Unlike `mv` and `rm`, these functions take [ and * as characters of a name.
            system.cp_file(f"{root}/{name}", f"{root}/{new_name}")
            system.rm_file(f"{root}/{name}")

    def get(self, name: str, folder: Path) -> Path:
        """Return a local file with the content of a file here; a copy of it is put in `folder`."""
        if self.path is not None:
            return self.path / name
        file = folder / Path(name).name
        with self._errors(name, "read"):
            system, root = self._open()
            system.get_file(f"{root}/{name}", str(file))
        return file

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it does not exist."""
        with self._errors(name, "read"):
            try:
                if self.path is not None:
                    return (self.path / name).read_bytes()
                system, root = self._open()
                data: bytes = system.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it."""
        with self._errors(name):
            if self.path is not None:
                with atomic_path(self.path / name) as temporary:
                    temporary.write_bytes(data)
                return
            system, root = self._open()
            system.pipe_file(f"{root}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with its content, if it exists."""
        with self._errors(name), suppress(FileNotFoundError):
            if self.path is None:
                system, root = self._open()
                for file in system.find(f"{root}/{name}"):
                    system.rm_file(file)
            elif (path := self.path / name).is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def _errors(self, name: str, operation: str = "written") -> Iterator[None]:
        """Turn errors of the file system into `DataError`."""
        try:
            yield
        except (DataError, UsageError):
            raise
        except Exception as error:
            # fsspec passes on the errors of the library of each store.
            reason = error.strerror if isinstance(error, OSError) else None
            raise DataError(
                f"{self}/{name}: cannot be {operation} ({reason or one_line(error)})"
            ) from None
