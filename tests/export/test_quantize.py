"""int8 for CPUs and TensorRT: graphs, rounded weights and the layers that stay in float32."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fada_deploy.common.errors import DataError, ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.onnx_metadata import replace_metadata, save_onnx
from fada_deploy.export.precision import check_precision, layer_precisions
from fada_deploy.export.quantize import QuantizedModel, _Quantizer, _silenced, quantize
from fada_deploy.export.verify import verify_file
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import TOLERANCES, ReferenceOutputs


def constants(document: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in document.graph.initializer}


@pytest.fixture(scope="module", params=["cpu", "tensorrt"])
def quantized(
    request: pytest.FixtureRequest, exported: dict[str, Path], calibration: np.ndarray
) -> QuantizedModel:
    return quantize(exported["logits"], calibration, hardware_target=request.param)


@pytest.mark.slow
def test_cpu_and_tensorrt_get_different_graphs(quantized: QuantizedModel) -> None:
    values = constants(quantized.document)
    quantizers = [n for n in quantized.document.graph.node if n.op_type == "QuantizeLinear"]
    zeros = [values[n.input[2]] for n in quantizers]
    biases = [n for n in quantized.document.graph.node if n.op_type == "DequantizeLinear"
              and n.input[0] in values and values[n.input[0]].dtype == np.int32]  # fmt: skip
    assert len(quantizers) > 20
    if quantized.hardware_target == "tensorrt":
        assert all(z.dtype == np.int8 and not z.any() for z in zeros) and not biases
    else:
        assert all(z.dtype == np.uint8 for z in zeros) and any(z.any() for z in zeros) and biases


@pytest.mark.slow
def test_int8_labels_agree_and_only_float_layers_stay_in_float32(
    quantized: QuantizedModel, exported: dict[str, Path], tmp_path: Path
) -> None:
    model, out = exported["logits"], tmp_path / "model.onnx"
    layers = check_precision(quantized.document, "int8", float_layers=quantized.float_layers)
    assert layers["fp32"] == len(quantized.float_layers) and layers["int8"] > 40
    save_onnx(quantized.document, read_metadata(model), out)
    for result in verify_file(
        out, ReferenceOutputs.for_model(model, read_metadata(model)), ["onnxruntime", "openvino"]
    ).values():
        assert result.violations(TOLERANCES["int8"]) == []
        assert result.logit_error is not None and result.logit_error > 1e-3
    # The chosen number of float32 layers is within a thousandth of the pixels of the best.
    assert (
        quantized.equal_labels[len(quantized.float_layers)]
        >= max(quantized.equal_labels.values()) - 1e-3
    )


def two_convolutions(tmp_path: Path) -> Path:
    """Write two 1×1 convolutions; the weights of the second range from 1e-3 to 3 in a channel."""
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


def test_requested_number_of_layers_stays_in_float32(tmp_path: Path) -> None:
    model = two_convolutions(tmp_path)
    none = quantize(model, noise(4), hardware_target="cpu", float_layers=0)
    assert none.float_layers == () and layer_precisions(none.document)["fp32"] == 0
    one = quantize(model, noise(4), hardware_target="cpu", float_layers=1)
    assert len(one.float_layers) == 1 and layer_precisions(one.document)["fp32"] == 1


def test_weights_are_scaled_by_the_largest_of_their_channel(tmp_path: Path) -> None:
    quantized = quantize(
        two_convolutions(tmp_path), noise(4), hardware_target="tensorrt", float_layers=0
    )
    values = constants(quantized.document)
    original = {n: constants(onnx.load(str(two_convolutions(tmp_path))))[n] for n in ("w1", "w2")}
    for name, weight in original.items():
        rounded = next(
            v
            for n, v in values.items()
            if n.startswith(name) and v.dtype == np.int8 and v.ndim == 4
        )
        scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        np.testing.assert_array_equal(rounded, np.round(weight / scale).astype(np.int8))


def test_sensitivity_of_label_maps_is_the_fraction_of_other_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference of 16 would be 0 as a square of 8 bits."""
    quantizer = _Quantizer(two_convolutions(tmp_path), tmp_path, noise(4), "cpu", "minmax", 1)
    first, second = quantizer.layers
    quantizer._reference = np.full((4, 64, 64), 3, np.uint8)
    maps = {first: np.full((4, 64, 64), 19, np.uint8), second: quantizer._reference.copy()}
    maps[second][:, :5] = 2
    monkeypatch.setattr(quantizer, "quantize", lambda only: only)
    monkeypatch.setattr(quantizer, "_run", lambda layer, frames: maps[layer][: len(frames)])
    assert quantizer.layers_by_sensitivity() == [first, second]


def test_most_sensitive_layer_comes_first(tmp_path: Path) -> None:
    model = two_convolutions(tmp_path)
    quantizer = _Quantizer(model, tmp_path, noise(4), "cpu", "minmax", 1)
    assert quantizer.layers_by_sensitivity()[0] == "uneven"


def test_entropy_calibration_clips_outliers(tmp_path: Path) -> None:
    """Dark frames with a few white pixels: their values get no levels of their own."""
    frames = (noise(4) // 12).astype(np.uint8)
    frames[:, :2, :2] = 255
    scales = []
    for method in ("minmax", "entropy"):
        quantized = quantize(
            two_convolutions(tmp_path), frames, hardware_target="cpu", method=method, float_layers=0
        )
        values = constants(quantized.document)
        quantizers = [n for n in quantized.document.graph.node if n.op_type == "QuantizeLinear"]
        scales.append({n.output[0]: float(values[n.input[1]]) for n in quantizers})
    shared = scales[0].keys() & scales[1].keys()
    assert len(shared) >= 2 and all(scales[1][n] <= scales[0][n] * 1.01 for n in shared)
    assert any(scales[1][n] < 0.5 * scales[0][n] for n in shared)


def test_invalid_quantization_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(exported["logits"], model)
    with pytest.raises(UsageError, match=r"'best'.*percentile, minmax, entropy"):
        quantize(model, noise(4), hardware_target="cpu", method="best")
    with pytest.raises(DataError, match="at least 2 frames, got 1"):
        quantize(model, noise(1), hardware_target="cpu")
    replace_metadata(model, replace(read_metadata(model), precision="fp16"))
    with pytest.raises(ModelError, match="already fp16"):
        quantize(model, noise(4), hardware_target="cpu")


def test_quantizer_installs_no_log_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`logging.info` installs one for all loggers if the root logger has none."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with _silenced():
        logging.info("quantizing")
    assert not root.handlers and not root.filters


def _in_a_thread(code: Any, names: dict[str, Any]) -> None:
    thread = threading.Thread(target=exec, args=(code, names))
    thread.start()
    thread.join()


def test_only_the_quantizer_is_silenced(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The application may log and print in other threads meanwhile."""
    quantizer = compile(
        "logging.warning('from the quantizer')\nprint('from the quantizer')",
        "/site-packages/onnxruntime/quantization/x.py", "exec",
    )  # fmt: skip

    def application() -> None:
        logging.warning("from the root logger")
        logging.getLogger("app").warning("from the application")
        print("printed by the application")

    with _silenced():
        # Part of the quantization runs in other threads, too.
        for run in (exec, _in_a_thread):
            run(quantizer, {"logging": logging, "__name__": "onnxruntime.quantization.x"})
        thread = threading.Thread(target=application)
        thread.start()
        thread.join()
    assert [r.message for r in caplog.records] == ["from the root logger", "from the application"]
    assert capsys.readouterr().out == "printed by the application\n"
