"""Engines built with TensorRT-RTX, which needs no GPU to build; none is run.

What only `tensorrt` has (a timing cache, compatible engines) is tested with TensorRT-RTX under the
name `tensorrt`: the calls are the same, the library is not.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import toy

from fada_deploy.common.errors import (
    DeviceError,
    FadaError,
    MissingExtraError,
    ModelError,
    ToleranceError,
    UsageError,
)
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.progress import set_progress_factory
from fada_deploy.export import to_tensorrt
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.options import EngineOptions
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.export.trt_layers import check_precision, layers_from_log, layers_from_network
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends.engine_file import EngineTensor, check_can_run, read_engine
from fada_deploy.runtime.backends.gpu import Gpu
from fada_deploy.runtime.backends.onnx_file import read_metadata

trt = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed (Linux x86-64 only)"
)
SM86 = ("SM86",)
FOR_SM86 = EngineOptions(compute_capabilities=SM86)


@pytest.fixture(scope="module")
def logits_file(exported: dict[str, Path]) -> Path:
    return exported["logits"]


@pytest.fixture(scope="module")
def labels_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fada_deploy.export.exporter import export_onnx

    out = tmp_path_factory.mktemp("export") / "labels.onnx"
    weights = trained / "source" / "weights.safetensors"
    return export_onnx(weights, out, head="labels", batch=2).model


@pytest.fixture(scope="module")
def int8_file(logits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an int8 file for TensorRT: symmetric, signed, biases not quantized."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = tmp_path_factory.mktemp("int8")
    rng = np.random.default_rng(0)
    frames = iter(
        [{"frames": rng.integers(0, 256, (1, 128, 192, 3), dtype=np.uint8)} for _ in range(2)]
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(frames, None)

    logging.disable(logging.WARNING)
    try:
        quant_pre_process(str(logits_file), str(folder / "pre.onnx"), skip_symbolic_shape=True)
        quantize_static(
            str(folder / "pre.onnx"),
            str(folder / "q.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
    finally:
        logging.disable(logging.NOTSET)
    metadata = replace(read_metadata(logits_file), precision="int8", hardware_target="tensorrt")
    save_onnx(onnx.load(str(folder / "q.onnx")), metadata, folder / "model.int8.onnx")
    return folder / "model.int8.onnx"


def build_error(kind: type[FadaError], model: Path, out: Path, **options: Any) -> str:
    """Return the one-line error of a build that writes nothing."""
    before = set(out.parent.iterdir())
    engine_options = EngineOptions(**options)
    with pytest.raises(kind) as caught:
        build_engine(model, out, engine_options)
    assert "\n" not in str(caught.value)
    assert set(out.parent.iterdir()) == before
    # The traceback holds no frames of the build, and so no objects of the library.
    assert [frame.name for frame in caught.traceback][1:] == ["build_engine"]
    return str(caught.value)


@pytest.mark.slow
def test_sidecar_describes_the_engine(
    logits_file: Path, labels_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="fada_deploy")
    options = EngineOptions(flavor="tensorrt_rtx")
    built = build_engine(logits_file, tmp_path / "model.engine", options)
    sidecar = read_engine(built.path)
    assert sidecar == built.sidecar
    assert sidecar.metadata.to_json() == read_metadata(logits_file).to_json()
    (record,) = caplog.records
    for word in (str(built.path), f"tensorrt_rtx {trt.__version__}", str(logits_file)):
        assert word in record.getMessage()
    assert (sidecar.flavor, sidecar.flavor_version) == ("tensorrt_rtx", trt.__version__)
    assert (sidecar.engine_sha256, sidecar.onnx_sha256) == (sha256(built.path), sha256(logits_file))
    assert sidecar.onnx_name == "model.onnx" and sidecar.verification == "not_run"
    assert (
        sidecar.precision == "fp32"
        and list(sidecar.layers) == ["fp32"]
        and sidecar.layers["fp32"] > 40
    )
    assert (sidecar.compute_capabilities, sidecar.profile) == ((), (1, 1, 8))
    assert set(sidecar.io) == {
        EngineTensor("frames", "in", "uint8", (-1, 128, 192, 3)),
        EngineTensor("logits", "out", "float", (-1, 19, 16, 24)),
    }
    options = EngineOptions(compute_capabilities=("SM80", "SM89"))
    built = build_engine(labels_file, tmp_path / "labels.plan", options)
    sidecar = read_engine(built.path)
    assert (sidecar.compute_capabilities, sidecar.profile) == (("SM80", "SM89"), None)
    assert set(sidecar.io) == {
        EngineTensor("frames", "in", "uint8", (2, 128, 192, 3)),
        EngineTensor("labels", "out", "uint8", (2, 128, 192)),
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{n}{end}" for n in ("labels.plan", "model.engine") for end in ("", ".json")
    ]


@pytest.mark.slow
def test_profile_and_builder_options(logits_file: Path, tmp_path: Path) -> None:
    options = EngineOptions(batch=(2, 4, 16), optimization_level=1, workspace_mib=512)
    built = build_engine(logits_file, tmp_path / "m.engine", options)
    assert built.sidecar.profile == (2, 4, 16)
    assert built.sidecar.options["level"] == 1 and built.sidecar.options["workspace_mib"] == 512
    assert "OutOfMemory" in build_error(
        ModelError, logits_file, tmp_path / "small.engine", workspace_mib=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_engine_of_a_half_precision_file(logits_file: Path, tmp_path: Path, kind: str) -> None:
    from fada_deploy.export.precision import to_half

    metadata = replace(read_metadata(logits_file), precision=kind)
    save_onnx(to_half(onnx.load(str(logits_file)), kind), metadata, tmp_path / "half.onnx")
    built = build_engine(tmp_path / "half.onnx", tmp_path / "half.engine", FOR_SM86)
    assert list(built.sidecar.layers) == [kind] and built.sidecar.layers[kind] > 40
    assert {t.dtype for t in built.sidecar.io} == {"uint8", "float"}


@pytest.mark.slow
def test_engine_in_another_precision_than_the_metadata_is_refused(
    logits_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    wrong = replace(read_metadata(logits_file), precision="fp16")
    save_onnx(onnx.load(str(logits_file)), wrong, tmp_path / "wrong.onnx")
    text = build_error(ToleranceError, tmp_path / "wrong.onnx", tmp_path / "out" / "m.engine")
    assert "must be in fp16" in text and "in fp32" in text and "nothing was written" in text
    assert ToleranceError.exit_code == 3


@pytest.mark.slow
def test_int8_engine_is_refused_where_it_would_silently_be_float32(
    int8_file: Path, tmp_path: Path
) -> None:
    options = EngineOptions(compute_capabilities=("SM80", "SM86"))
    built = build_engine(int8_file, tmp_path / "m.engine", options)
    assert list(built.sidecar.layers) == ["int8"] and built.sidecar.layers["int8"] > 40
    for targets in (("SM75",), ("SM86", "SM75")):
        text = build_error(
            ToleranceError, int8_file, tmp_path / "old.engine", compute_capabilities=targets
        )
        assert "must be in int8" in text and "in fp32" in text and "leave SM75 out" in text
    before = sha256(built.path)
    with pytest.raises(ToleranceError):
        build_engine(int8_file, built.path, EngineOptions(compute_capabilities=("SM75",)))
    assert read_engine(built.path) == built.sidecar and sha256(built.path) == before


@pytest.mark.slow
def test_layers_from_network_equal_layers_from_log(
    logits_file: Path, int8_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is the fallback for versions whose log cannot be parsed."""
    for path in (logits_file, int8_file):
        sidecar = build_engine(path, tmp_path / "m.engine", FOR_SM86).sidecar
        logger = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path))
        layers = layers_from_network(trt, network)
        assert list(layers) == [sidecar.precision]
        expected = sidecar.layers[sidecar.precision]
        assert layers[sidecar.precision] == pytest.approx(expected, abs=4)


