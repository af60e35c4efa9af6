"""Read the metadata and the external-data paths of an ONNX file without the `onnx` package.

An ONNX file is one protobuf message. Only the fields that are needed are parsed; the rest, possibly
hundreds of megabytes, is skipped. Both ONNX backends use this, because OpenVINO does not expose
ONNX properties and both should report a truncated file in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import PROPERTY, ModelMetadata
from fada_deploy.runtime.backends.protobuf import Message, NotProtobuf, fields, map_file, text

# onnx.proto: ModelProto.graph, ModelProto.metadata_props; StringStringEntryProto.key, .value
_GRAPH, _METADATA_PROPS = 7, 14
_KEY, _VALUE = 1, 2
# onnx.proto: the fields of each message type that lead to tensors, and the message type behind
# them. TensorProto.external_data consists of string pairs, one of which has the key `location`.
_TENSOR_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "pair"},
}
# Longer properties are not ours. This also limits what a corrupt length makes us read.
_MAX_PROPERTY_BYTES = 1 << 24


def read_metadata(path: Path) -> ModelMetadata:
    """Return the metadata of an ONNX file.

    Raise `ModelError` if the file is missing, truncated or has no valid metadata.
    """
    try:
        properties, has_graph = _properties(map_file(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (NotProtobuf, UnicodeDecodeError):
        has_graph = False
    if not has_graph:
        raise _invalid_file_error(path)
    return ModelMetadata.from_json(properties.get(PROPERTY), str(path))


def read_model(path: Path) -> ModelMetadata:
    """Return the metadata of an ONNX file that may be opened; see `check_external_data`."""
    metadata = read_metadata(path)
    check_external_data(path)
    return metadata


def check_external_data(path: Path) -> None:
    """Raise `ModelError` if an ONNX file refers to weights outside its own folder.

    Such a file could read any file of the user.
    """
    folder = path.parent.resolve()
    try:
        locations = set(_external_locations(map_file(path), "model"))
        outside = [
            location
            for location in locations
            if not (folder / location).resolve().is_relative_to(folder)
        ]
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (NotProtobuf, ValueError, RecursionError):
        raise _invalid_file_error(path) from None
    if outside:
        raise ModelError(
            f"{path} has weights in {min(outside)!r}, outside its own folder, which is not "
            "allowed; export it again with `fada export`, which stores weights in the file"
        )


def _invalid_file_error(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not an ONNX file, or it is truncated; export it again with `fada export`"
    )


def _external_locations(message: Message, kind: str) -> Iterator[str]:
    """Yield the external-data locations of all tensors in a message of type `kind`."""
    for number, value in fields(message):
        inner = _TENSOR_FIELDS[kind].get(number)
        if inner is None or isinstance(value, int):
            continue
        if inner != "pair":
            yield from _external_locations(value, inner)
        elif (pair := _pair(value))[0] == "location":
            yield pair[1]


def _pair(message: Message) -> tuple[str, str]:
    """Return the key and the value of a StringStringEntryProto."""
    parts = {number: text(value) for number, value in fields(message) if number in (_KEY, _VALUE)}
    return parts.get(_KEY, ""), parts.get(_VALUE, "")


def _properties(message: Message) -> tuple[dict[str, str], bool]:
    """Return the metadata_props of a model, and whether it has a graph."""
    properties: dict[str, str] = {}
    has_graph = False
    for number, value in fields(message):
        if (
            number == _METADATA_PROPS
            and not isinstance(value, int)
            and len(value) <= _MAX_PROPERTY_BYTES
        ):
            key, content = _pair(value)
            properties[key] = content
        has_graph |= number == _GRAPH and not isinstance(value, int)
    return properties, has_graph
