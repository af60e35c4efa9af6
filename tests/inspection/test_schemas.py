"""The committed JSON Schemas equal the generated ones and describe real documents."""

from __future__ import annotations

import json
from pathlib import Path

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.inspection.schemas import schemas, write_schemas

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


def test_committed_schemas_are_current(tmp_path: Path) -> None:
    generated = write_schemas(tmp_path)
    # The schema of run settings needs torch; tests/training compares it.
    names = {path.name for path in generated} | {"run-config.schema.json"}
    assert {path.name for path in PUBLISHED.glob("*.json")} == names
    for path in generated:
        assert (PUBLISHED / path.name).read_text("utf-8") == path.read_text("utf-8"), (
            "run: python -c 'from pathlib import Path; from fada_deploy.inspection.schemas "
            'import write_schemas; write_schemas(Path("docs/schemas"))\''
        )


def test_metadata_schema_names_each_key_of_a_written_document() -> None:
    definitions = schemas()["metadata"]["$defs"]
    document = json.loads(ModelMetadata(CITYSCAPES_19, (64, 96), "logits", True).to_json())
    assert set(definitions["MetadataDocument"]["properties"]) == set(document)
    assert set(definitions["InputDocument"]["properties"]) == set(document["input"])
    assert definitions["MetadataDocument"]["additionalProperties"] is False
