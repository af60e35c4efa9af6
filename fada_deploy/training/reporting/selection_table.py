"""The section of the report about the choice of a stage without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import ModelError
from fada_deploy.common.selection import (
    TABLE_HEADER,
    describe_choice,
    read_selection,
    table_rows,
)
from fada_deploy.training.reporting.run_summary import RunSummary


def selection_tables(runs: Sequence[RunSummary], names: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Return header, rows and notes for each run with a readable `selection.json`.

    `names` are the prefixes of the runs.
    """
    tables = []
    for run in runs:
        try:
            document = read_selection(run.folder)
        except ModelError:
            continue
        if document is None:
            continue
        vanished = [
            f"{each.name}: {', '.join(each.vanished_classes)}"
            for each in document.candidates
            if each.vanished_classes
        ]
        notes = [f"{names[run.folder]}{describe_choice(document)}."]
        if vanished:
            notes.append(f"No longer predicted on the target: {'; '.join(vanished)}.")
        rows = table_rows(document)
        tables.append({"header": TABLE_HEADER, "rows": rows, "notes": notes})
    return tables
