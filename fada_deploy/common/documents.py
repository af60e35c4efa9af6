"""Read JSON and TOML documents into typed objects, strictly, with one-line errors.

A document is decoded into a frozen dataclass or a `msgspec.Struct`. Types are not coerced (`"7"`
is not an integer), unknown keys are refused, and so are NaN, infinities, more than
`MAX_BYTES` of text and more than `MAX_DEPTH` levels of nesting. Every failure is one line:
`<where>: <key path>: found X, expected Y; <remedy>`, or the same with an unknown or missing key.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from fada_deploy.common.errors import FadaError, ModelError, UsageError

T = TypeVar("T")
MAX_BYTES = 16 << 20
MAX_DEPTH = 32

_TOO_LARGE = (
    f"found more than {MAX_BYTES >> 20} MiB of text, expected at most {MAX_BYTES >> 20} MiB"
)
_TOO_DEEP = f"found more than {MAX_DEPTH} nested levels, expected at most {MAX_DEPTH}"
# How msgspec reports a problem, for example "Expected `int`, got `str` - at `$.classes[0].id`".
_PROBLEM = re.compile(r"(?P<problem>.*?)(?: - at (?P<key>`key` in )?`(?P<path>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<expected>.*?)(?:, got (?P<found>.*))?", re.DOTALL)
# The names of types and limits in the messages of msgspec → in ours.
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_LIMITS = {
    ">=": "of at least",
    "<=": "of at most",
    ">": "greater than",
    "<": "less than",
}
# `surrogateescape` uses U+DC80 to U+DCFF.
_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_ANY_SURROGATE = re.compile("[\ud800-\udfff]")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`", re.DOTALL)


def read_json(
    text: str | bytes,
    type_: type[T],
    *,
    where: str,
    remedy: str,
    error: type[FadaError] = ModelError,
    max_bytes: int | None = MAX_BYTES,
    file_names: bool = False,
) -> T:
    """Return a JSON document as `type_`; raise `error` naming `where` and ending with `remedy`.

    Text of more than `max_bytes` is refused; None accepts any length. With `file_names`, texts may
    hold names of files that are not UTF-8.
    """
    try:
        if max_bytes is not None and len(text) > max_bytes:
            raise _Problem(_TOO_LARGE)
        try:
            # msgspec.json would refuse file names that are not UTF-8.
            data = json.loads(text)
        except RecursionError:
            raise _Problem(_TOO_DEEP) from None
        except ValueError as invalid:
            raise _Problem(f"found invalid JSON ({_one_line(invalid)})") from None
    except _Problem as problem:
        raise error(f"{where}: {problem}; {remedy}") from None
    return convert(data, type_, where=where, remedy=remedy, error=error, file_names=file_names)


def encode_json(document: Any) -> bytes:
    """Return a dataclass or `msgspec.Struct` as JSON on one line; `decode_json` reads it.

    Unlike `msgspec.json`, both accept file names that are not UTF-8.
    """
    return json.dumps(msgspec.to_builtins(document), separators=(",", ":")).encode()


def decode_json(data: bytes, type_: type[T]) -> T:
    """Return a document of `encode_json`; raise `ValueError` if it is not one.

    For files that this package itself writes; `read_json` explains what is wrong with others.
    """
    return msgspec.convert(json.loads(data), type_)


def read_toml(
    source: Path | str,
    type_: type[T],
    *,
    where: str = "",
    remedy: str,
    error: type[FadaError] = UsageError,
) -> T:
    """Return a TOML file (a `Path`) or TOML text (a `str`) as `type_`.

    Raise `error` naming `where` (by default the path) and ending with `remedy`, also if the file
    cannot be read.
    """
    where = where or (str(source) if isinstance(source, Path) else "TOML text")
    try:
        text = _file_text(source) if isinstance(source, Path) else source
        if len(text) > MAX_BYTES:
            raise _Problem(_TOO_LARGE)
        try:
            data = tomllib.loads(text)
        except RecursionError:
            raise _Problem(_TOO_DEEP) from None
        except ValueError as invalid:
            raise _Problem(f"found invalid TOML ({_one_line(invalid)})") from None
    except _Problem as problem:
        raise error(f"{where}: {problem}; {remedy}") from None
    return convert(data, type_, where=where, remedy=remedy, error=error)


def convert(
    data: Any,
    type_: type[T],
    *,
    where: str,
    remedy: str,
    error: type[FadaError] = ModelError,
    noun: str = "key",
    file_names: bool = False,
) -> T:
    """Return parsed JSON or TOML `data` as `type_`; raise `error` as `read_json` does.

    `noun` is what messages call a key that the type does not have.
    """
    try:
        _check_values(data, file_names=file_names)
        info = inspect.type_info(type_)
        _check_keys(data, info, "", noun)
        try:
            return msgspec.convert(data, type_, strict=True, str_keys=True)
        except msgspec.ValidationError as invalid:
            raise _Problem(_explain(str(invalid), data, info, type_)) from None
        except FadaError as invalid:  # raised by the __post_init__ of one of our types
            raise _Problem(str(invalid)) from None
    except _Problem as problem:
        raise error(f"{where}: {problem}; {remedy}") from None


def json_schema(type_: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what `read_json` accepts as `type_`."""
    schema = msgspec.json.schema(type_)
    for definition in schema.get("$defs", {}).values():
        if "description" in definition:  # a docstring, of which the first paragraph says enough
            definition["description"] = _one_line(definition["description"].split("\n\n")[0])
        if "properties" in definition:
            definition.setdefault("additionalProperties", False)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Problem(Exception):
    """The middle of a message: `<key path>: found X, expected Y`."""


