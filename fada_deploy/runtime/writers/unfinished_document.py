"""The end of a JSON document of results, which the document of a killed process lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

# Follows the last frame.
END = "\n]}\n"
# Names of cameras, streams and the standard input (`sources.addresses.display_name`).
_LIVE_NAME = re.compile(r"pipe$|camera-\d+$|[a-z]+://")


def end_live_document(path: Path) -> bool:
    """Write the end of the document of a live source whose process was killed.

    A frame that is incomplete is removed. Return False, and change nothing, if the document has no
    complete frame or its source is a file or folder, which can be read again.
    """
    with path.open("r+b") as file:
        header = file.readline()
        try:
            source = json.loads(header + b"]}")["source"]
        except (ValueError, KeyError, TypeError):
            return False
        if not _LIVE_NAME.match(str(source)):
            return False
        start, complete = len(header), 0
        for line in file:
            frame = line.rstrip(b",\r\n")
            try:
                json.loads(frame)
            except ValueError:
                break
            complete = start + len(frame)
            start += len(line)
        if not complete:
            return False
        file.truncate(complete)
        file.seek(complete)
        file.write(END.encode())
    return True
