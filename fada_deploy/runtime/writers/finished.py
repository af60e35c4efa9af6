"""Which sources of an output folder are finished, so that an interrupted run can go on.

The document `finished.json` in the output folder lists them with the size and time of each file,
and the settings of the run. Its schema is `FinishedDocument`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from fada_deploy.common.documents import read_json
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import sha256, write_text
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.writers.options import SaveOptions

FINISHED = "finished.json"


class FinishedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The file `finished.json`.

    `settings` are those that decide the outputs; `sources` maps the absolute path of each finished
    file or folder to its state.
    """

    schema: Literal[1] = 1
    settings: dict[str, Any]
    sources: dict[str, str]


class FinishedSources:
    """The sources of a run that are finished.

    Args:
        segmenter: The model.
        options: What is written, and where.
        resume: Keep the sources that are finished in the folder. Otherwise all are forgotten.

    Raise `UsageError` if `resume` is set and the outputs in the folder were made with another model
    or other settings, `DataError` if `finished.json` is damaged.
    """

    def __init__(self, segmenter: Segmenter, options: SaveOptions, *, resume: bool) -> None:
        self._path = options.out / FINISHED
        self._settings = _settings(segmenter, options)
        self._sources: dict[str, str] = {}
        if not resume:
            self._path.unlink(missing_ok=True)
        elif self._path.is_file():
            document = read_json(
                self._path.read_bytes(), FinishedDocument,
                where=str(self._path), remedy="delete it to start from the beginning",
                error=DataError,
            )  # fmt: skip
            different = [k for k, v in self._settings.items() if document.settings.get(k) != v]
            if different:
                raise UsageError(
                    f"--resume: the outputs in {options.out} were made with another "
                    f"{different[0]}; use the same model and options, or another --out"
                )
            self._sources = document.sources

    def names(self, sources: Iterable[Source]) -> set[str]:
        """Return the names of the sources that are finished and have not changed since."""
        return {
            source.name
            for source in sources
            if (state := _state(source)) and self._sources.get(_key(source)) == state
        }

    def add(self, source: Source) -> None:
        """Remember a source as finished, unless it is not a file or folder."""
        if not (state := _state(source)):
            return
        self._sources[_key(source)] = state
        document = FinishedDocument(settings=self._settings, sources=self._sources)
        write_text(self._path, json.dumps(msgspec.to_builtins(document), indent=2))


def _settings(segmenter: Segmenter, options: SaveOptions) -> dict[str, Any]:
    settings = {
        "model": sha256(segmenter.path),
        "kinds": list(options.kinds),
        "ids": options.ids,
        "style": asdict(options.style),
        "x264_preset": options.x264_preset,
    }
    # As they are read back, with lists instead of tuples.
    normalized: dict[str, Any] = json.loads(json.dumps(settings))
    return normalized


def _key(source: Source) -> str:
    return str(Path(source.name).resolve())


def _state(source: Source) -> str:
    """Return the size and time of a file or of the files in a folder, "" for anything else."""
    path = Path(source.name)
    try:
        if path.is_file():
            stats = [path.stat()]
        elif path.is_dir() and not source.is_live:
            stats = [each.stat() for each in path.iterdir() if each.is_file()]
        else:
            return ""
    except OSError:
        return ""
    size, newest = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return f"{len(stats)} files, {size} bytes, {newest} ns"