def _file_text(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _Problem(_TOO_LARGE)
        return data.decode("utf-8-sig")  # Windows editors may write a byte-order mark
    except OSError as failure:
        raise _Problem(f"cannot be read ({failure.strerror or failure})") from None
    except UnicodeDecodeError as invalid:
        raise _Problem(f"found invalid UTF-8 ({_one_line(invalid)})") from None


def _check_values(data: Any, *, file_names: bool) -> None:
    """Refuse deep nesting, zero bytes, surrogates, and numbers that are not finite, at any depth.

    With `file_names`, the surrogates that stand for bytes that are not UTF-8 are allowed.
    """
    surrogate = _SURROGATE if file_names else _ANY_SURROGATE
    pending: list[tuple[Any, str, int]] = [(data, "", 0)]
    while pending:
        value, path, depth = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise _Problem(_at(path, f"found {value}, expected a finite number"))
        if isinstance(value, str) and "\0" in value:
            raise _Problem(_at(path, "found a zero byte, expected a text without one"))
        if isinstance(value, str) and surrogate.search(value):
            raise _Problem(_at(path, "found half a character, expected valid Unicode"))
        if isinstance(value, dict) and any(surrogate.search(str(key)) for key in value):
            raise _Problem(_at(path, "found half a character in a key, expected valid Unicode"))
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise _Problem(_TOO_DEEP)
            pending += [
                (child, child_path, depth + 1) for child, child_path in _children(value, path)
            ]


def _children(value: dict[Any, Any] | list[Any], path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, list):
        yield from ((child, f"{path}[{i}]") for i, child in enumerate(value))
    else:
        yield from ((child, _join(path, key)) for key, child in value.items())


def _check_keys(data: Any, info: inspect.Type, path: str, noun: str) -> None:
    """Refuse keys that the type does not have, which msgspec accepts for dataclasses."""
    fields = _fields(info)
    if isinstance(data, dict) and fields is not None:
        for key, value in data.items():
            if key not in fields:
                raise _Problem(_unknown_key(noun, path, str(key), list(fields)))
            _check_keys(value, fields[key].type, _join(path, key), noun)
    elif isinstance(data, dict | list):
        keys = range(len(data)) if isinstance(data, list) else data
        for key, (child, child_path) in zip(keys, _children(data, path), strict=True):
            child_info = _child_type(info, key)
            if child_info is not None:
                _check_keys(child, child_info, child_path, noun)


def _unknown_key(noun: str, path: str, key: str, allowed: Sequence[str]) -> str:
    name = _one_line(_join(path, key))
    if close := get_close_matches(key, allowed, 1):
        return f"unknown {noun} {name}; did you mean {_join(path, close[0])}?"
    return f"unknown {noun} {name}; allowed are {', '.join(allowed)}"


def _fields(info: inspect.Type) -> dict[str, inspect.Field] | None:
    """Return the fields of an object type by their key in the document, None for other types."""
    for option in info.types if isinstance(info, inspect.UnionType) else (info,):
        if isinstance(option, inspect.DataclassType | inspect.StructType):
            return {field.encode_name: field for field in option.fields}
    return None


def _child_type(info: inspect.Type, key: str | int) -> inspect.Type | None:
    """Return the type of one key or item of a value of type `info`, None if it is not known."""
    for option in info.types if isinstance(info, inspect.UnionType) else (info,):
        if isinstance(key, int):
            if isinstance(option, inspect.ListType | inspect.VarTupleType):
                return option.item_type
            if isinstance(option, inspect.TupleType) and key < len(option.item_types):
                return option.item_types[key]
        elif isinstance(option, inspect.DictType):
            return option.value_type
        elif fields := _fields(option):
            return fields[key].type if key in fields else None
    return None


def _explain(message: str, data: Any, info: inspect.Type, type_: Any) -> str:
    """Return the message for a validation error of msgspec, with the invalid value."""
    match = _PROBLEM.fullmatch(message)
    assert match is not None
    problem, path = match["problem"], (match["path"] or "").removeprefix("$").removeprefix(".")
    path = _with_dict_keys(path, message, data, type_)
    if missing := _MISSING.fullmatch(problem):
        return f"the key {_one_line(_join(path, missing['key']))!r} is missing"
    value, value_info = _resolve(path, data, info)
    expected = _EXPECTED.fullmatch(problem)
    if isinstance(value_info, inspect.LiteralType | inspect.EnumType):
        options = (
            value_info.values
            if isinstance(value_info, inspect.LiteralType)
            else [member.value for member in value_info.cls]
        )
        words = f"one of {', '.join(map(repr, options))}"
    elif expected:
        words = _in_words(expected["expected"].replace("`", ""), value_info)
    else:
        return _at(path, problem)
    if match["key"]:
        return _at(path, f"found an invalid key, expected each key to be {words}")
    found = ((expected and expected["found"]) or "").replace("`", "")
    found = _TYPE_NAMES.get(found, found)
    found = f"length {found}" if found.isdigit() else found
    return _at(path, f"found {_shown(value, found)}, expected {words}")


def _in_words(expected: str, info: inspect.Type | None) -> str:
    """Return an expectation of msgspec such as "int >= 1" in words."""
    if isinstance(info, inspect.TupleType) and _is_size(info):
        return "[height, width]"
    name, _, limit = expected.partition(" ")
    if " | " in expected:
        parts = [part for part in expected.split(" | ") if part != "null"]
        return " or ".join(_TYPE_NAMES.get(part, part) for part in parts)
    for sign, words in _LIMITS.items():
        limit = limit.replace(f"{sign} ", f"{words} ")
    return f"{_TYPE_NAMES.get(name, name)} {limit.removesuffix('.0')}".strip()


def _is_size(info: inspect.TupleType) -> bool:
    """Return whether a type is that of sizes: two whole numbers of at least 1."""
    return len(info.item_types) == 2 and all(
        isinstance(item, inspect.IntType) and item.ge == 1 for item in info.item_types
    )


def _resolve(path: str, data: Any, info: inspect.Type | None) -> tuple[Any, inspect.Type | None]:
    """Return value and type at a path of msgspec; the value is `...` if there is no such path."""
    for key in _keys(path):
        info = None if info is None else _child_type(info, key)
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return ..., None
    return data, info


def _keys(path: str) -> list[str | int]:
    parts = re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path)
    return [int(index) if index.isdigit() else name or index for name, index in parts]


