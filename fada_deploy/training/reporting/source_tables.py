"""The section of the report about the labels of the sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fada_deploy.training.data.source_check import SOURCES, TABLE_HEAD, SourceRow, table_lines
from fada_deploy.training.reporting.run_summary import RunSummary


def source_tables(runs: Sequence[RunSummary], names: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Return header and rows for each run with a readable `sources.json`.

    `names` are the prefixes of the runs.
    """
    tables = []
    for run in runs:
        try:
            document = json.loads((run.folder / SOURCES).read_text("utf-8"))
            rows = [SourceRow(**row) for row in document["sources"]]
            lines = table_lines(rows, document["num_classes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        tables.append({"header": TABLE_HEAD, "rows": lines, "run": names[run.folder]})
    return tables
