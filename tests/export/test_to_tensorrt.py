"""Engines are built by the real TensorRT-RTX, which needs no GPU to build. None is run here, as that needs one.

What only `tensorrt` has (a timing cache, compatible engines) goes through RTX under the name `tensorrt`: the same
calls, not the same library.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
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
from fada_deploy.export import trt_progress
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.export.trt_layers import check_precision, layers_of_log, layers_of_network
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends.engine_file import EngineTensor, check_can_run, read_engine
from fada_deploy.runtime.backends.onnx_file import read_metadata

trt = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed (Linux x86-64 only)"
)
SM86 = ("SM86",)


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def logits_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fada_deploy.export.exporter import export

    out = tmp_path_factory.mktemp("export") / "model.onnx"
    return export(trained / "source" / "weights.safetensors", out, say=quiet).model


@pytest.fixture(scope="module")
def labels_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fada_deploy.export.exporter import export

    out = tmp_path_factory.mktemp("export") / "labels.onnx"
    return export(
        trained / "source" / "weights.safetensors", out, head="labels", batch=2, say=quiet
    ).model


@pytest.fixture(scope="module")
def int8_file(logits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the network with Q/DQ nodes as TensorRT takes them: symmetric, signed, no quantized bias."""
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


def refusal(kind: type[FadaError], model: Path, out: Path, **options: Any) -> str:
    """Return what a build is refused with, in one line, having written nothing."""
    before = set(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        build_engine(model, out, say=quiet, **options)
    assert "\n" not in str(caught.value)
    assert set(out.parent.iterdir()) == before
    # No frame of the build is kept, nor what it holds of the library.
    assert [frame.name for frame in caught.traceback][1:] == ["build_engine"]
    return str(caught.value)


@pytest.mark.slow
def test_both_heads_are_built(logits_file: Path, labels_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    built = build_engine(
        logits_file, tmp_path / "model.engine", flavor="tensorrt_rtx", say=said.append
    )
    found = read_engine(built.path)
    assert (
        found == built.sidecar and found.metadata.to_json() == read_metadata(logits_file).to_json()
    )
    assert said == [f"building {built.path} with tensorrt_rtx {trt.__version__} from {logits_file}"]
    assert (found.flavor, found.flavor_version) == ("tensorrt_rtx", trt.__version__)
    assert (found.engine_sha256, found.onnx_sha256) == (sha256(built.path), sha256(logits_file))
    assert found.onnx_name == "model.onnx" and found.verification == "not_run"
    assert (
        found.precision == "fp32" and list(found.layers) == ["fp32"] and found.layers["fp32"] > 40
    )
    assert (found.compute_capabilities, found.profile) == ((), (1, 1, 8))
    assert set(found.io) == {
        EngineTensor("frames", "in", "uint8", (-1, 128, 192, 3)),
        EngineTensor("logits", "out", "float", (-1, 19, 16, 24)),
    }
    built = build_engine(
        labels_file, tmp_path / "labels.plan", compute_capabilities=("SM80", "SM89"), say=quiet
    )
    found = read_engine(built.path)
    assert (found.compute_capabilities, found.profile) == (("SM80", "SM89"), None)
    assert set(found.io) == {
        EngineTensor("frames", "in", "uint8", (2, 128, 192, 3)),
        EngineTensor("labels", "out", "uint8", (2, 128, 192)),
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{n}{end}" for n in ("labels.plan", "model.engine") for end in ("", ".json")
    ]


@pytest.mark.slow
def test_the_profile_is_the_batch_asked_for(logits_file: Path, tmp_path: Path) -> None:
    built = build_engine(
        logits_file, tmp_path / "m.engine", batch=(2, 4, 16), level=1, workspace_mib=512, say=quiet
    )
    assert built.sidecar.profile == (2, 4, 16)
    assert built.sidecar.options["level"] == 1 and built.sidecar.options["workspace_mib"] == 512
    assert "OutOfMemory" in refusal(
        ModelError, logits_file, tmp_path / "small.engine", workspace_mib=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_precision_is_what_is_built(logits_file: Path, tmp_path: Path, kind: str) -> None:
    from fada_deploy.export.precision import to_half

    metadata = replace(read_metadata(logits_file), precision=kind)
    save_onnx(to_half(onnx.load(str(logits_file)), kind), metadata, tmp_path / "half.onnx")
    built = build_engine(
        tmp_path / "half.onnx", tmp_path / "half.engine", compute_capabilities=SM86, say=quiet
    )
    assert list(built.sidecar.layers) == [kind] and built.sidecar.layers[kind] > 40
    assert {t.dtype for t in built.sidecar.io} == {"uint8", "float"}


@pytest.mark.slow
def test_a_file_that_is_not_what_it_says_is_refused(logits_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lie = replace(read_metadata(logits_file), precision="fp16")
    save_onnx(onnx.load(str(logits_file)), lie, tmp_path / "lie.onnx")
    text = refusal(ToleranceError, tmp_path / "lie.onnx", tmp_path / "out" / "m.engine")
    assert "fp16 was asked for, but of the convolutions that the builder made there are" in text
    assert "in fp32; nothing was written" in text and ToleranceError.exit_code == 3


@pytest.mark.slow
def test_int8_is_built_but_not_where_it_would_silently_be_float(
    int8_file: Path, tmp_path: Path
) -> None:
    built = build_engine(
        int8_file, tmp_path / "m.engine", compute_capabilities=("SM80", "SM86"), say=quiet
    )
    assert list(built.sidecar.layers) == ["int8"] and built.sidecar.layers["int8"] > 40
    for targets in (("SM75",), ("SM86", "SM75")):
        text = refusal(
            ToleranceError, int8_file, tmp_path / "old.engine", compute_capabilities=targets
        )
        assert "int8 was asked for" in text and "in fp32" in text and "leave SM75 out" in text
    before = sha256(built.path)
    with pytest.raises(ToleranceError):
        build_engine(int8_file, built.path, compute_capabilities=("SM75",), say=quiet)
    assert read_engine(built.path) == built.sidecar and sha256(built.path) == before


@pytest.mark.slow
def test_what_the_network_says_is_what_the_builder_makes(
    logits_file: Path, int8_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback for a library whose log is not understood, held against one whose log is."""
    for path in (logits_file, int8_file):
        made = build_engine(
            path, tmp_path / "m.engine", compute_capabilities=SM86, say=quiet
        ).sidecar
        logger = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(logger).create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path))
        found = layers_of_network(trt, network)
        assert list(found) == [made.precision]
        assert found[made.precision] == pytest.approx(made.layers[made.precision], abs=4)


def test_layers_are_read_in_both_ways_of_writing_them() -> None:
    rtx = (
        "Name: a_myl0_3, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,4,192,320], Datatype: Int8, "
        "Format: (NHWC) }], Constants: [ { Name: w, Datatype: Int8 }], Outputs: [ { Name: y, Datatype: Float }], "
        "TacticName: t, StreamId: 0"
    )
    # As TensorRT 10's inspector writes it; not seen from a build.
    ten = (
        "Name: conv1, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,3,8,8], "
        "Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], Outputs: [ { Name: y, Location: "
        "Device, Dimensions: [1,8,8,8], Format/Datatype: Half }], ParameterType: Convolution, TacticName: t"
    )
    pooling = rtx.replace("correlation", "avgpool")
    bf16 = rtx.replace("Int8", "BFloat16", 1)
    assert layers_of_log([f"Engine Layer Information:\n{rtx}\n{pooling}", ten, bf16]) == {
        "int8": 1,
        "fp16": 1,
        "bf16": 1,
    }


@pytest.mark.parametrize(
    ("asked", "layers", "left_out", "good"),
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
def test_precisions(asked: str, layers: dict[str, int], left_out: int, good: bool) -> None:
    if good:
        check_precision(asked, layers, left_out=left_out)
    else:
        with pytest.raises(ToleranceError, match=f"{asked} was asked for"):
            check_precision(asked, layers, left_out=left_out)


def test_files_that_are_not_built(tmp_path: Path) -> None:
    whole = toy.color_model(tmp_path / "in" / "m.onnx")
    out = tmp_path / "m.engine"
    cut = tmp_path / "in" / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:-300])
    assert "cut short" in refusal(ModelError, cut, out)
    bare = toy.color_model(tmp_path / "in" / "bare.onnx", metadata=None)
    assert "has no `fada` metadata" in refusal(ModelError, bare, out)
    assert "cannot be read" in refusal(ModelError, tmp_path / "in" / "none.onnx", out)
    assert "an engine ends in .engine or .plan" in refusal(UsageError, whole, tmp_path / "m.trt")


def test_all_that_the_parser_says_is_told(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    model.graph.node[3].op_type = "NoSuchOperator"
    model.graph.node[2].op_type = "NoSuchPooling"
    onnx.save(model, path)
    text = refusal(ModelError, path, tmp_path / "m.engine")
    assert (
        "TensorRT does not take it" in text and "NoSuchOperator" in text and "NoSuchPooling" in text
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"version_compatible": True},
            "version-compatible engines cannot be built by tensorrt_rtx",
        ),
        (
            {"hardware_compatible": True},
            "hardware-compatible engines cannot be built by tensorrt_rtx",
        ),
        (
            {"compute_capabilities": ("SM61",)},
            "no compute capability 'SM61'; there are CURRENT, SM75, SM80",
        ),
        ({"compute_capabilities": ("NONE",)}, "no compute capability 'NONE'"),
        ({"compute_capabilities": ("CURRENT", "SM86")}, "CURRENT stands alone"),
        ({"batch": (2, 1, 4)}, "a batch of 2/1/4 is none"),
        ({"batch": (0, 1, 1)}, "a batch of 0/1/1 is none"),
        ({"level": 6}, "no optimization level 6; there are 0 to 5"),
        ({"workspace_mib": 0}, "a workspace of 0 MiB"),
        (
            {"flavor": "onnx"},
            "no flavor 'onnx' of TensorRT; there are auto, tensorrt, tensorrt_rtx",
        ),
    ],
)
def test_options_that_cannot_be_had(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    chosen = {"flavor": "tensorrt_rtx", **options}
    assert message in refusal(UsageError, model, tmp_path / "m.engine", **chosen)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU to build for")
def test_the_gpu_here_cannot_be_built_for_without_one(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    text = refusal(ModelError, model, tmp_path / "m.engine", compute_capabilities=("CURRENT",))
    assert "TensorRT builds no engine of it" in text and "cudaError" in text


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have Ctrl-C raise, also where the shell that started the tests lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_build_that_is_interrupted_leaves_nothing(
    logits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> None:
    steps: list[int] = []

    class Bar(trt_progress.tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            steps.append(int(n or 0))
            if len(steps) == 3:
                _thread.interrupt_main()
                # Until the one who waits has heard it.
                time.sleep(0.5)
            return super().update(n)

    build_engine(logits_file, tmp_path / "whole.engine", say=quiet)
    monkeypatch.setattr(trt_progress, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        build_engine(logits_file, tmp_path / "m.engine", say=quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.engine", "whole.engine.json"]
    # It stopped then, and not when the engine was done, which takes hundreds of steps.
    assert len(steps) < 50


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_and_reaches_its_end(
    logits_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build_engine(logits_file, tmp_path / "m.engine", say=quiet)
    assert capsys.readouterr() == ("", "")
    bars: list[Any] = []

    class Bar(trt_progress.tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": False})
            bars.append(self)

    monkeypatch.setattr(trt_progress, "tqdm", Bar)
    build_engine(logits_file, tmp_path / "m.engine", say=quiet)
    assert bars[0].n == bars[0].total > 50
    out, err = capsys.readouterr()
    assert out == "" and "build" in err


def test_engines_of_another_version_or_tampered_with_are_not_opened(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    built = build_engine(model, tmp_path / "m.engine", compute_capabilities=SM86, say=quiet)
    with pytest.raises(ModelError, match=r"built by tensorrt_rtx .* and 1\.8\.0\.1 is installed"):
        check_can_run(built.sidecar, flavor_version="1.8.0.1", compute_capability="8.6")
    other = build_engine(model, tmp_path / "other.engine", compute_capabilities=SM86, say=quiet)
    plan = bytearray(built.path.read_bytes())
    plan[len(plan) // 2] ^= 1
    for content, message in (
        (bytes(plan), "is not the engine that"),
        (plan[:-9], "it was cut short"),
    ):
        built.path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            open_backend(built.path)
    (tmp_path / "m.engine.json").write_bytes((tmp_path / "other.engine.json").read_bytes())
    with pytest.raises(
        ModelError, match=r"m\.engine: (is not the engine that|has \d+ bytes where)"
    ):
        open_backend(built.path)
    if not os.path.exists("/dev/nvidia0"):
        with pytest.raises(
            DeviceError, match="an engine needs an NVIDIA GPU, and cuda:0 is not to be had"
        ):
            open_backend(other.path)
    with pytest.raises(DeviceError, match=r"not on the CPU; for that take the \.onnx"):
        open_backend(other.path, device="cpu")


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_what_only_tensorrt_has(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RTX under tensorrt's name: the timing cache's calls are real and keep nothing."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    said: list[str] = []
    built = build_engine(model, tmp_path / "m.engine", hardware_compatible=True, say=said.append)
    assert built.sidecar.flavor == "tensorrt" and built.sidecar.options["hardware_compatible"]
    (kept,) = (cache / "fada_deploy").glob(f"tensorrt-{trt.__version__}-*.timing")
    assert kept.stat().st_size > 0
    chosen = tmp_path / "times"
    for content in (None, b"rubbish"):
        if content is not None:
            chosen.write_bytes(content)
        build_engine(model, tmp_path / "m.engine", timing_cache=chosen, say=quiet)
        assert chosen.stat().st_size > len(b"rubbish")
    message = refusal(UsageError, model, tmp_path / "n.engine", compute_capabilities=SM86)
    assert "tensorrt builds for the GPU it runs on" in message
    # RTX lacks the library that such engines need, and the builder's own words are told.
    text = refusal(ModelError, model, tmp_path / "n.engine", version_compatible=True)
    assert "libnvinfer_lean" in text


def test_a_timing_cache_for_rtx_is_said_to_be_of_no_use(tmp_path: Path) -> None:
    said: list[str] = []
    model = toy.color_model(tmp_path / "in" / "m.onnx")
    build_engine(model, tmp_path / "m.engine", timing_cache=tmp_path / "times", say=said.append)
    assert (
        any("no timing cache to keep" in line for line in said)
        and not (tmp_path / "times").exists()
    )


def test_flavors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.color_model(tmp_path / "in" / "m.onnx")

    def refuse(log: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    # `tensorrt` as it is on a machine without a GPU: it loads, and its builder cannot be made.
    monkeypatch.setitem(
        sys.modules, "tensorrt", SimpleNamespace(ILogger=trt.ILogger, Builder=refuse)
    )
    assert build_engine(model, tmp_path / "m.engine", say=quiet).sidecar.flavor == "tensorrt_rtx"
    text = refusal(DeviceError, model, tmp_path / "n.engine", flavor="tensorrt")
    assert "tensorrt is installed but cannot build here" in text
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "cannot build here" in refusal(DeviceError, model, tmp_path / "n.engine")
    assert "[tensorrt-rtx]" in refusal(
        MissingExtraError, model, tmp_path / "n.engine", flavor="tensorrt_rtx"
    )
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = refusal(MissingExtraError, model, tmp_path / "n.engine")
    assert "[tensorrt]" in text and "[tensorrt-rtx]" in text


def test_the_labels_head_of_a_toy_is_uint8(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "m.onnx", head="labels", batch=3)
    built = build_engine(model, tmp_path / "m.engine", say=quiet)
    assert isinstance(built.sidecar.metadata, ModelMetadata)
    assert {(t.kind, t.dtype, t.shape[0]) for t in built.sidecar.io} == {
        ("in", "uint8", 3),
        ("out", "uint8", 3),
    }
