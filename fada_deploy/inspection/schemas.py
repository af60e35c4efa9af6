"""JSON Schemas of the documents that this package reads and writes.

They are published in docs/schemas; a test compares those files with what is generated here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fada_deploy.common.comparison_document import ComparisonDocument
from fada_deploy.common.documents import json_schema
from fada_deploy.common.files import write_text
from fada_deploy.common.label_space import LabelSpaceDocument
from fada_deploy.common.metadata import MetadataDocument
from fada_deploy.common.selection import SelectionDocument
from fada_deploy.data.custom import DatasetDocument
from fada_deploy.runtime.backends.engine_file import SidecarDocument
from fada_deploy.runtime.distributed.manifest import Line

# Name of the schema → the type that the document is decoded into.
DOCUMENTS: dict[str, Any] = {
    "comparison": ComparisonDocument,
    "dataset": DatasetDocument,
    "engine-sidecar": SidecarDocument,
    # Each line of a manifest is one document.
    "job-manifest": Line,
    "label-space": LabelSpaceDocument,
    "metadata": MetadataDocument,
    "selection": SelectionDocument,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each document by its name."""
    return {name: json_schema(type_) for name, type_ in DOCUMENTS.items()}


def write_schemas(folder: Path) -> list[Path]:
    """Write each schema to `folder/<name>.schema.json` and return the paths."""
    paths = []
    for name, schema in schemas().items():
        path = folder / f"{name}.schema.json"
        write_text(path, json.dumps(schema, indent=2) + "\n")
        paths.append(path)
    return paths
