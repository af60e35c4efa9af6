"""Unfinished recordings of live sources, whose process or machine has stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fada_deploy.common.files import (
    atomic_path,
    final_path,
    flush_to_disk,
    free_name,
    partial_files,
    remove_partial,
)
from fada_deploy.runtime.writers.unfinished_document import end_live_document

logger = logging.getLogger(__name__)

# Longest stem of a recording in bytes, to which a few characters are added; 255 are allowed.
_MAX_STEM = 230


@contextmanager
def recording_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path for the recording of a live source, as `atomic_path` does for files.

    What a live source showed cannot be read again, so nothing is lost: an earlier recording of that
    name gets a number, and after an error the recording becomes `<stem>-recovered`; a video only if
    it can be played.
    """
    with atomic_path(final) as temporary:
        try:
            yield temporary
            flush_to_disk(temporary)
        except BaseException:
            with suppress(OSError):
                if temporary.suffix.lower() != ".mp4" or _is_playable(temporary):
                    logger.warning("the unfinished recording is %s", _rename(temporary, final))
            raise
        if final.exists():
            # The new recording is another one.
            kept = free_name(final)
            final.replace(kept)
            logger.info("the earlier %s is now %s", final, kept)


def recover_recordings(folder: Path, file: Path | None = None) -> list[Path]:
    """Give the unfinished recordings of killed processes a name; remove other temporary files.

    A recording of a live source can be played up to its last seconds without its end; a video that
    was made from a file cannot, and is made again. `.front.4711-0a1b2c.partial.mp4` becomes
    `front-recovered.mp4`. The JSON document of a live source gets the end that it lacks. No process
    may be writing to the folder.

    Args:
        folder: Where to look, with all subfolders.
        file: Look only in `folder` itself, for the temporary files of this output.

    Returns:
        The recordings.
    """
    recovered = []
    for path in partial_files(folder, file):
        suffix = path.suffix.lower()
        if (suffix == ".mp4" and _is_playable(path)) or (
            suffix == ".json" and end_live_document(path)
        ):
            recovered.append(_rename(path, file))
    remove_partial(folder, file)
    return recovered


def _rename(path: Path, final: Path | None) -> Path:
    """Give a temporary recording a name for good, and return it.

    Its stem is that of `final`, or else what the temporary name contains of it.
    """
    stem = (final_path(path) if final is None else final).stem
    while len(os.fsencode(stem)) > _MAX_STEM:
        stem = stem[:-1]
    recovered = free_name(path.with_name(f"{stem}-recovered{path.suffix}"))
    path.replace(recovered)
    return recovered


def _is_playable(path: Path) -> bool:
    import av

    try:
        # Without the protocol, FFmpeg reads a colon in the path as the end of one.
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (av.error.FFmpegError, IndexError):
        return False
