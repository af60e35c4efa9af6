"""Write tables of the JSON Schemas in docs/schemas into the file-format reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "<!-- schema-reference -->"
SCHEMAS = Path(__file__).parent.parent / "schemas"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker in a page with one section for each schema."""
    if MARKER not in markdown:
        return markdown
    return markdown.replace(MARKER, "\n".join(describe_schemas(SCHEMAS)))


def describe_schemas(folder: Path) -> Iterator[str]:
    """Yield Markdown for each schema of a folder: a link to the file and a table of its keys."""
    for path in sorted(folder.glob("*.json")):
        schema = json.loads(path.read_text("utf-8"))
        name = path.name.removesuffix(".json").removesuffix(".schema")
        yield f"### `{name}`\n"
        definitions = schema.get("$defs", {})
        document = _resolve(schema, definitions)
        text = f"{_text(document).rstrip('.')}. " if _text(document) else ""
        yield f"{text}Schema: [{path.name}](../schemas/{path.name}).\n"
        yield from _table(document)
        for title, definition in definitions.items():
            if "properties" in definition and f"#/$defs/{title}" != schema.get("$ref"):
                yield f"**{title}**: {_text(definition)}\n"
                yield from _table(definition)


def _resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    resolved: dict[str, Any] = definitions[reference] if reference else schema
    return resolved


def _text(schema: dict[str, Any]) -> str:
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")


def _table(schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties", {})
    if not properties:
        return
    described = any(_text(value) for value in properties.values())
    header = ["Key", "Type", "Required", *["Description"] * described]
    yield f"| {' | '.join(header)} |\n{'|---' * len(header)}|"
    required = schema.get("required", [])
    for key, value in properties.items():
        cells = [f"`{key}`", _type(value), "yes" if key in required else "no"]
        yield f"| {' | '.join([*cells, *[_text(value)] * described])} |"
    yield ""


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return str(value["$ref"]).rsplit("/", 1)[-1]
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(_type(choice) for choice in value[key])
    if "enum" in value:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    kind = value.get("type", "any")
    if kind == "array":
        items = value.get("items")
        return f"array of {_type(items)}" if isinstance(items, dict) else "array"
    if isinstance(kind, list):
        return " or ".join(kind)
    return str(kind)
