"""Precision lives in the ONNX file: fp32 → fp16 or bf16 inside, with uint8 in and float32 out as before.

TensorRT 11 and TensorRT-RTX build the types that are written in the graph, so what is asked for has to be
in it: every tensor a Cast, no builder's flag. Knows the `onnx` package and no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fada_deploy.common.errors import ModelError, ToleranceError

_FLOATS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# The first opset whose Conv takes bfloat16.
_BF16_OPSET = 22
_HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# Sums over many values, and exponentials: where half precision loses what matters.
_SENSITIVE = frozenset(
    {"ArgMax", "Softmax", "LayerNormalization", "ReduceMean", "GlobalAveragePool"}
)
# Inputs that are float32 whatever the data are: a Resize's region and scales.
_ALWAYS_FP32 = frozenset({("Resize", 1), ("Resize", 2)})
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def to_half(document: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Return the network of a float32 file in fp16 or bf16; inputs and outputs keep their types.

    Normalization of the input, softmax, sums over a whole map and the upsampling before an arg max stay in
    float32. Raise `ModelError` when some tensor's type cannot be told.
    """
    typed = onnx.shape_inference.infer_shapes(document, strict_mode=True, data_prop=True)
    if kind == "bf16":
        for opset in typed.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, _BF16_OPSET)
    _Halving(typed.graph, _FLOATS[kind]).run()
    onnx.checker.check_model(typed, full_check=True)
    return typed


class _Halving:
    """One walk through a graph that gives each node's float inputs the type the node computes in."""

    def __init__(self, graph: onnx.GraphProto, low: int) -> None:
        self._graph, self._low = graph, low
        self._types = tensor_types(graph)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._kept = _sensitive(graph)
        self._lowered: set[str] = set()
        self._made: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        outputs = {output.name for output in self._graph.output}
        for index, node in enumerate(list(self._graph.node)):
            floats = [i for i, name in enumerate(node.input) if self._is_float(name)]
            lower = bool(floats) and index not in self._kept and node.op_type != "Cast"
            for i in floats:
                if (node.op_type, i) not in _ALWAYS_FP32:
                    node.input[i] = self._as(
                        node.input[i], self._low if lower else TensorProto.FLOAT
                    )
            self._nodes.append(node)
            for i, name in enumerate(node.output):
                if not (lower and self._is_float(name)):
                    continue
                if name in outputs:
                    node.output[i] = f"{name}_low"
                    self._cast(node.output[i], name, TensorProto.FLOAT)
                else:
                    self._lowered.add(name)
        del self._graph.node[:]
        del self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        _drop_unused(self._graph)

    def _is_float(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == TensorProto.FLOAT

    def _as(self, name: str, kind: int) -> str:
        """Return the tensor's name in a type, made once."""
        if kind == (self._low if name in self._lowered else TensorProto.FLOAT):
            return name
        if (name, kind) not in self._made:
            made = f"{name}_{_NAMES[kind]}"
            if name in self._constants:
                self._graph.initializer.append(_converted(self._constants[name], made, kind))
            else:
                self._cast(name, made, kind)
            self._made[name, kind] = made
        return self._made[name, kind]

    def _cast(self, name: str, made: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [name], [made], name=f"cast_{made}", to=kind))


def _converted(tensor: TensorProto, name: str, kind: int) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(values, name)


def _sensitive(graph: onnx.GraphProto) -> set[int]:
    """Return the numbers of the nodes that stay in float32."""
    kept = {i for i, node in enumerate(graph.node) if node.op_type in _SENSITIVE}
    # What comes before the first layer with weights is the input's normalization.
    first = next((i for i, node in enumerate(graph.node) if node.op_type in _HEAVY), 0)
    kept |= set(range(first))
    # Upsampled logits are compared by the arg max; the published network does both in float32.
    deciding = {name for node in graph.node if node.op_type == "ArgMax" for name in node.input}
    return kept | {
        i
        for i, node in enumerate(graph.node)
        if node.op_type == "Resize" and deciding & set(node.output)
    }


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def tensor_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return every tensor's element type; raise `ModelError` when one cannot be told."""
    known = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    untold = [name for node in graph.node for name in node.output if name and not known.get(name)]
    if untold:
        raise ModelError(
            f"the types of {len(untold)} tensors in the graph cannot be told, the first {untold[0]}"
        )
    return known


def layer_precisions(document: onnx.ModelProto) -> Counter[str]:
    """Return how many layers with weights compute in which precision: int8 where both sides are quantized."""
    graph = onnx.shape_inference.infer_shapes(document).graph
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in _HEAVY:
            continue
        if all(_is_dequantized(name, makers) for name in node.input[:2]):
            found["int8"] += 1
        else:
            found[_NAMES.get(types.get(node.input[0], 0), "unknown")] += 1
    return found


def _is_dequantized(name: str, makers: Mapping[str, NodeProto]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type == "Cast":
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def check_precision(
    document: onnx.ModelProto, asked: str, *, left_out: Iterable[str] = ()
) -> Counter[str]:
    """Return `layer_precisions`; raise `ToleranceError` when the graph is not in the precision that was asked.

    For int8 the layers `left_out` may be in another, for the others no layer may.
    """
    found = layer_precisions(document)
    others = sum(found.values()) - found[asked] - (len(set(left_out)) if asked == "int8" else 0)
    if not found[asked] or others > 0:
        listed = ", ".join(f"{count} in {name}" for name, count in found.items())
        raise ToleranceError(
            f"{asked} was asked for, but of the layers with weights there are {listed or 'none'}"
        )
    return found