def test_both_log_formats_are_parsed() -> None:
    rtx = (
        "Name: a_myl0_3, LayerType: correlation, Inputs: [ { Name: x, Dimensions: "
        "[-1,4,192,320], Datatype: Int8, Format: (NHWC) }], Constants: [ { Name: w, Datatype: Int8 "
        "}], Outputs: [ { Name: y, Datatype: Float }], TacticName: t, StreamId: 0"
    )
    # The format of TensorRT 10's engine inspector.
    ten = (
        "Name: conv1, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, "
        "Dimensions: [1,3,8,8], Format/Datatype: Channel major FP16 format where channel % 8 == 0 "
        "}], Outputs: [ { Name: y, Location: Device, Dimensions: [1,8,8,8], Format/Datatype: Half "
        "}], ParameterType: Convolution, TacticName: t"
    )
    pooling = rtx.replace("correlation", "avgpool")
    bf16 = rtx.replace("Int8", "BFloat16", 1)
    assert layers_from_log([f"Engine Layer Information:\n{rtx}\n{pooling}", ten, bf16]) == {
        "int8": 1,
        "fp16": 1,
        "bf16": 1,
    }


@pytest.mark.parametrize(
    ("precision", "layers", "float_layers", "accepted"),
    [
        ("fp32", {"fp32": 5}, 0, True),
        ("fp16", {"fp16": 5}, 0, True),
        ("fp16", {"fp16": 5, "fp32": 1}, 0, False),
        ("fp16", {"fp32": 5}, 0, False),
        ("int8", {"int8": 5, "fp32": 2}, 2, True),
        ("int8", {"int8": 5, "fp32": 3}, 2, False),
        ("int8", {"fp32": 2}, 2, False),
        ("int8", {}, 0, False),
    ],
)
def test_check_precision(
    precision: str, layers: dict[str, int], float_layers: int, accepted: bool
) -> None:
    if accepted:
        check_precision(precision, layers, float_layers=float_layers)
    else:
        with pytest.raises(ToleranceError, match=f"must be in {precision}"):
            check_precision(precision, layers, float_layers=float_layers)


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    out = tmp_path / "m.engine"
    truncated = tmp_path / "in" / "truncated.onnx"
    truncated.write_bytes(model.read_bytes()[:-300])
    assert "truncated.onnx" in build_error(ModelError, truncated, out)
    foreign = toy.color_model(tmp_path / "in" / "foreign.onnx", metadata=None)
    assert "`fada` metadata" in build_error(ModelError, foreign, out)
    assert "cannot be read" in build_error(ModelError, tmp_path / "in" / "none.onnx", out)
    assert ".engine or .plan" in build_error(UsageError, model, tmp_path / "m.trt")


