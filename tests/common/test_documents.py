"""Typed documents: what is refused, and that every refusal is one line with its key path."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from fada_deploy.common.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    convert,
    decode_json,
    encode_json,
    json_schema,
    read_json,
    read_toml,
)
from fada_deploy.common.errors import DataError, ModelError, UsageError


class Item(Struct, frozen=True, rename="camel"):
    train_id: Annotated[int, Meta(ge=0, le=254)]
    color: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Document:
    name: str
    items: tuple[Item | str, ...] = ()
    weights: dict[str, float] | None = None
    by_id: dict[int, str] | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.name == "two words":
            raise ValueError("name must be one word")
        if self.name == "refused":
            raise DataError("name is refused")


def error_of(text: str | bytes, type_: type[Any] = Document) -> str:
    with pytest.raises(ModelError) as caught:
        read_json(text, type_, where="file.json", remedy="export it again")
    message = str(caught.value)
    assert message.startswith("file.json: ") and message.endswith("; export it again")
    assert "\n" not in message
    return message.removeprefix("file.json: ").removesuffix("; export it again")


def test_reads_dataclasses_and_structs() -> None:
    text = (
        '{"name": "x", "items": ["road", {"trainId": 3, "color": [1, 2, 3]}], "by_id": {"7": "y"}}'
    )
    expected = Document("x", ("road", Item(3, (1, 2, 3))), by_id={7: "y"})
    assert read_json(text, Document, where="w", remedy="r") == expected
    assert read_json(text.encode(), Document, where="w", remedy="r") == expected
    assert read_json('{"trainId": 0}', Item, where="w", remedy="r") == Item(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": 7}', "name: found 7, expected a text"),
        ('{"name": true}', "name: found True, expected a text"),
        ("{}", "the key 'name' is missing"),
        ("[]", "found a list, expected a table"),
        ('{"name": "x", "kid": 1}', "unknown key kid; did you mean kind?"),
        ('{"name": "x", "q": 1}', "unknown key q; allowed are name, items, weights"),
        (
            '{"name": "x", "items": [{"trainId": 1, "x": 2}]}',
            "unknown key items[0].x; allowed are trainId",
        ),
        (
            '{"name": "x", "items": [{"trainId": "1"}]}',
            "items[0].trainId: found '1', expected a whole number",
        ),
        (
            '{"name": "x", "items": [{"trainId": 300}]}',
            "found 300, expected a whole number of at most 254",
        ),
        ('{"name": "x", "items": [{"trainId": 1.0}]}', "found 1.0, expected a whole number"),
        (
            '{"name": "x", "items": ["road", {"trainId": 1, "color": [1, 2]}]}',
            "items[1].color: found length 2, expected a list of length 3",
        ),
        ('{"name": "x", "items": [{}]}', "the key 'items[0].trainId' is missing"),
        (
            '{"name": "x", "weights": {"a": 1, "car": "much"}}',
            "weights.car: found 'much', expected a number",
        ),
        ('{"name": "x", "kind": "c"}', "kind: found 'c', expected one of 'a', 'b'"),
        (
            '{"name": "x", "by_id": {"y": "z"}}',
            "by_id: found an invalid key, expected each key to be a whole number",
        ),
        ('{"name": "two words"}', "name must be one word"),
        ('{"name": "refused"}', "name is refused"),
        (f'{{"name": 1{"0" * 80}}}', "name: found"),
        ('{"name": "x", "weights": {"car": NaN}}', "expected a finite number"),
        ('{"name": "x", "weights": {"car": -Infinity}}', "expected a finite number"),
        ('{"name": "x", "weights": {"car": 1e999}}', "expected a finite number"),
        ("", "invalid JSON"),
        ('{"name": "x"', "invalid JSON"),
        ('["\ud800"]', "half a character"),
        ('{"name": "\\udfff"}', "name: found half a character"),
        (b'["\xff"]', "invalid JSON"),
        ("[" * 100_000, f"more than {MAX_DEPTH} nested levels"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} nested levels"),
        (b" " * (MAX_BYTES + 1), "more than 16 MiB"),
    ],
)
def test_refuses_bad_json_in_one_line(text: str | bytes, message: str) -> None:
    assert message in error_of(text)


def test_file_names_that_are_not_utf_8_are_written_and_read() -> None:
    name = os.fsdecode(b"stra\xdfe.png")
    document = Document(name=name)
    data = encode_json(document)
    assert decode_json(data, Document) == document
    assert read_json(data, Document, where="w", remedy="r", file_names=True) == document
    assert "half a character" in error_of(data)
    assert "half a character in a key" in error_of('{"name": "x", "weights": {"\\udcff": 1}}')
    with pytest.raises(ValueError, match="Expected"):
        decode_json(b"[]", Document)


def test_a_reader_may_accept_any_length() -> None:
    text = json.dumps(["x" * MAX_BYTES])
    assert read_json(text, list[str], where="w", remedy="r", max_bytes=None) == ["x" * MAX_BYTES]


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json(text, list[Any], where="w", remedy="r")


def test_message_stays_one_short_line_whatever_the_document_holds() -> None:
    assert len(error_of('{"name": "x", "kind": "' + "c" * 5000 + '"}')) < 200
    assert "unknown key a b" in error_of('{"name": "x", "a\\nb": 1}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nweights = { car = inf }', "weights.car: found inf, expected a finite number"),
        ('name = "x"\nweights = { car = nan }', "weights.car: found nan, expected a finite number"),
        ('name = "x"\nitems = [{ trainId = inf }]', "items[0].trainId: found inf"),
        ("name = 2020-01-01", "name: found datetime.date(2020, 1, 1), expected a text"),
        ("name =", "invalid TOML"),
        ("name = " + "9" * 5000, "invalid TOML"),
        ("a = " + "[" * 3000 + "]" * 3000, f"more than {MAX_DEPTH} nested levels"),
        (".".join("a" * 40) + " = 1", f"more than {MAX_DEPTH} nested levels"),
    ],
)
def test_refuses_bad_toml_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    for source, where in ((file, str(file)), (text, "TOML text")):
        with pytest.raises(UsageError) as caught:
            read_toml(source, Document, remedy="see the guide")
        line = str(caught.value)
        assert (
            message in line and line.startswith(f"{where}: ") and line.endswith("; see the guide")
        )
        assert "\n" not in line


def test_reads_toml_file_with_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "x"\r\n')
    assert read_toml(file, Document, remedy="r") == Document("x")


def test_unreadable_toml_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.toml: cannot be read \(No such file"):
        read_toml(tmp_path / "gone.toml", Document, remedy="r", error=DataError)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(UsageError, match="invalid UTF-8"):
        read_toml(tmp_path / "latin.toml", Document, remedy="r")


def test_file_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text("#" + "é" * (MAX_BYTES // 2 + 1))
    with pytest.raises(UsageError, match=r"large\.toml: found more than 16 MiB"):
        read_toml(tmp_path / "large.toml", Document, remedy="r")


def test_convert_uses_the_given_error_type() -> None:
    assert convert({"trainId": 1}, Item, where="w", remedy="r") == Item(1)
    with pytest.raises(DataError, match="w: trainId: found 'x', expected a whole number; r"):
        convert({"trainId": "x"}, Item, where="w", remedy="r", error=DataError)


def test_schema_refuses_unknown_keys_as_the_reader_does() -> None:
    schema = json_schema(Document)
    assert schema["$schema"].startswith("https://json-schema.org/draft/2020-12")
    definitions = schema["$defs"]
    assert set(definitions) == {"Document", "Item"}
    assert all(d["additionalProperties"] is False for d in definitions.values())
    assert definitions["Item"]["properties"]["trainId"]["maximum"] == 254
    assert definitions["Document"]["required"] == ["name"]
