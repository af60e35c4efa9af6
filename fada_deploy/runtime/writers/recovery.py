"""Recordings of live sources that were not ended, because the process or the machine stopped."""

from __future__ import annotations

import re
from pathlib import Path

from fada_deploy.common.files import remove_partial

_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+\.partial\.mp4")


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
    found = folder.rglob(".*.partial.mp4") if file is None else folder.glob(".*.partial.mp4")
    for path in sorted(found):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (file is not None and match["stem"] != file.stem):
            continue
        if _is_playable(path):
            final = _free_name(path.with_name(f"{match['stem']}-recovered.mp4"))
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
