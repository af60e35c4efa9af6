"""Unfinished recordings of live sources, whose process or machine has stopped."""

from __future__ import annotations

import re
from pathlib import Path

from fada_deploy.common.files import partial_files, remove_partial


def recover_recordings(folder: Path, file: Path | None = None) -> list[Path]:
    """Give the unfinished recordings of killed processes a name; remove other temporary files.

    A recording of a live source can be played up to its last seconds without its end; a video that
    was made from a file cannot, and is made again. `.front.4711.partial.mp4` becomes
    `front-recovered.mp4`. No process may be writing to the folder.

    Args:
        folder: Where to look, with all subfolders.
        file: Look only in `folder` itself, for the temporary files of this output.

    Returns:
        The recordings.
    """
    recovered = []
    for path in partial_files(folder, file):
        if path.suffix.lower() == ".mp4" and _is_playable(path):
            stem = re.sub(r"\.\d+\.partial", "", path.stem).removeprefix(".")
            final = _free_name(path.with_name(f"{stem}-recovered{path.suffix}"))
            path.replace(final)
            recovered.append(final)
    remove_partial(folder, file)
    return recovered


def _is_playable(path: Path) -> bool:
    import av

    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0), None) is not None
    except (av.error.FFmpegError, IndexError):
        return False


def _free_name(path: Path) -> Path:
    name, number = path, 2
    while name.exists():
        name, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return name
