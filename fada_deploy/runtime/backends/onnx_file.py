"""Read the metadata property of an ONNX file, and where its weights lie, without the `onnx` package.

An ONNX file is one protobuf message. Only its outermost fields are walked; the graph, hundreds of
megabytes perhaps, is stepped over. Both backends read the contract here, since OpenVINO keeps no
ONNX properties and a file cut short should get the same line from either.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import PROPERTY, ModelMetadata

# onnx.proto: ModelProto.graph, ModelProto.metadata_props; StringStringEntryProto.key, .value
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# onnx.proto: which fields of a message lead to tensors, and to what message. TensorProto.external_data has
# string pairs, one of them under the key `location`.
_TOWARDS_TENSORS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "pair"},
}
# A property longer than this is none of ours; it also bounds what a damaged length can make us read.
_LONGEST = 1 << 24


class _NotProtobuf(Exception):
    pass


def read_metadata(path: Path) -> ModelMetadata:
    """Return the contract of an ONNX file; raise `ModelError` if it is missing, cut, or no export of ours."""
    try:
        with path.open("rb") as handle:
            properties, has_graph = _properties(handle, path.stat().st_size)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (_NotProtobuf, UnicodeDecodeError):
        has_graph = False
    if not has_graph:
        raise ModelError(f"{path}: is no ONNX file, or one cut short; export it again with `fada export`")
    return ModelMetadata.from_json(properties.get(PROPERTY), str(path))


def read_model(path: Path) -> ModelMetadata:
    """Return the contract of an ONNX file that is about to be opened, its weights all in its own folder."""
    metadata = read_metadata(path)
    check_external_data(path)
    return metadata


def check_external_data(path: Path) -> None:
    """Raise `ModelError` when weights of an ONNX file lie outside its folder: such a file reads what it likes."""
    folder = path.parent.resolve()
    try:
        with path.open("rb") as handle:
            found = set(_locations(handle, path.stat().st_size, "model"))
        outside = [place for place in found if not (folder / place).resolve().is_relative_to(folder)]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (_NotProtobuf, ValueError, RecursionError):
        raise ModelError(
            f"{path}: is no ONNX file, or one cut short; export it again with `fada export`"
        ) from None
    if outside:
        raise ModelError(
            f"{path}: has weights in {min(outside)!r}, outside its own folder, which are not read; "
            "export it again with `fada export`, which keeps them inside the file"
        )


def _locations(handle: BinaryIO, end: int, message: str) -> Iterator[str]:
    """Yield where the tensors' external data lie, of a message that ends at byte `end`."""
    for field, length in _fields(handle, end):
        inner = _TOWARDS_TENSORS[message].get(field)
        if inner == "pair":
            yield from _location(handle.read(min(length, _LONGEST)))
        elif inner is not None:
            yield from _locations(handle, handle.tell() + length, inner)


def _location(entry: bytes) -> Iterator[str]:
    parts = BytesIO(entry)
    pair = {f: parts.read(n).decode() for f, n in _fields(parts, len(entry)) if f in (_KEY, _VALUE)}
    if pair.get(_KEY) == "location":
        yield pair.get(_VALUE, "")


def _properties(handle: BinaryIO, size: int) -> tuple[dict[str, str], bool]:
    """Return metadata_props, and whether there is a graph."""
    properties: dict[str, str] = {}
    has_graph = False
    for field, length in _fields(handle, size):
        if field == _METADATA_PROPS and length <= _LONGEST:
            entry = handle.read(length)
            parts = BytesIO(entry)
            pair = {f: parts.read(n).decode() for f, n in _fields(parts, length) if f in (_KEY, _VALUE)}
            properties[pair.get(_KEY, "")] = pair.get(_VALUE, "")
        has_graph |= field == _GRAPH
    return properties, has_graph


def _fields(handle: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield (number, byte length) of each length-delimited field, the handle at its content."""
    while (start := handle.tell()) < end:
        tag = _varint(handle)
        field, wire = tag >> 3, tag & 7
        if field == 0 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise _NotProtobuf(f"tag {tag} at byte {start}")
        if wire == _VARINT:
            _varint(handle)
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire) or _varint(handle)
        after = handle.tell() + length
        if after > end:
            raise _NotProtobuf(f"field {field} at byte {start} runs past the end")
        if wire == _BYTES:
            yield field, length
        handle.seek(after)


def _varint(handle: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = handle.read(1)
        if not byte:
            raise _NotProtobuf("ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _NotProtobuf("a number of more than ten bytes")
