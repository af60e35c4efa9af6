"""Graphs in half precision: types, layers that stay in float32, and agreement of the labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fada_deploy.common.errors import ModelError, ToleranceError
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.precision import check_precision, layer_precisions, tensor_types, to_half
from fada_deploy.export.verify import verify_file
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import TOLERANCES, ReferenceOutputs


def types_of(document: onnx.ModelProto) -> dict[str, int]:
    return tensor_types(onnx.shape_inference.infer_shapes(document, data_prop=True).graph)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_trained_network_in_half_precision(
    exported: dict[str, Path], tmp_path: Path, head: str, kind: str
) -> None:
    model = exported[head]
    full = onnx.load(str(model))
    half = to_half(onnx.load(str(model)), kind)
    assert check_precision(half, kind) == {kind: sum(check_precision(full, "fp32").values())}
    # The types of inputs and outputs do not change.
    assert list(half.graph.input) == list(full.graph.input)
    assert list(half.graph.output) == list(full.graph.output)
    types = types_of(half)
    first = next(i for i, node in enumerate(half.graph.node) if node.op_type == "Conv")
    normalization = [n for n in half.graph.node[:first] if n.op_type in ("Mul", "Add")]
    assert normalization and all(types[n.output[0]] == TensorProto.FLOAT for n in normalization)
    for node in half.graph.node:
        if node.op_type == "ArgMax":
            assert types[node.input[0]] == TensorProto.FLOAT
    out = tmp_path / "model.onnx"
    metadata = read_metadata(model)
    save_onnx(half, metadata, out)
    backends = ["openvino"] if kind == "bf16" else runnable_backends(model)
    results = verify_file(out, ReferenceOutputs.for_model(model, metadata), backends)
    for verification in results.values():
        assert verification.violations(TOLERANCES[kind]) == []
        assert verification.classes >= 5
        # The values are not those of float32.
        assert verification.logit_error is None or verification.logit_error > 1e-5


def layer(weight: np.ndarray, *, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a graph with a 1×1 convolution and a ReLU, y = max(W x, 0)."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    shape = [1, weight.shape[1], 2, 2]
    graph = helper.make_graph(
        nodes, "layer", [value("x", kind, shape)], [value("y", kind, [1, weight.shape[0], 2, 2])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_fp16_layer_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4, 1, 1)).astype(np.float32)
    x = rng.normal(size=(1, 4, 2, 2)).astype(np.float32)
    half = to_half(layer(weight), "fp16")
    session = onnxruntime.InferenceSession(
        half.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    output = session.run(None, {"x": x})[0]
    w16, x16 = (a.astype(np.float16).astype(np.float32) for a in (weight[..., 0, 0], x))
    expected = np.maximum(np.einsum("oc,bchw->bohw", w16, x16).astype(np.float16), 0)
    np.testing.assert_allclose(output, expected.astype(np.float32), atol=2e-3)
    assert output.dtype == np.float32 and not np.allclose(
        output, np.maximum(np.einsum("oc,bchw->bohw", weight[..., 0, 0], x), 0), atol=1e-7
    )


def test_graph_in_another_precision_is_refused() -> None:
    full = layer(np.ones((2, 2, 1, 1), np.float32))
    assert layer_precisions(full) == {"fp32": 1}
    with pytest.raises(ToleranceError, match=r"in fp16 .* got 1 in fp32"):
        check_precision(full, "fp16")
    with pytest.raises(ToleranceError, match=r"in int8 .* got 1 in fp16"):
        check_precision(to_half(layer(np.ones((2, 2, 1, 1), np.float32)), "fp16"), "int8")


def test_single_layer_in_float32_is_refused(exported: dict[str, Path]) -> None:
    document = to_half(onnx.load(str(exported["logits"])), "fp16")
    convolution = [n for n in document.graph.node if n.op_type == "Conv"][3]
    for i in (0, 1):
        cast_name = f"{convolution.input[i]}_back"
        cast = helper.make_node("Cast", [convolution.input[i]], [cast_name], to=TensorProto.FLOAT)
        document.graph.node.insert(list(document.graph.node).index(convolution), cast)
        convolution.input[i] = cast_name
    (out,) = convolution.output
    convolution.output[0] = f"{out}_float32"
    back = helper.make_node("Cast", [f"{out}_float32"], [out], to=TensorProto.FLOAT16)
    document.graph.node.insert(list(document.graph.node).index(convolution) + 1, back)
    del document.graph.value_info[:]
    with pytest.raises(ToleranceError, match="1 in fp32"):
        check_precision(document, "fp16")


def test_graph_with_unknown_types_is_refused() -> None:
    document = layer(np.ones((2, 2, 1, 1), np.float32))
    with pytest.raises(ModelError, match=r"types of 1 tensors .* the first is c"):
        tensor_types(document.graph)
