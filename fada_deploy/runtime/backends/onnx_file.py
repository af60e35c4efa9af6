"""Read the metadata property of an ONNX file, and where its weights lie, without the `onnx` package.

An ONNX file is one protobuf message. Only its outermost fields are walked; the graph, hundreds of
megabytes perhaps, is stepped over. Both backends read the contract here, since OpenVINO keeps no
ONNX properties and a file cut short should get the same line from either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import PROPERTY, ModelMetadata
from fada_deploy.runtime.backends.protobuf import Message, NotProtobuf, fields, mapped, text

# onnx.proto: ModelProto.graph, ModelProto.metadata_props; StringStringEntryProto.key, .value
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2
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


def read_metadata(path: Path) -> ModelMetadata:
    """Return the contract of an ONNX file; raise `ModelError` if it is missing, cut, or no export of ours."""
    try:
        properties, has_graph = _properties(mapped(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (NotProtobuf, UnicodeDecodeError):
        has_graph = False
    if not has_graph:
        raise ModelError(
            f"{path}: is no ONNX file, or one cut short; export it again with `fada export`"
        )
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
        found = set(_locations(mapped(path), "model"))
        outside = [
            place for place in found if not (folder / place).resolve().is_relative_to(folder)
        ]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (NotProtobuf, ValueError, RecursionError):
        raise ModelError(
            f"{path}: is no ONNX file, or one cut short; export it again with `fada export`"
        ) from None
    if outside:
        raise ModelError(
            f"{path}: has weights in {min(outside)!r}, outside its own folder, which are not read; "
            "export it again with `fada export`, which keeps them inside the file"
        )


def _locations(message: Message, kind: str) -> Iterator[str]:
    """Yield where the tensors' external data lie, of a message of a kind."""
    for number, value in fields(message):
        inner = _TOWARDS_TENSORS[kind].get(number)
        if inner is None or isinstance(value, int):
            continue
        if inner != "pair":
            yield from _locations(value, inner)
        elif (pair := _pair(value))[0] == "location":
            yield pair[1]


def _pair(message: Message) -> tuple[str, str]:
    """Return the key and the value of an entry."""
    parts = {number: text(value) for number, value in fields(message) if number in (_KEY, _VALUE)}
    return parts.get(_KEY, ""), parts.get(_VALUE, "")


def _properties(message: Message) -> tuple[dict[str, str], bool]:
    """Return metadata_props, and whether there is a graph."""
    properties: dict[str, str] = {}
    has_graph = False
    for number, value in fields(message):
        if number == _METADATA_PROPS and not isinstance(value, int) and len(value) <= _LONGEST:
            key, said = _pair(value)
            properties[key] = said
        has_graph |= number == _GRAPH and not isinstance(value, int)
    return properties, has_graph
