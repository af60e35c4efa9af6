"""The published JSON Schema of run settings."""

from __future__ import annotations

import json
from pathlib import Path

from fada_deploy.common.documents import json_schema
from fada_deploy.training.config import RunConfig

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas" / "run-config.schema.json"


def test_published_schema_is_current() -> None:
    """Regenerate the file with `json_schema(RunConfig)` after a change of the settings."""
    assert json.loads(PUBLISHED.read_text("utf-8")) == json.loads(
        json.dumps(json_schema(RunConfig))
    )


def test_schema_has_every_setting_of_a_run() -> None:
    schema = json_schema(RunConfig)
    settings = schema["$defs"]["RunConfig"]["properties"]
    assert set(settings) == set(RunConfig("gta5", "cityscapes").to_dict())
