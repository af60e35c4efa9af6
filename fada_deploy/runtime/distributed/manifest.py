"""The manifest of a job: what its inputs are, what was done, and the hashes of the outputs.

`manifest.jsonl` in the output folder has one JSON document a line. An interrupted job continues
from it.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from fada_deploy.cluster.output_folder import OutputFolder
from fada_deploy.common.documents import decode_json, encode_json
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.runs import MANIFEST
from fada_deploy.runtime.writers.finished import SETTING_NAMES

# Seconds between two versions of a manifest in an object store, where files cannot be appended to.
_WRITE_INTERVAL_S = 5.0
# The same for the lines that end a source, without which it would be processed again.
_END_INTERVAL_S = 1.0


class JobLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="job"):
    """The first line: the settings that decide the outputs."""

    schema: Literal[1] = 1
    settings: dict[str, Any]


class InputLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="input"):
    """A source whose processing has begun, and the number of its parts.

    In all lines, `source` is the absolute path of a file or folder.
    """

    id: str
    source: str
    output: str
    parts: int


class PartLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="part"):
    """A part of a source that is done."""

    id: str
    part: int
    frames: int


class DoneLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="done"):
    """A source that is done.

    `errors` are the frames that could not be read; such a source is processed again when the job is
    continued. `files` has the SHA-256 of each output file. For a folder of one file per frame it
    has the SHA-256 of the output of `sha256sum *` in the folder.
    """

    id: str
    source: str
    output: str
    frames: int
    errors: list[str] = []
    files: dict[str, str] = {}


class FailedLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="failed"):
    """A source that could not be processed; it is tried again when the job is continued."""

    id: str
    source: str
    error: str


Line = JobLine | InputLine | PartLine | DoneLine | FailedLine


class Manifest:
    """Reads and writes the manifest of a job.

    Args:
        output: The output folder.
        settings: What decides the outputs.
        resume: Continue the job in the folder. Otherwise `begin` replaces its manifest.

    Attributes:
        done: Ids of the sources that an earlier run has finished without an error.
        outputs: Source of each output name that an earlier run has written.
        has_earlier_job: Whether there was a manifest in the folder.
        has_begun: Whether the file is that of this job.

    Raises:
        UsageError: `resume` is set, and the job in the folder has other settings.
        DataError: The manifest is damaged.
    """

    def __init__(self, output: OutputFolder, settings: dict[str, Any], *, resume: bool) -> None:
        self._output = output
        # What is not in the file: everything before `begin`. Later, all lines if the file cannot be
        # appended to, else nothing.
        self._text = bytearray()
        self.has_begun = False
        self._written = 0.0
        self.done: set[str] = set()
        self.outputs: dict[str, str] = {}
        data = output.read(MANIFEST)
        self.has_earlier_job = data is not None
        self._text += (
            self._read(data, settings) if data and resume else _encode(JobLine(settings=settings))
        )

    def begin(self) -> None:
        """Write the file, which replaces that of an earlier job."""
        self.has_begun = True
        self._write()
        if self._output.path is not None:
            self._text.clear()

    def add(self, line: Line) -> None:
        """Append a line. In an object store, it may be written with one of the next ones."""
        if not self.has_begun:
            self._text += _encode(line)
            return
        if self._output.path is not None:
            with (self._output.path / MANIFEST).open("ab") as file:
                file.write(_encode(line))
            return
        self._text += _encode(line)
        is_end = isinstance(line, DoneLine | FailedLine)
        if time.monotonic() - self._written > (_END_INTERVAL_S if is_end else _WRITE_INTERVAL_S):
            self._write()

    def close(self) -> None:
        """Write all lines, if the job has begun."""
        if self.has_begun and self._output.path is None:
            self._write()

    def _write(self) -> None:
        self._output.write(MANIFEST, bytes(self._text))
        self._written = time.monotonic()

    def _read(self, data: bytes, settings: dict[str, Any]) -> bytes:
        """Check the manifest of the job to continue; return its complete lines."""
        # A last line without an end was being written when the driver was killed.
        complete = data[: data.rfind(b"\n") + 1]
        where = f"{self._output}/{MANIFEST}"
        try:
            lines = [_decode(each) for each in complete.splitlines()]
        except ValueError as error:
            raise DataError(
                f"{where}: is damaged ({error}); delete it to start from the beginning"
            ) from None
        if not lines or not isinstance(job := lines[0], JobLine):
            raise DataError(f"{where}: is not a manifest; delete it to start from the beginning")
        different = [k for k, v in settings.items() if job.settings.get(k) != v]
        if different:
            setting = SETTING_NAMES.get(different[0], different[0])
            raise UsageError(
                f"--resume: the outputs in {self._output} were made with another {setting}; "
                "use the same one, or another --out"
            )
        self.outputs = {line.output: line.source for line in lines if isinstance(line, DoneLine)}
        self.done = {line.id for line in lines if isinstance(line, DoneLine) and not line.errors}
        return complete


def _decode(line: bytes) -> Line:
    decoded: Line = decode_json(line, Line)  # type: ignore[arg-type]  # a union
    return decoded


def _encode(line: Line) -> bytes:
    return encode_json(line) + b"\n"
