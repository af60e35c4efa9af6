"""Protobuf's wire format, walked over a view of a file's bytes; what is not asked for is stepped over.

Reads ONNX files where the `onnx` package is not: the contract inside (`onnx_file`), the graph for `fada inspect`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

Message = memoryview


class NotProtobuf(Exception):
    """Bytes that are no message, or one cut short."""


def mapped(path: Path) -> Message:
    """Return a view of a file, whose pages are read when they are looked at; raise `OSError` or `NotProtobuf`."""
    with path.open("rb") as handle:
        try:
            # Closed by the last view of it, which an error's traceback may outlive.
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise NotProtobuf("an empty file") from None


def fields(message: int | Message | bytes) -> Iterator[tuple[int, int | Message]]:
    """Yield (number, value) of a message: numbers as int, the rest as views of their bytes."""
    if isinstance(message, int):
        raise NotProtobuf("a number where a message should be")
    view, at, end = memoryview(message), 0, len(message)
    while at < end:
        tag, at = varint(view, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in (0, 1, 2, 5):
            raise NotProtobuf(f"tag {tag}")
        if wire == 0:
            value, at = varint(view, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, at = varint(view, at)
        if at + length > end:
            raise NotProtobuf(f"field {number} runs past the end")
        yield number, view[at : at + length]
        at += length


def varint(view: Message, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise NotProtobuf("a number that does not end")


def packed(message: Message) -> Iterator[int]:
    """Yield the numbers of a packed field."""
    at = 0
    while at < len(message):
        value, at = varint(message, at)
        yield value


def text(value: int | Message | bytes) -> str:
    """Return a field's text; raise `ValueError` where it is no UTF-8."""
    if isinstance(value, int):
        raise NotProtobuf("a number where text should be")
    return bytes(value).decode("utf-8")


def integer(value: int | Message) -> int:
    """Return a field's number."""
    if not isinstance(value, int):
        raise NotProtobuf("bytes where a number should be")
    return value
