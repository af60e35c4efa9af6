"""Both engines on real ONNX files: the known labels, the contract held, every bad file one line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
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
    UsageError,
)
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import usable_cores
from fada_deploy.runtime import backend_selection, backends
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS
from fada_deploy.runtime.backends.onnx_file import read_metadata

every_backend = pytest.mark.parametrize("backend", ONNX_BACKENDS)


def inner(labels: np.ndarray) -> np.ndarray:
    """The columns of `toy.scene` further from its band edges than bilinear weights reach."""
    columns = np.arange(labels.shape[1])
    quarter = labels.shape[1] / 4
    from_edge = np.abs(columns - np.round(columns / quarter) * quarter)
    return labels[
        :, (from_edge > labels.shape[1] / 16) | (columns < quarter / 2) | (columns > 3.5 * quarter)
    ]


def one_line(error: pytest.ExceptionInfo[FadaError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@every_backend
@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize("batch", [None, 3])
def test_known_labels(tmp_path: Path, backend: str, head: str, batch: int | None) -> None:
    model = toy.color_model(tmp_path / "m.onnx", head=head, batch=batch)
    frames, truth = zip(*(toy.scene(i) for i in (0, 5)), strict=True)
    opened = open_backend(model, backend=backend)
    assert (opened.name, opened.device, opened.metadata.head) == (backend, "cpu", head)
    prediction = opened.submit(np.stack(frames))
    assert len(prediction) == 2
    for i in (0, 1, -1):
        labels = prediction[i].labels((64, 128))
        assert labels.shape == (1, 64, 128) and labels.dtype == np.uint8
        np.testing.assert_array_equal(inner(labels[0]), inner(truth[i]))
    big = prediction.labels((100, 260))
    assert big.shape == (2, 100, 260)
    opened.close()


@every_backend
@pytest.mark.parametrize("parallel", [1, 2])
def test_what_is_closed_says_so_and_holds_nobody(
    tmp_path: Path, backend: str, parallel: int
) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend, parallel=parallel)
    frames = toy.scene(0)[0][None]
    opened.submit(frames)
    opened.close()
    for _ in range(3):
        with pytest.raises(ModelError) as error:
            opened.submit(frames)
        assert "is closed already; use it inside its `with` block" in one_line(error)


@every_backend
def test_closing_while_others_ask(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend)
    frames = toy.scene(0)[0][None]
    answered, refused = threading.Event(), []

    def ask() -> None:
        try:
            while True:
                opened.submit(frames)
                answered.set()
        except ModelError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert answered.wait(60)
    opened.close()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 3 and all("is closed already" in line for line in refused)


@every_backend
def test_signals_arrive_when_another_thread_let_the_engine_go(tmp_path: Path, backend: str) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    code = f"""
import gc, os, signal, threading
from pathlib import Path
import numpy as np
from fada_deploy.runtime.backend_selection import open_backend
opened = [open_backend(Path({str(model)!r}), backend={backend!r})]
opened[0].submit(np.zeros((1, 64, 128, 3), np.uint8))
def let_go():
    opened.pop().close()
    gc.collect()
