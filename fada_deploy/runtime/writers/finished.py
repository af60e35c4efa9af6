"""Which sources of an output folder are finished, so that an interrupted run can go on.

The document `finished.json` in the output folder lists them with the size and time of each file,
and the settings of the run. Its schema is `FinishedDocument`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from fada_deploy.common.documents import read_json
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import sha256, write_text
from fada_deploy.common.images import IMAGE_SUFFIXES
from fada_deploy.common.runs import FINISHED, MANIFEST
from fada_deploy.common.video import VIDEO_SUFFIXES
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.writers.options import SaveOptions
from fada_deploy.runtime.writers.output import output_names

# The document is written again after this time, or after this multiple of the time that it takes.
_WRITE_EVERY_S, _WRITE_EVERY = 2.0, 50
# Setting → the option of `fada infer` that decides it.
SETTING_NAMES = {
    "model": "model",
    "kinds": "--save",
    "ids": "--ids",
    "style": "style of the overlay",
    "x264_preset": "--x264-preset",
    "tree": "setting of --recursive",
    "chunk_frames": "--chunk-frames",
}
# What follows the name of a source in output paths; a folder has no suffix.
_SUFFIXES = ("", ".mp4", ".json", ".png", ".jpg", ".npz")
_MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES


class FinishedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The file `finished.json`.

    `settings` are those that decide the outputs. `sources` maps the absolute path of each finished
    file or folder to its state when it was opened, and `names` maps it to its name in output paths.
    """

    schema: Literal[1] = 1
    settings: dict[str, Any]
    sources: dict[str, str]
    names: dict[str, str]


class FinishedSources:
    """The sources of a run that are finished.

    Args:
        segmenter: The model.
        options: What is written, and where.
        sources: All sources of the run; their state is taken now, before they are read.
        resume: Keep the sources that are finished in the folder. Otherwise all are forgotten.

    Raise `UsageError` if `resume` is set and the outputs in the folder were made with another model
    or other settings, or if a source would overwrite the outputs of a finished one. Raise
    `DataError` if `finished.json` is damaged.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        options: SaveOptions,
        sources: Sequence[Source],
        *,
        resume: bool,
    ) -> None:
        self._out, self._path = options.out, options.out / FINISHED
        self._write_at = float("-inf")
        manifest = options.out / MANIFEST
        if resume and manifest.is_file() and not self._path.is_file():
            raise UsageError(
                f"--resume: the outputs in {options.out} are those of a job on a cluster; add "
                "--ray to continue it, or leave out --resume to begin anew"
            )
        # The outputs will no longer be those of an earlier job on a cluster.
        manifest.unlink(missing_ok=True)
        self._settings = output_settings(segmenter.path, options)
        self._states = {source.name: source_state(source) for source in sources}
        self._output_names = output_names(sources, options.tree)
        self._sources: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._is_changed = False
        self._listed: dict[tuple[str, str], frozenset[str]] = {}
        if not resume:
            self._path.unlink(missing_ok=True)
        elif self._path.is_file():
            document = read_json(
                self._path.read_bytes(), FinishedDocument,
                where=str(self._path), remedy="delete it to start from the beginning",
                error=DataError, max_bytes=None, file_names=True,
            )  # fmt: skip
            different = [k for k, v in self._settings.items() if document.settings.get(k) != v]
            if different:
                raise UsageError(
                    f"--resume: the outputs in {options.out} were made with another "
                    f"{SETTING_NAMES[different[0]]}; use the same one, or another --out"
                )
            self._sources, self._names = document.sources, document.names
            self._check_names(sources)

    def names(self, sources: Iterable[Source]) -> set[str]:
        """Return the names of the sources that are finished and have not changed since.

        A source whose outputs have been removed is not finished.
        """
        return {
            source.name
            for source in sources
            if (state := self._states.get(source.name))
            and self._sources.get(_key(source)) == state
            and self._has_outputs(self._output_names[source.name])
        }

    def _has_outputs(self, name: str) -> bool:
        """Return whether each kind of output has a file or folder of this name."""
        folder, _, own = name.rpartition("/")
        return all(
            any(f"{own}{suffix}" in self._names_in(kind, folder) for suffix in _SUFFIXES)
            for kind in self._settings["kinds"]
        )

    def _names_in(self, kind: str, folder: str) -> frozenset[str]:
        """Return the names in a folder of outputs when the run began."""
        if (kind, folder) not in self._listed:
            try:
                names = frozenset(os.listdir(self._out / kind / folder))
            except OSError:
                names = frozenset()
            self._listed[kind, folder] = names
        return self._listed[kind, folder]

    def add(self, source: Source) -> None:
        """Remember a source as finished, unless it is not a file or folder.

        The document is written within the block `written`, at most every two seconds.
        """
        if not (state := self._states.get(source.name)):
            return
        self._sources[_key(source)] = state
        self._names[_key(source)] = self._output_names[source.name]
        self._is_changed = True
        # Each image of a large folder may be a source of its own.
        if time.monotonic() > self._write_at:
            self._write()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write at the end of the block what was added since the document was last written."""
        try:
            yield
        finally:
            if self._is_changed:
                self._write()

    def _write(self) -> None:
        self._is_changed, start = False, time.monotonic()
        document = FinishedDocument(
            settings=self._settings, sources=self._sources, names=self._names
        )
        write_text(self._path, json.dumps(msgspec.to_builtins(document), indent=2))
        now = time.monotonic()
        self._write_at = now + max(_WRITE_EVERY_S, _WRITE_EVERY * (now - start))

    def _check_names(self, sources: Sequence[Source]) -> None:
        """Raise `UsageError` if a source has the output name of another one that is finished."""
        owners = {name: key for key, name in self._names.items()}
        for source in sources:
            name = self._output_names[source.name]
            if (owner := owners.get(name, _key(source))) != _key(source):
                raise UsageError(
                    f"--resume: {source.name} would overwrite the outputs of {owner}, which are "
                    f"named {name}; name the same sources in the same order, or another --out"
                )


def output_settings(model: Path, options: SaveOptions) -> dict[str, Any]:
    """Return the settings that decide the outputs, as they are read back from JSON."""
    settings = {
        "model": sha256(model),
        "kinds": sorted(options.kinds),
        "ids": options.ids,
        "style": asdict(options.style),
        "x264_preset": options.x264_preset,
        "tree": options.tree is not None,
    }
    normalized: dict[str, Any] = json.loads(json.dumps(settings))
    return normalized


def _key(source: Source) -> str:
    # A link to a file is not resolved, because each name has outputs of its own.
    path = Path(source.name).absolute()
    return str(path.parent.resolve() / path.name)


def source_state(source: Source) -> str:
    """Return the size and time of a file or of the files in a folder, "" for anything else."""
    path = Path(source.name)
    try:
        if path.is_file():
            stats = [path.stat()]
        elif path.is_dir() and not source.is_live:
            # The folder may also hold outputs, such as `finished.json`.
            media = (each for each in path.iterdir() if each.suffix.lower() in _MEDIA)
            stats = [each.stat() for each in media if each.is_file()]
        else:
            return ""
    except OSError:
        return ""
    size, newest = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return f"{len(stats)} files, {size} bytes, {newest} ns"