def test_error_lists_all_errors_of_the_parser(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    model.graph.node[3].op_type = "NoSuchOperator"
    model.graph.node[2].op_type = "NoSuchPooling"
    onnx.save(model, path)
    text = build_error(ModelError, path, tmp_path / "m.engine")
    assert "cannot parse" in text and "NoSuchOperator" in text and "NoSuchPooling" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version_compatible": True}, "cannot build version-compatible engines"),
        ({"hardware_compatible": True}, "cannot build hardware-compatible engines"),
        ({"compute_capabilities": ("SM61",)}, "'SM61'; use one of CURRENT, SM75, SM80"),
        ({"compute_capabilities": ("NONE",)}, "'NONE'"),
        ({"compute_capabilities": ("CURRENT", "SM86")}, "CURRENT cannot be combined"),
    ],
)
def test_options_that_tensorrt_rtx_lacks_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    options["flavor"] = "tensorrt_rtx"
    assert message in build_error(UsageError, model, tmp_path / "m.engine", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": (2, 1, 4)}, ("2,1,4", "MIN <= OPT <= MAX")),
        ({"batch": (0, 1, 1)}, ("0,1,1", "1 <= MIN")),
        ({"optimization_level": 6}, ("between 0 and 5", "got 6")),
        ({"workspace_mib": 0}, ("at least 1 MiB", "got 0")),
        ({"flavor": "onnx"}, ("'onnx'", "auto, tensorrt, tensorrt_rtx")),
    ],
)
def test_engine_options_are_validated(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        EngineOptions(**options)
    for word in words:
        assert word in str(caught.value)


def test_an_unsupported_gpu_is_refused_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H200 (9.0) would get an engine that does not load; a later GPU than any known may run."""
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    monkeypatch.setattr(to_tensorrt, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    monkeypatch.setattr(to_tensorrt, "build_serialized", None)  # must not be reached
    text = build_error(DeviceError, model, tmp_path / "m.engine")
    assert "NVIDIA H200 (SM90)" in text and "SM89" in text and "onnxruntime-gpu" in text
    assert "--compute-capability" in text and not (tmp_path / "m.engine").exists()


@pytest.mark.parametrize(("gpu", "capabilities"), [("8.9", ()), ("13.0", ()), ("9.0", ("SM89",))])
def test_supported_gpus_and_other_targets_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, capabilities: tuple[str, ...]
) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    monkeypatch.setattr(to_tensorrt, "find_gpu", lambda: Gpu("a GPU", gpu))
    options = EngineOptions(compute_capabilities=capabilities)
    assert build_engine(model, tmp_path / "m.engine", options).path.is_file()


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU to build for")
def test_building_for_the_current_gpu_needs_one(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    text = build_error(ModelError, model, tmp_path / "m.engine", compute_capabilities=("CURRENT",))
    assert "could not build an engine" in text and "cudaError" in text


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have Ctrl-C raise, also where the shell that started the tests lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Steps:
    """A progress display that records its updates."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.count = 0
        self.updates = 0
        self.phases: set[str] = set()
        self._interrupt_at = interrupt_at

    def open(self, *, total: int | None, description: str, unit: str, initial: int) -> Any:
        assert (total, unit, initial) == (None, "step", 0)
        return nullcontext(self)

    def update(self, n: int = 1) -> None:
        self.count += n
        self.updates += 1
        if self.updates == self._interrupt_at:
            _thread.interrupt_main()
            # Time for the main thread to notice it.
            time.sleep(0.5)

    def set_postfix(self, values: Mapping[str, str]) -> None:
        self.phases.add(values["phase"])


@pytest.fixture
def show_progress() -> Iterator[Callable[[Steps], None]]:
    yield lambda steps: set_progress_factory(steps.open)
    set_progress_factory(None)


@pytest.mark.slow
def test_interrupted_build_leaves_no_file(
    logits_file: Path,
    tmp_path: Path,
    interruptible: None,
    show_progress: Callable[[Steps], None],
) -> None:
    build_engine(logits_file, tmp_path / "complete.engine")
    steps = Steps(interrupt_at=3)
    show_progress(steps)
    with pytest.raises(KeyboardInterrupt):
        build_engine(logits_file, tmp_path / "m.engine")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["complete.engine", "complete.engine.json"]
    # A complete build takes hundreds of steps.
    assert steps.updates < 50


@pytest.mark.slow
def test_build_reports_progress_and_prints_nothing(
    logits_file: Path,
    tmp_path: Path,
    show_progress: Callable[[Steps], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    steps = Steps()
    show_progress(steps)
    build_engine(logits_file, tmp_path / "m.engine")
    assert steps.count > 50 and steps.phases
    assert capfd.readouterr() == ("", "")


def test_engines_of_another_version_or_hash_are_refused(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    built = build_engine(model, tmp_path / "m.engine", FOR_SM86)
    with pytest.raises(ModelError, match=r"built by tensorrt_rtx .* 1\.8\.0\.1 is installed"):
        check_can_run(built.sidecar, flavor_version="1.8.0.1", compute_capability="8.6")
    other = build_engine(model, tmp_path / "other.engine", FOR_SM86)
    plan = bytearray(built.path.read_bytes())
    plan[len(plan) // 2] ^= 1
    for content, message in (
        (bytes(plan), "is not the engine that"),
        (plan[:-9], f"{len(plan) - 9} bytes"),
    ):
        built.path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            open_backend(built.path)
    (tmp_path / "m.engine.json").write_bytes((tmp_path / "other.engine.json").read_bytes())
    with pytest.raises(ModelError, match=r"m\.engine (is not the engine that|has \d+ bytes)"):
        open_backend(built.path)
    if not os.path.exists("/dev/nvidia0"):
        with pytest.raises(DeviceError, match=r"other\.engine.*NVIDIA GPU.*cuda:0"):
            open_backend(other.path)
    with pytest.raises(DeviceError, match=r"other\.engine.*cpu.*\.onnx"):
        open_backend(other.path, device="cpu")


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_timing_cache_and_compatible_engines_of_tensorrt(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX under the name tensorrt; its timing cache is valid but empty."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    built = build_engine(model, tmp_path / "m.engine", EngineOptions(hardware_compatible=True))
    assert built.sidecar.flavor == "tensorrt" and built.sidecar.options["hardware_compatible"]
    (timing_cache,) = (cache / "fada_deploy").glob(f"tensorrt-{trt.__version__}-*.timing")
    assert timing_cache.stat().st_size > 0
    chosen = tmp_path / "times"
    for content in (None, b"rubbish"):
        if content is not None:
            chosen.write_bytes(content)
        build_engine(model, tmp_path / "m.engine", EngineOptions(timing_cache=chosen))
        assert chosen.stat().st_size > len(b"rubbish")
    message = build_error(UsageError, model, tmp_path / "n.engine", compute_capabilities=SM86)
    assert "--compute-capability" in message
    # TensorRT-RTX lacks the library that such engines need; the error is that of the builder.
    text = build_error(ModelError, model, tmp_path / "n.engine", version_compatible=True)
    assert "libnvinfer_lean" in text


def test_timing_cache_is_ignored_by_tensorrt_rtx(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    build_engine(model, tmp_path / "m.engine", EngineOptions(timing_cache=tmp_path / "times"))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "timing cache" in record.getMessage()
    assert not (tmp_path / "times").exists()


def test_flavors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")

    def refuse(log: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    # On a machine without a GPU, tensorrt can be imported but its builder cannot be created.
    monkeypatch.setitem(
        sys.modules, "tensorrt", SimpleNamespace(ILogger=trt.ILogger, Builder=refuse)
    )
    assert build_engine(model, tmp_path / "m.engine").sidecar.flavor == "tensorrt_rtx"
    text = build_error(DeviceError, model, tmp_path / "n.engine", flavor="tensorrt")
    assert "tensorrt is installed but cannot build here" in text
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "cannot build here" in build_error(DeviceError, model, tmp_path / "n.engine")
    assert "[tensorrt-rtx]" in build_error(
        MissingExtraError, model, tmp_path / "n.engine", flavor="tensorrt_rtx"
    )
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = build_error(MissingExtraError, model, tmp_path / "n.engine")
    assert "[tensorrt]" in text and "[tensorrt-rtx]" in text


def test_labels_output_of_an_engine_is_uint8(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "m.onnx", head="labels", batch=3)
    built = build_engine(model, tmp_path / "m.engine")
    assert isinstance(built.sidecar.metadata, ModelMetadata)
    assert {(t.kind, t.dtype, t.shape[0]) for t in built.sidecar.io} == {
        ("in", "uint8", 3),
        ("out", "uint8", 3),
    }
