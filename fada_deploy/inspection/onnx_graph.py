"""Read the structure of an ONNX graph without the `onnx` package and without loading its weights.

The protobuf wire format is parsed over a memory map; only the messages that contain names, types
and shapes are decoded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.backends.protobuf import (
    Message,
    NotProtobuf,
    fields,
    integer,
    map_file,
    packed,
    text,
)

# Field numbers of onnx.proto, by message.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSETS = 1, 2, 3, 7, 8
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_TENSOR = 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _EXTERNAL, _LOCATION = 1, 2, 8, 13, 14

_TYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    16: "bfloat16", 17: "float8e4m3fn", 19: "float8e5m2", 21: "uint4", 22: "int4",
}  # fmt: skip
# Operators that multiply by weights.
LAYER_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# Operators that may lie between stored weights and their layer.
_PASS_THROUGH = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; dynamic dimensions have a name instead of a size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass
class Graph:
    """The inputs, outputs and operator counts of an ONNX file.

    Attributes:
        opset: Version of the standard operator set.
        ir_version: Version of the file format.
        producer: Name and version of the tool that wrote the file.
        inputs: Inputs, without stored weights.
        outputs: Outputs.
        operators: Number of nodes by operator.
        layers: Number of layers with weights, by operator and by the type of the stored weights;
            "activations" if both inputs are computed.
        parameters: Number of stored values.
        external: Files that contain weights.
    """

    opset: int = 0
    ir_version: int = 0
    producer: str = ""
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    layers: dict[str, Counter[str]] = field(default_factory=dict)
    parameters: int = 0
    external: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            "opset": self.opset,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "inputs": [
                {"name": p.name, "type": p.dtype, "shape": list(p.shape)} for p in self.inputs
            ],
            "outputs": [
                {"name": p.name, "type": p.dtype, "shape": list(p.shape)} for p in self.outputs
            ],
            "parameters": self.parameters,
            "operators": dict(self.operators.most_common()),
            "layers": {op: dict(kinds) for op, kinds in self.layers.items()},
            "quantize_nodes": {
                op: self.operators[op] for op in ("QuantizeLinear", "DequantizeLinear")
            },
            "external_data": self.external,
        }


def read_graph(path: Path) -> Graph:
    """Read the graph of an ONNX file; raise `ModelError` if the file is invalid or incomplete."""
    try:
        return _Reader().read(map_file(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (NotProtobuf, ValueError):
        raise ModelError(
            f"{path} is not an ONNX file, or it is incomplete; export it again with `fada export`"
        ) from None


class _Reader:
    """Parses one file."""

    def __init__(self) -> None:
        self.graph = Graph()
        self._stored_types: dict[str, str] = {}
        self._producers: dict[str, tuple[str, list[str]]] = {}
        self._nodes: list[tuple[str, list[str]]] = []

    def read(self, model: Message) -> Graph:
        has_graph, producer = False, ["", ""]
        for number, value in fields(model):
            if number == _IR_VERSION and isinstance(value, int):
                self.graph.ir_version = value
            elif number in (_PRODUCER, _PRODUCER_VERSION):
                producer[number - _PRODUCER] = text(value)
            elif number == _OPSETS:
                self._opset(value)
            elif number == _GRAPH:
                has_graph = True
                self._graph(value)
        if not has_graph:
            raise NotProtobuf("no graph")
        self.graph.producer = " ".join(part for part in producer if part)
        self._count_layers()
        return self.graph

    def _opset(self, message: int | Message) -> None:
        parts = dict(fields(message))
        if text(parts.get(1, b"")) in ("", "ai.onnx"):
            self.graph.opset = int(integer(parts.get(2, 0)))

    def _graph(self, message: int | Message) -> None:
        for number, value in fields(message):
            if number == _NODE:
                self._node(value)
            elif number == _INITIALIZER:
                name, dtype = self._tensor(value)
                self._stored_types[name] = dtype
            elif number == _INPUT:
                self.graph.inputs.append(_port(value))
            elif number == _OUTPUT:
                self.graph.outputs.append(_port(value))
        # Before IR version 4, stored weights were listed as inputs too.
        self.graph.inputs = [
            port for port in self.graph.inputs if port.name not in self._stored_types
        ]

    def _node(self, message: int | Message) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        op, constant = "", ""
        for number, value in fields(message):
            if number == _NODE_INPUT:
                inputs.append(text(value))
            elif number == _NODE_OUTPUT:
                outputs.append(text(value))
            elif number == _NODE_OP:
                op = text(value)
            elif number == _NODE_ATTRIBUTE:
                for part, tensor in fields(value):
                    if part == _ATTRIBUTE_TENSOR:
                        constant = self._tensor(tensor)[1]
        self.graph.operators[op] += 1
        self._nodes.append((op, inputs))
        for name in outputs:
            self._producers[name] = (op, inputs)
            if op == "Constant" and constant:
                self._stored_types[name] = constant

    def _tensor(self, message: int | Message) -> tuple[str, str]:
        name, dtype, count, external, location = "", 0, 1, False, ""
        for number, value in fields(message):
            if number == _DIMS:
                for size in [value] if isinstance(value, int) else packed(value):
                    count *= size
            elif number == _DATA_TYPE:
                dtype = int(integer(value))
            elif number == _TENSOR_NAME:
                name = text(value)
            elif number == _LOCATION:
                external = value == 1
            elif number == _EXTERNAL:
                entry = {key: text(content) for key, content in fields(value)}
                location = entry.get(2, "") if entry.get(1) == "location" else location
        if external and location not in self.graph.external:
            self.graph.external.append(location)
        self.graph.parameters += count
        return name, _TYPES.get(dtype, f"type {dtype}")

    def _count_layers(self) -> None:
        for op, inputs in self._nodes:
            if op in LAYER_OPERATORS and len(inputs) > 1:
                # Either input of a MatMul may be the weights; the second one usually is.
                types = [dtype for name in inputs[1::-1] if (dtype := self._weight_type(name))]
                self.graph.layers.setdefault(op, Counter())[
                    types[0] if types else "activations"
                ] += 1

    def _weight_type(self, name: str) -> str | None:
        for _ in range(len(self._nodes) + 1):
            if name in self._stored_types:
                return self._stored_types[name]
            op, inputs = self._producers.get(name, ("", []))
            if op not in _PASS_THROUGH or not inputs:
                return None
            name = inputs[0]
        return None


def _port(message: int | Message) -> Port:
    name, dtype, shape = "", "unknown", []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2:
            for part, tensor in (
                (p, t) for kind, v in fields(value) if kind == 1 for p, t in fields(v)
            ):
                if part == 1:
                    dtype = _TYPES.get(int(integer(tensor)), f"type {tensor}")
                elif part == 2:
                    shape = [_dimension(d) for _, d in fields(tensor)]
    return Port(name, dtype, tuple(shape))


def _dimension(message: int | Message) -> int | str:
    parts = dict(fields(message))
    return int(integer(parts[1])) if 1 in parts else text(parts.get(2, b"?"))
