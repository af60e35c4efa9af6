"""A tiny ONNX model with a known output, for checking that a backend works.

It is encoded by hand, because the `onnx` package is not a dependency of the runtime. The numbers
are field numbers of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
"""

from __future__ import annotations

from typing import Any

# Output for `model_input`: 1·1 + 2·2 + 3·4 + 4·8.
EXPECTED_OUTPUT = 49.0


def model_input() -> Any:
    """Return the input `x` of the model, (1, 1, 2, 2) float32."""
    import numpy as np

    return np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)


def tiny_model() -> bytes:
    """Return an ONNX file: y (1, 1, 1, 1) = convolution of x (1, 1, 2, 2) with [[1, 2], [4, 8]].

    A convolution also checks cuDNN. All types are float32.
    """
    weights = b"".join(_varint(1, n) for n in (1, 1, 2, 2))  # dims
    weights += _varint(2, 1) + _field(8, b"w")  # data_type FLOAT, name
    raw_data = bytes.fromhex("0000803f 00000040 00008040 00000041")  # 1, 2, 4, 8
    weights += _field(9, raw_data)
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"Conv")
    graph = _field(1, node) + _field(2, b"tiny") + _field(5, weights)
    graph += _field(11, _port(b"x", (1, 1, 2, 2))) + _field(12, _port(b"y", (1, 1, 1, 1)))
    return _varint(1, 8) + _field(7, graph) + _field(8, _varint(2, 13))  # IR 8, opset 13


def _port(name: bytes, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _varint(1, n)) for n in shape)
    tensor = _varint(1, 1) + _field(2, dims)  # elem_type FLOAT, shape
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128, "longer payloads need more than one length byte"
    return bytes([number << 3 | 2, len(payload)]) + payload


def _varint(number: int, value: int) -> bytes:
    return bytes([number << 3, value])
