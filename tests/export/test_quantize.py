"""int8 for CPUs and for TensorRT: the graphs each takes, weights by hand, and the layers that stay in float."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fada_deploy.common.errors import DataError, ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.onnx_metadata import save_onnx, stamp
from fada_deploy.export.precision import check_precision, layer_precisions
from fada_deploy.export.quantize import Quantized, _Work, quantize
from fada_deploy.export.verify import verify_file
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import TOLERANCES, ReferenceOutputs


def constants(document: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in document.graph.initializer}


@pytest.fixture(scope="module", params=["cpu", "tensorrt"])
def made(
    request: pytest.FixtureRequest, exported: dict[str, Path], calibration: np.ndarray
) -> Quantized:
    return quantize(exported["logits"], calibration, hardware_target=request.param)


@pytest.mark.slow
def test_each_gets_the_graph_it_takes(made: Quantized) -> None:
    values = constants(made.document)
    quantizers = [n for n in made.document.graph.node if n.op_type == "QuantizeLinear"]
    zeros = [values[n.input[2]] for n in quantizers]
    biases = [n for n in made.document.graph.node if n.op_type == "DequantizeLinear"
              and n.input[0] in values and values[n.input[0]].dtype == np.int32]  # fmt: skip
    assert len(quantizers) > 20
    if made.hardware_target == "tensorrt":
        assert all(z.dtype == np.int8 and not z.any() for z in zeros) and not biases
    else:
        assert all(z.dtype == np.uint8 for z in zeros) and any(z.any() for z in zeros) and biases


@pytest.mark.slow
def test_the_answers_hold_and_the_float_layers_are_those_named(
    made: Quantized, exported: dict[str, Path], tmp_path: Path
) -> None:
    model, out = exported["logits"], tmp_path / "model.onnx"
    layers = check_precision(made.document, "int8", left_out=made.left_out)
    assert layers["fp32"] == len(made.left_out) and layers["int8"] > 40
    save_onnx(made.document, read_metadata(model), out)
    for found in verify_file(
        out, ReferenceOutputs.of(model, read_metadata(model)), ["onnxruntime", "openvino"]
    ).values():
        assert found.refusals(TOLERANCES["int8"]) == []
        assert found.logit_error is not None and found.logit_error > 1e-3
    # What was chosen is as good as the best that was tried, to a thousandth of the pixels.
    assert made.equal_labels[len(made.left_out)] >= max(made.equal_labels.values()) - 1e-3


@pytest.mark.slow
def test_so_many_layers_stay_in_float_as_are_asked(
    exported: dict[str, Path], calibration: np.ndarray
) -> None:
    none = quantize(exported["logits"], calibration, hardware_target="cpu", leave_out=0)
    assert none.left_out == () and layer_precisions(none.document)["fp32"] == 0
    two = quantize(exported["logits"], calibration, hardware_target="cpu", leave_out=2)
    assert len(two.left_out) == 2 and layer_precisions(two.document)["fp32"] == 2


def small(tmp_path: Path) -> Path:
    """Two 1×1 convolutions over a 64×64 picture; the second's weights reach from 1e-3 to 3 within a channel."""
    space = LabelSpace("two", CITYSCAPES_19.classes[:2])
    first = np.array(
        [[[[0.01]], [[0.0]], [[0.0]]], [[[0.0]], [[0.01]], [[0.0]]], [[[0.0]], [[0.0]], [[0.01]]]]
    )
    second = np.array([[[[1e-3]], [[2e-3]], [[3.0]]], [[[3.0]], [[1e-3]], [[-2e-3]]]])
    weights = {"w1": first.astype(np.float32), "w2": second.astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["frames"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w1"], ["h"], name="even"),
        helper.make_node("Conv", ["h", "w2"], ["logits"], name="uneven"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "small", [info("frames", TensorProto.UINT8, [1, 64, 64, 3])],
        [info("logits", TensorProto.FLOAT, [1, 2, 64, 64])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "small.onnx"
    save_onnx(document, ModelMetadata(space, (64, 64), "logits", True, batch=1), path)
    return path


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_weights_are_rounded_to_their_channels_largest(tmp_path: Path) -> None:
    made = quantize(small(tmp_path), noise(4), hardware_target="tensorrt", leave_out=0)
    values = constants(made.document)
    original = {n: constants(onnx.load(str(small(tmp_path))))[n] for n in ("w1", "w2")}
    for name, weight in original.items():
        found = next(
            v
            for n, v in values.items()
            if n.startswith(name) and v.dtype == np.int8 and v.ndim == 4
        )
        scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        np.testing.assert_array_equal(found, np.round(weight / scale).astype(np.int8))


def test_the_layer_that_int8_hurts_most_is_found(tmp_path: Path) -> None:
    work = _Work(small(tmp_path), tmp_path, noise(4), "cpu", "minmax", 1)
    assert work.by_sensitivity()[0] == "uneven"


def test_calibrations_differ(exported: dict[str, Path], calibration: np.ndarray) -> None:
    scales = []
    for method in ("minmax", "entropy"):
        made = quantize(
            exported["logits"],
            calibration[:4],
            hardware_target="cpu",
            calibration=method,
            leave_out=0,
        )
        values = constants(made.document)
        quantizers = [n for n in made.document.graph.node if n.op_type == "QuantizeLinear"]
        scales.append(
            {
                n.output[0]: float(values[n.input[1]])
                for n in quantizers
                if values[n.input[1]].ndim == 0
            }
        )
    shared = scales[0].keys() & scales[1].keys()
    # Entropy cuts tails off, and never widens.
    assert len(shared) > 20 and all(scales[1][n] <= scales[0][n] * 1.01 for n in shared)
    assert sum(scales[1][n] < 0.9 * scales[0][n] for n in shared) > 3


def test_what_cannot_be_quantized_is_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(exported["logits"], model)
    with pytest.raises(
        UsageError, match="no calibration 'best'; there are minmax, percentile, entropy"
    ):
        quantize(model, noise(4), hardware_target="cpu", calibration="best")
    with pytest.raises(DataError, match="calibrated on the target's frames, and 1 is too few"):
        quantize(model, noise(1), hardware_target="cpu")
    stamp(model, replace(read_metadata(model), precision="fp16"))
    with pytest.raises(ModelError, match="is fp16 already"):
        quantize(model, noise(4), hardware_target="cpu")
