"""The output folder of `fada infer`, and whether anything was written there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fada_deploy.cli.console import log

if TYPE_CHECKING:
    from fada_deploy.runtime.sources.base import Source
    from fada_deploy.runtime.writers.inference import InferenceSummary
    from fada_deploy.runtime.writers.save import SaveOptions


@contextmanager
def output_folder(options: SaveOptions, out: Path | None) -> Iterator[SaveOptions]:
    """Yield the options with a new folder runs/infer-NNN if `out` is None; remove it if empty.

    A folder or file that is named is locked, and temporary files that killed processes left there
    are removed, except for recordings, which get a name. Raise `UsageError` if another process
    writes to it.
    """
    from fada_deploy.common.files import lock, numbered_dir
    from fada_deploy.common.runs import MANIFEST

    if options.file is not None:
        with lock(options.file.parent, f".{options.file.name}.lock"):
            _recover(options.file.parent, options.file)
            yield options
        return
    if out is not None:
        with lock(out):
            for kind in options.kinds:
                with ExitStack() as locks:
                    # A process with --out FILE may be writing to the same folder.
                    for path in (out / kind).rglob(".*.lock"):
                        locks.enter_context(lock(path.parent, path.name))
                    _recover(out / kind)
            yield options
        return
    folder = numbered_dir(Path("runs"), "infer")
    try:
        yield replace(options, out=folder)
    finally:
        if not any(path.is_file() and path.name != MANIFEST for path in folder.rglob("*")):
            shutil.rmtree(folder)


def _recover(folder: Path, file: Path | None = None) -> None:
    from fada_deploy.runtime.writers.recovery import recover_recordings

    for path in recover_recordings(folder, file):
        log(f"{path}: recovered an unfinished recording; its last seconds may be missing")


def has_frames(summary: InferenceSummary, sources: Sequence[Source], *, stopped: bool) -> bool:
    """Return whether there was a frame, or the user stopped the sources.

    Raise `DataError` if no file has a frame. Return False if no live source has one; its error was
    printed when it occurred.
    """
    from fada_deploy.common.errors import DataError

    if summary.frames or summary.finished_before or summary.frames_before:
        return True
    if stopped and not summary.errors:
        return True
    if not summary.errors:
        raise DataError(f"{', '.join(source.name for source in sources)}: contains no frame")
    if any(source.is_live for source in sources):
        return False
    for line in summary.errors[1:]:
        log(f"failed: {line}")
    raise DataError(summary.errors[0])