def _with_dict_keys(path: str, message: str, data: Any, type_: Any) -> str:
    """Return a path with the keys of dictionaries, for which msgspec writes `[...]`.

    The key is the one whose entry alone causes the same error.
    """
    prefix, vague, rest = path.partition("[...]")
    table, _ = _resolve(prefix, data, None)
    if not vague or not isinstance(table, dict):
        return path
    for key, value in table.items():
        try:
            msgspec.convert(
                _replace(data, _keys(prefix), {key: value}), type_, strict=True, str_keys=True
            )
        except msgspec.ValidationError as invalid:
            if str(invalid) == message:
                return _with_dict_keys(f"{_join(prefix, key)}{rest}", message, data, type_)
        except FadaError:
            pass
    return path


def _replace(data: Any, keys: list[str | int], value: Any) -> Any:
    """Return a copy of `data` with another value at a path."""
    if not keys:
        return value
    copy = data.copy()
    copy[keys[0]] = _replace(data[keys[0]], keys[1:], value)
    return copy


def _shown(value: Any, found: str) -> str:
    """Return a value as messages show it: short values as they are, others by their type."""
    if value is ...:
        return found or "another value"
    if isinstance(value, dict | list):
        return found or f"length {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _at(path: str, problem: str) -> str:
    return f"{_one_line(path)}: {problem}" if path else problem


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
