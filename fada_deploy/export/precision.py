"""Convert an fp32 ONNX graph to fp16 or bf16, and read the precision of a graph.

The precision is written into the graph with Cast nodes, because TensorRT 11 and TensorRT-RTX build
strongly typed networks and have no builder flag for it. Inputs stay uint8 and outputs float32.
Needs the `onnx` package but not torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fada_deploy.common.errors import ModelError, ToleranceError
from fada_deploy.inspection.onnx_graph import LAYER_OPERATORS

_HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Conv accepts bfloat16 since this opset.
_BF16_OPSET = 22
# Exponentials, and sums over many values, lose too much in half precision.
_FLOAT32_OPERATORS = frozenset(
    {"ArgMax", "Softmax", "LayerNormalization", "ReduceMean", "GlobalAveragePool"}
)
# (operator, index) of inputs that ONNX requires to be float32: region and scales of Resize.
_FLOAT32_INPUTS = frozenset({("Resize", 1), ("Resize", 2)})
_PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def to_half(document: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return an fp32 graph converted to "fp16" or "bf16"; inputs and outputs keep their types.

    Input normalization, softmax, global means and the upsampling before an argmax stay in float32.
    Raise `ModelError` if the type of a tensor is unknown.
    """
    typed = onnx.shape_inference.infer_shapes(document, strict_mode=True, data_prop=True)
    if precision == "bf16":
        for opset in typed.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, _BF16_OPSET)
    _HalfConverter(typed.graph, _HALF_TYPES[precision]).run()
    onnx.checker.check_model(typed, full_check=True)
    return typed


class _HalfConverter:
    """Convert a graph in place, node by node in topological order."""

    def __init__(self, graph: onnx.GraphProto, half_type: int) -> None:
        self._graph, self._half_type = graph, half_type
        self._types = tensor_types(graph)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._float32_nodes = _float32_nodes(graph)
        self._half_tensors: set[str] = set()
        self._converted: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        outputs = {output.name for output in self._graph.output}
        for index, node in enumerate(list(self._graph.node)):
            float_inputs = [i for i, name in enumerate(node.input) if self._is_float(name)]
            to_half = (
                bool(float_inputs) and index not in self._float32_nodes and node.op_type != "Cast"
            )
            for i in float_inputs:
                if (node.op_type, i) not in _FLOAT32_INPUTS:
                    node.input[i] = self._as_type(
                        node.input[i], self._half_type if to_half else TensorProto.FLOAT
                    )
            self._nodes.append(node)
            for i, name in enumerate(node.output):
                if not (to_half and self._is_float(name)):
                    continue
                if name in outputs:
                    node.output[i] = f"{name}_low"
                    self._add_cast(node.output[i], name, TensorProto.FLOAT)
                else:
                    self._half_tensors.add(name)
        del self._graph.node[:]
        del self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        _drop_unused_initializers(self._graph)

    def _is_float(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == TensorProto.FLOAT

    def _as_type(self, name: str, dtype: int) -> str:
        """Return the name of the tensor in `dtype`; convert it on first use."""
        if dtype == (self._half_type if name in self._half_tensors else TensorProto.FLOAT):
            return name
        if (name, dtype) not in self._converted:
            new_name = f"{name}_{_PRECISIONS[dtype]}"
            if name in self._initializers:
                tensor = _cast_initializer(self._initializers[name], new_name, dtype)
                self._graph.initializer.append(tensor)
            else:
                self._add_cast(name, new_name, dtype)
            self._converted[name, dtype] = new_name
        return self._converted[name, dtype]

    def _add_cast(self, name: str, new_name: str, dtype: int) -> None:
        self._nodes.append(
            helper.make_node("Cast", [name], [new_name], name=f"cast_{new_name}", to=dtype)
        )


def _cast_initializer(tensor: TensorProto, name: str, dtype: int) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return numpy_helper.from_array(values, name)


def _float32_nodes(graph: onnx.GraphProto) -> set[int]:
    """Return the indices of the nodes that stay in float32."""
    nodes = {i for i, node in enumerate(graph.node) if node.op_type in _FLOAT32_OPERATORS}
    # The nodes before the first layer normalize the input.
    first = next((i for i, node in enumerate(graph.node) if node.op_type in LAYER_OPERATORS), 0)
    nodes |= set(range(first))
    # The published network upsamples the logits and takes the argmax in float32.
    argmax_inputs = {name for node in graph.node if node.op_type == "ArgMax" for name in node.input}
    return nodes | {
        i
        for i, node in enumerate(graph.node)
        if node.op_type == "Resize" and argmax_inputs & set(node.output)
    }


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def tensor_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element type of each tensor; raise `ModelError` if one is unknown."""
    types = _declared_types(graph)
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ModelError(
            f"the types of {len(unknown)} tensors of the graph are unknown, the first is "
            f"{unknown[0]}"
        )
    return types


def _declared_types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def layer_precisions(document: onnx.ModelProto) -> Counter[str]:
    """Count the layers with weights by the precision they compute in.

    A layer counts as int8 if both of its inputs come from DequantizeLinear nodes.
    """
    graph = onnx.shape_inference.infer_shapes(document).graph
    types = _declared_types(graph)
    producers = {name: node for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in LAYER_OPERATORS:
            continue
        if all(_is_dequantized(name, producers) for name in node.input[:2]):
            counts["int8"] += 1
        else:
            counts[_PRECISIONS.get(types.get(node.input[0], 0), "unknown")] += 1
    return counts


def _is_dequantized(name: str, producers: Mapping[str, NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type == "Cast":
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def check_precision(
    document: onnx.ModelProto, precision: str, *, float_layers: Iterable[str] = ()
) -> Counter[str]:
    """Return `layer_precisions`; raise `ToleranceError` if a layer is not in `precision`.

    Only in an int8 graph may the layers `float_layers` be in another precision.
    """
    counts = layer_precisions(document)
    allowed = len(set(float_layers)) if precision == "int8" else 0
    others = sum(counts.values()) - counts[precision]
    if not counts[precision] or others > allowed:
        actual = ", ".join(f"{count} in {name}" for name, count in counts.items()) or "none"
        raise ToleranceError(
            f"the layers with weights must be in {precision} (at most {allowed} in another "
            f"precision), got {actual}"
        )
    return counts