thread = threading.Thread(target=let_go)
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("arrived", flush=True))
os.kill(os.getpid(), signal.SIGALRM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "arrived\n", done


def test_a_precision_goes_to_an_engine_that_has_it(tmp_path: Path) -> None:
    metadata = ModelMetadata(toy.SPACE, (64, 128), "logits", align_corners=False, precision="bf16")
    model = toy.color_model(tmp_path / "m.onnx", metadata=metadata.to_json())
    assert open_backend(model).name == "openvino"


@every_backend
def test_logits_are_the_networks(tmp_path: Path, backend: str) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    z = open_backend(model, backend=backend).submit(frames).logits()
    pooled = frames.reshape(2, 8, 8, 16, 8, 3).mean((2, 4))
    colors = np.float64([c.color for c in toy.SPACE.classes])
    expected = 2 * np.einsum("bhwc,kc->bkhw", pooled, colors) - (colors**2).sum(1)[:, None, None]
    # Float32 throughout: bf16 would be out by hundreds.
    np.testing.assert_allclose(z, expected, atol=0.5)
    confidence = open_backend(model, backend=backend).submit(frames).confidence((64, 128))
    assert confidence.shape == (2, 64, 128) and confidence.max() <= 1


@every_backend
def test_a_labels_head_has_no_logits(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", head="labels"), backend=backend)
    prediction = opened.submit(np.zeros((1, 64, 128, 3), np.uint8))
    for ask in (prediction.logits, lambda: prediction.confidence((4, 4))):
        with pytest.raises(ModelError, match="head `labels`"):
            ask()


@every_backend
def test_frames_that_break_the_contract(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", batch=2), backend=backend)
    for frames in (
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 128, 3), np.float32),
        np.zeros((0, 64, 128, 3), np.uint8),
        np.zeros((3, 64, 128, 3), np.uint8),
    ):
        with pytest.raises(UsageError, match="the model takes"):
            opened.submit(frames)


@every_backend
@pytest.mark.parametrize(
    "content", ["empty", "text", "cut", "no graph", "long varint", "past the end"]
)
def test_no_onnx_file(tmp_path: Path, backend: str, content: str) -> None:
    whole = toy.color_model(tmp_path / "m.onnx").read_bytes()
    data = {
        "empty": b"",
        "text": b"this is no model at all, whatever its name may say\n",
        "cut": whole[: len(whole) // 2],
        "no graph": b"\x08\x08",
        "long varint": b"\xff" * 20,
        "past the end": whole[:-3],
    }
    (tmp_path / "bad.onnx").write_bytes(data[content])
    with pytest.raises(ModelError, match=r"bad\.onnx: is no ONNX file, or one cut short") as error:
        open_backend(tmp_path / "bad.onnx", backend=backend)
    one_line(error)


@every_backend
def test_models_that_are_none_of_ours(tmp_path: Path, backend: str) -> None:
    with pytest.raises(ModelError, match=r"no such model file"):
        open_backend(tmp_path / "none.onnx", backend=backend)
    with pytest.raises(ModelError, match="has no `fada` metadata"):
        open_backend(toy.color_model(tmp_path / "bare.onnx", metadata=None), backend=backend)
    other = toy.color_model(tmp_path / "m.onnx")
    model = onnx.load(other)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(ModelError, match="not one input `frames` of uint8") as error:
        open_backend(tmp_path / "float.onnx", backend=backend)
    one_line(error)
    model = onnx.load(other)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "operator.onnx")
    with pytest.raises(ModelError, match=f"{backend} cannot open it") as error:
        open_backend(tmp_path / "operator.onnx", backend=backend)
    one_line(error)


@every_backend
def test_an_output_that_is_not_what_the_metadata_says(tmp_path: Path, backend: str) -> None:
    frames = np.zeros((1, 64, 128, 3), np.uint8)
    lie = ModelMetadata(toy.CITYSCAPES_13, (64, 128), "logits", align_corners=False).to_json()
    from fada_deploy.common.label_space import CITYSCAPES_16

    path = toy.color_model(tmp_path / "m.onnx", space=CITYSCAPES_16, metadata=lie)
    with pytest.raises(
        ModelError, match=r"gives \(1, 16, 8, 16\) where its metadata says head `logits`, \(B, 13"
    ):
        open_backend(path, backend=backend).submit(frames)


@every_backend
def test_a_network_that_fails_in_the_run(tmp_path: Path, backend: str) -> None:
    # Metadata that promises a size the graph does not take.
    lie = ModelMetadata(toy.SPACE, (32, 32), "logits", align_corners=False).to_json()
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", metadata=lie), backend=backend)
    with pytest.raises(ModelError, match=f"{backend} failed") as error:
        opened.submit(np.zeros((1, 32, 32, 3), np.uint8))
    one_line(error)


def test_labels_of_the_wrong_size_are_refused(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx", head="labels", size_hw=(64, 128))
    model = onnx.load(path)
    next(i for i in model.graph.initializer if i.name == "scales").CopyFrom(
        onnx.numpy_helper.from_array(np.float32([1, 1, 4, 4]), "scales")
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"head `labels`, \(B, 64, 128\)"):
        open_backend(path, backend="onnxruntime").submit(np.zeros((1, 64, 128, 3), np.uint8))


def test_metadata_is_read_as_the_onnx_package_reads_it(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    entries = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert read_metadata(path).to_json() == entries["fada"]
    # Fixed-width fields, which ModelProto lacks today, are stepped over (here: fields 98 and 99).
    path.write_bytes(b"\x95\x06" + bytes(4) + b"\x99\x06" + bytes(8) + path.read_bytes())
    assert read_metadata(path).to_json() == entries["fada"]
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(tmp_path)


@every_backend
def test_devices(tmp_path: Path, backend: str) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    assert open_backend(model, backend=backend, device="cpu").device == "cpu"
    for device in ("gpu", "cuda:x", "cpu:1"):
        with pytest.raises(UsageError, match="there are auto, cpu and cuda"):
            open_backend(model, backend=backend, device=device)


@every_backend
def test_cuda_that_is_not_there_is_an_error(tmp_path: Path, backend: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    with pytest.raises(
        DeviceError, match=r"cuda:1 is not to be had.*pip install 'fada_deploy\[gpu\]'"
    ) as error:
        open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend, device="cuda:1")
    one_line(error)


@pytest.mark.parametrize("starts", [False, True])
def test_a_cuda_provider_that_silently_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            asked.append((providers, options.intra_op_num_threads))
            self.cuda = starts and len(providers) == 2

        def get_providers(self) -> list[str]:
            return [*(["CUDAExecutionProvider"] if self.cuda else []), "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="frames", type="tensor(uint8)")]

    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None),
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    open_ort = BACKENDS["onnxruntime"]
    model = toy.color_model(tmp_path / "m.onnx")
    assert open_ort(model, device="auto").device == ("cuda:0" if starts else "cpu")
    assert asked[-1] == (
        [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"],
        usable_cores(),
    )
    assert open_ort(model, device="cpu").device == "cpu"
    assert asked[-1][0] == ["CPUExecutionProvider"]
    if starts:
        assert open_ort(model, device="cuda:1").device == "cuda:1"
    else:
        with pytest.raises(DeviceError, match="did not start"):
            open_ort(model, device="cuda:1")


def test_backends_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="there are auto, onnxruntime, openvino"):
        open_backend(model, backend="tensorflow")
    assert open_backend(model).name == "onnxruntime"
    find = importlib.util.find_spec
    monkeypatch.setattr(
        backend_selection, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert open_backend(model).name == "openvino"
    monkeypatch.setattr(backend_selection, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"type: pip install 'fada_deploy\[cpu\]'"):
        open_backend(model)


@every_backend
def test_a_missing_package_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingExtraError, match=f"{backend} is not installed; run: pip install"):
        open_backend(model, backend=backend)


@every_backend
def test_an_engine_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    (tmp_path / f"{backend}.py").write_text(
        "raise ImportError('libsomething.so.1: cannot open shared object')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, backend, raising=False)
    with pytest.raises(
        DeviceError, match=rf"{backend} is installed but does not load \(libsomething"
    ):
        open_backend(model, backend=backend)


def with_external_weight(path: Path, location: str, where: str) -> Path:
    """Rewrite a model so that a weight lies in another file, named in the graph, a node, or a subgraph."""
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name == "weight")
    outside = onnx.TensorProto(name="weight", data_type=1, dims=weight.dims, data_location=1)
    outside.external_data.add(key="location", value=location)
    if where == "initializer":
        weight.CopyFrom(outside)
    else:
        attribute = onnx.helper.make_attribute("value", outside)
        node = onnx.helper.make_node("Constant", [], ["unused"])
        node.attribute.append(attribute)
        if where == "subgraph":
            inner = onnx.helper.make_graph([node], "inner", [], [])
            node = onnx.helper.make_node(
                "If", ["no"], ["unused"], then_branch=inner, else_branch=inner
            )
        model.graph.node.insert(0, node)
    path.write_bytes(model.SerializeToString())
    return path


@every_backend
@pytest.mark.parametrize("where", ["initializer", "node", "subgraph"])
@pytest.mark.parametrize("location", ["../../x", "a/../../x", "{folder}/../x"])
def test_weights_outside_the_models_folder_are_not_read(
    tmp_path: Path, backend: str, where: str, location: str
) -> None:
    path = with_external_weight(
        toy.color_model(tmp_path / "in" / "m.onnx"), location.format(folder=tmp_path / "in"), where
    )
    with pytest.raises(ModelError, match=r"has weights in '.*x', outside its own folder") as error:
        open_backend(path, backend=backend)
    one_line(error)


def test_a_link_to_weights_elsewhere_is_not_followed(tmp_path: Path) -> None:
    path = with_external_weight(
        toy.color_model(tmp_path / "in" / "m.onnx"), "weights.bin", "initializer"
    )
    (tmp_path / "secret").write_bytes(bytes(4 * 13 * 3))
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="outside its own folder"):
        open_backend(path)


@every_backend
def test_weights_beside_the_model_are_read(tmp_path: Path, backend: str) -> None:
    path = toy.color_model(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name == "weight")
    (tmp_path / "in" / "weights.bin").write_bytes(weight.raw_data)
    with_external_weight(path, "weights.bin", "initializer")
    frame, truth = toy.scene(3)
    labels = open_backend(path, backend=backend).submit(frame[None]).labels((64, 128))
    np.testing.assert_array_equal(inner(labels[0]), inner(truth))


def test_a_graph_of_graphs_without_end_is_no_onnx_file(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    # graph { node { attribute { g { node { … } } } } }: written from the inside out.
    deep = b""
    for _ in range(3000):
        for tag in (0x32, 0x2A, 0x0A):
            deep = bytes([tag]) + _varint(len(deep)) + deep
    (tmp_path / "deep.onnx").write_bytes(path.read_bytes() + b"\x3a" + _varint(len(deep)) + deep)
    with pytest.raises(ModelError, match="is no ONNX file"):
        open_backend(tmp_path / "deep.onnx")


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_runs_with_bound_memory_give_the_same(tmp_path: Path) -> None:
    """What CUDA runs go through, on the CPU: the binding's calls are real, the device is not."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from fada_deploy.runtime.backends.onnxruntime import _BoundRuns

    path = toy.color_model(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    bound = _BoundRuns(onnxruntime, session, "cpu", 0)
    rng = np.random.default_rng(0)
    for count in (2, 1, 2, 3, 4, 5, 2):
        frames = rng.integers(0, 256, (count, 64, 128, 3), dtype=np.uint8)
        before = frames.copy()
        expected = session.run(["logits"], {"frames": frames})[0]
        np.testing.assert_array_equal(bound.run(frames, "logits"), expected)
        np.testing.assert_array_equal(frames, before)


@every_backend
def test_pictures_with_colors_over_them(tmp_path: Path, backend: str) -> None:
    from fada_deploy.runtime.overlay.blend import overlay

    frames, _ = zip(*(toy.scene(i) for i in (1, 4)), strict=True)
    prediction = open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend).submit(
        np.stack(frames)
    )
    large = np.stack([np.repeat(f, 2, axis=0) for f in frames])
    labels, pictures = prediction.overlay(large, toy.SPACE.palette, 0.4)
    np.testing.assert_array_equal(labels, prediction.labels((128, 128)))
    for picture, frame, plane in zip(pictures, large, labels, strict=True):
        np.testing.assert_array_equal(picture, overlay(frame, plane, toy.SPACE.palette, 0.4))


def test_a_file_and_a_backend_that_are_not_for_each_other(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(
        UsageError, match=r"model\.engine: is not for backend openvino; take tensorrt, or leave"
    ):
        open_backend(engine, backend="openvino")
    model = toy.color_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="not for backend tensorrt; take onnxruntime or openvino"):
        open_backend(model, backend="tensorrt")
    for name in ("weights.pt", "weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04")
        with pytest.raises(
            ModelError, match=r"is no exported model; `fada export` makes one"
        ) as error:
            open_backend(tmp_path / name)
        one_line(error)


def test_with_nothing_installed_the_pip_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = {"onnxruntime", "openvino"}
    monkeypatch.setattr(
        backends,
        "find_spec",
        lambda name: None if name in hidden else find("json") if name == "tensorrt" else find(name),
    )
    backends.require_any_backend()
    hidden |= {"tensorrt", "tensorrt_rtx"}
    with pytest.raises(MissingExtraError, match=r"no inference engine is installed.*\[cpu\]"):
        backends.require_any_backend()


def test_onnxruntime_writes_nothing_about_the_device(tmp_path: Path) -> None:
    """Its telemetry would leave an id and a database in the user's cache."""
    model, cache = toy.color_model(tmp_path / "toy.onnx"), tmp_path / "cache"
    code = f"from pathlib import Path; from fada_deploy.runtime.backend_selection import *; open_backend(Path({str(model)!r}))"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment["XDG_CACHE_HOME"] = str(cache)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not [p for p in cache.rglob("*") if "Microsoft" in str(p)]


_FIRST_AT_ONCE = """
import sys, threading
from pathlib import Path
import numpy as np
from fada_deploy.runtime.backend_selection import open_backend
sys.setswitchinterval(1e-6)
backend = open_backend(Path(sys.argv[1]), backend=sys.argv[2], parallel=2)
frames, start = np.zeros((1, 64, 128, 3), np.uint8), threading.Barrier(2)
def run():
    start.wait()
    backend.submit(frames)
threads = [threading.Thread(target=run) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@every_backend
def test_the_first_two_requests_of_a_process_at_once(backend: str, tmp_path: Path) -> None:
    """OpenVINO's binding hung here, once in six processes."""
    model = toy.color_model(tmp_path / "m.onnx")
    for _ in range(6):
        subprocess.run(
            [sys.executable, "-c", _FIRST_AT_ONCE, str(model), backend], check=True, timeout=60
        )
