"""JSON output: time and class fractions of each frame, one document per source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from fada_deploy.common.files import atomic_path
from fada_deploy.runtime.writers.output import DrawnResult, Output, WriteResult
from fada_deploy.runtime.writers.recovery import recording_path
from fada_deploy.runtime.writers.unfinished_document import END


@contextmanager
def json_document(output: Output) -> Iterator[WriteResult]:
    """Write `{"source", "classes", "frames": [{"index", "item", "time_s", "fractions"}]}`.

    Frames are written as they arrive, one per line, so that memory does not grow with the video.
    """
    header = json.dumps({"source": output.source.name, "classes": list(output.space.names)})
    new_path = recording_path if output.source.is_live else atomic_path
    with (
        new_path(output.source_path("json", ".json")) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.write(header[:-1] + ', "frames": [')
        separator = "\n"

        def write(drawn: DrawnResult) -> None:
            nonlocal separator
            result = drawn.result
            fractions = {k: round(v, 6) for k, v in result.fractions.items() if v > 0}
            frame = {"index": result.index, "item": result.item, "time_s": result.time_s}
            file.write(separator + json.dumps(frame | {"fractions": fractions}))
            separator = ",\n"

        try:
            yield write
        finally:
            # The document of a live source is kept after an error, too.
            file.write(END)
