"""A minimal reader of protobuf's wire format, which works on a memory-mapped file.

It reads ONNX files without the `onnx` package: metadata (`onnx_file`) and the graph (`fada
inspect`).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

Message = memoryview


class NotProtobuf(Exception):
    """The bytes are not a protobuf message, or the message is truncated."""


def map_file(path: Path) -> Message:
    """Return a memory-mapped view of a file; raise `OSError`, or `NotProtobuf` if it is empty."""
    with path.open("rb") as handle:
        try:
            # Not closed explicitly: views of it may outlive this call, e.g. in a traceback.
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise NotProtobuf("the file is empty") from None


def fields(message: int | Message | bytes) -> Iterator[tuple[int, int | Message]]:
    """Yield (field number, value) of a message: integers as int, other values as byte views."""
    if isinstance(message, int):
        raise NotProtobuf("expected a message, got an integer")
    view, at, end = memoryview(message), 0, len(message)
    while at < end:
        tag, at = varint(view, at)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or wire_type not in (0, 1, 2, 5):
            raise NotProtobuf(f"invalid tag {tag}")
        if wire_type == 0:
            value, at = varint(view, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire_type, 0)
        if wire_type == 2:
            length, at = varint(view, at)
        if at + length > end:
            raise NotProtobuf(f"field {number} exceeds the message")
        yield number, view[at : at + length]
        at += length


def varint(view: Message, at: int) -> tuple[int, int]:
    """Return the varint at position `at` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise NotProtobuf("unterminated varint")


def packed(message: Message) -> Iterator[int]:
    """Yield the integers of a packed repeated field."""
    at = 0
    while at < len(message):
        value, at = varint(message, at)
        yield value


def text(value: int | Message | bytes) -> str:
    """Return the text of a string field; raise `ValueError` if it is not UTF-8."""
    if isinstance(value, int):
        raise NotProtobuf("expected text, got an integer")
    return bytes(value).decode("utf-8")


def integer(value: int | Message) -> int:
    """Return the value of an integer field."""
    if not isinstance(value, int):
        raise NotProtobuf("expected an integer, got bytes")
    return value
