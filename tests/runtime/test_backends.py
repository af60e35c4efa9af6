"""Both ONNX backends on real files: known labels, input checks, one-line errors for bad files."""

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
from fada_deploy.runtime import backend_selection
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS
from fada_deploy.runtime.backends.base import cuda_index
from fada_deploy.runtime.backends.onnx_file import read_metadata

every_backend = pytest.mark.parametrize("backend", ONNX_BACKENDS)


def inner(labels: np.ndarray) -> np.ndarray:
    """Return the columns of `toy.scene` that bilinear weights of a band edge do not reach."""
    columns = np.arange(labels.shape[1])
    quarter = labels.shape[1] / 4
    from_edge = np.abs(columns - np.round(columns / quarter) * quarter)
    return labels[
        :, (from_edge > labels.shape[1] / 16) | (columns < quarter / 2) | (columns > 3.5 * quarter)
    ]


def message_of(error: pytest.ExceptionInfo[FadaError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@every_backend
@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize("batch", [None, 3])
def test_predicts_known_labels(tmp_path: Path, backend: str, head: str, batch: int | None) -> None:
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
    assert prediction.labels((100, 260)).shape == (2, 100, 260)
    opened.close()


@every_backend
@pytest.mark.parametrize("parallel", [1, 2])
def test_submit_after_close_raises_at_once(tmp_path: Path, backend: str, parallel: int) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend, parallel=parallel)
    frames = toy.scene(0)[0][None]
    opened.submit(frames)
    opened.close()
    for _ in range(3):
        with pytest.raises(ModelError) as error:
            opened.submit(frames)
        assert "m.onnx" in message_of(error) and "closed" in message_of(error)


@every_backend
def test_close_while_other_threads_submit(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend)
    frames = toy.scene(0)[0][None]
    submitted, errors = threading.Event(), []

    def submit() -> None:
        try:
            while True:
                opened.submit(frames)
                submitted.set()
        except ModelError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert submitted.wait(60)
    opened.close()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 3 and all("is closed" in line for line in errors)


@every_backend
def test_signals_work_after_another_thread_closed_the_model(tmp_path: Path, backend: str) -> None:
    """OpenVINO's signal stack belongs to a thread; the process crashed if that was the main one."""
    model = toy.color_model(tmp_path / "m.onnx")
    code = f"""
import gc, os, signal, threading
from pathlib import Path
import numpy as np
from fada_deploy.runtime.backend_selection import open_backend
opened = [open_backend(Path({str(model)!r}), backend={backend!r})]
opened[0].submit(np.zeros((1, 64, 128, 3), np.uint8))
def close():
    opened.pop().close()
    gc.collect()
thread = threading.Thread(target=close)
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("arrived", flush=True))
os.kill(os.getpid(), signal.SIGALRM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "arrived\n", done


def test_auto_picks_a_backend_with_kernels_for_the_precision(tmp_path: Path) -> None:
    metadata = ModelMetadata(toy.SPACE, (64, 128), "logits", align_corners=False, precision="bf16")
    model = toy.color_model(tmp_path / "m.onnx", metadata=metadata.to_json())
    assert open_backend(model).name == "openvino"


@every_backend
def test_logits_equal_the_formula(tmp_path: Path, backend: str) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    z = open_backend(model, backend=backend).submit(frames).logits()
    pooled = frames.reshape(2, 8, 8, 16, 8, 3).mean((2, 4))
    colors = np.float64([c.color for c in toy.SPACE.classes])
    expected = 2 * np.einsum("bhwc,kc->bkhw", pooled, colors) - (colors**2).sum(1)[:, None, None]
    # With bf16 the error would be in the hundreds.
    np.testing.assert_allclose(z, expected, atol=0.5)
    confidence = open_backend(model, backend=backend).submit(frames).confidence((64, 128))
    assert confidence.shape == (2, 64, 128) and confidence.max() <= 1


@every_backend
def test_labels_head_has_no_logits_or_confidence(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", head="labels"), backend=backend)
    prediction = opened.submit(np.zeros((1, 64, 128, 3), np.uint8))
    for method in (prediction.logits, lambda: prediction.confidence((4, 4))):
        with pytest.raises(ModelError, match="head `labels`"):
            method()


@every_backend
def test_rejects_frames_of_wrong_shape_dtype_or_number(tmp_path: Path, backend: str) -> None:
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", batch=2), backend=backend)
    for frames, expected in (
        (np.zeros((1, 64, 64, 3), np.uint8), r"\(B, 64, 128, 3\).*\(1, 64, 64, 3\)"),
        (np.zeros((1, 64, 128, 3), np.float32), "uint8.*float32"),
        (np.zeros((0, 64, 128, 3), np.uint8), "1 to 2 frames.*got 0"),
        (np.zeros((3, 64, 128, 3), np.uint8), "1 to 2 frames.*got 3"),
    ):
        with pytest.raises(UsageError, match=expected):
            opened.submit(frames)


@every_backend
@pytest.mark.parametrize(
    "content", ["empty", "text", "cut", "no graph", "long varint", "past the end"]
)
def test_rejects_files_that_are_not_onnx(tmp_path: Path, backend: str, content: str) -> None:
    valid = toy.color_model(tmp_path / "m.onnx").read_bytes()
    data = {
        "empty": b"",
        "text": b"this is not a model\n",
        "cut": valid[: len(valid) // 2],
        "no graph": b"\x08\x08",
        "long varint": b"\xff" * 20,
        "past the end": valid[:-3],
    }
    (tmp_path / "bad.onnx").write_bytes(data[content])
    with pytest.raises(ModelError, match=r"bad\.onnx.*not an ONNX file.*truncated") as error:
        open_backend(tmp_path / "bad.onnx", backend=backend)
    message_of(error)


@every_backend
def test_rejects_models_that_were_not_exported_by_fada(tmp_path: Path, backend: str) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        open_backend(tmp_path / "none.onnx", backend=backend)
    with pytest.raises(ModelError, match="has no `fada` metadata"):
        open_backend(toy.color_model(tmp_path / "plain.onnx", metadata=None), backend=backend)
    other = toy.color_model(tmp_path / "m.onnx")
    model = onnx.load(other)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(ModelError, match="expected one input `frames` of uint8") as error:
        open_backend(tmp_path / "float.onnx", backend=backend)
    message_of(error)
    model = onnx.load(other)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "operator.onnx")
    with pytest.raises(ModelError, match=f"{backend} cannot open it") as error:
        open_backend(tmp_path / "operator.onnx", backend=backend)
    message_of(error)


@every_backend
def test_rejects_an_output_that_differs_from_the_metadata(tmp_path: Path, backend: str) -> None:
    frames = np.zeros((1, 64, 128, 3), np.uint8)
    wrong = ModelMetadata(toy.CITYSCAPES_13, (64, 128), "logits", align_corners=False).to_json()
    from fada_deploy.common.label_space import CITYSCAPES_16

    path = toy.color_model(tmp_path / "m.onnx", space=CITYSCAPES_16, metadata=wrong)
    with pytest.raises(ModelError, match=r"\(1, 16, 8, 16\).*head `logits`.*\(B, 13, h, w\)"):
        open_backend(path, backend=backend).submit(frames)


@every_backend
def test_failure_during_a_run_is_one_line(tmp_path: Path, backend: str) -> None:
    # The graph does not accept the input size of the metadata.
    wrong = ModelMetadata(toy.SPACE, (32, 32), "logits", align_corners=False).to_json()
    opened = open_backend(toy.color_model(tmp_path / "m.onnx", metadata=wrong), backend=backend)
    with pytest.raises(ModelError, match=f"{backend} failed") as error:
        opened.submit(np.zeros((1, 32, 32, 3), np.uint8))
    message_of(error)


def test_rejects_label_outputs_of_the_wrong_size(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx", head="labels", size_hw=(64, 128))
    model = onnx.load(path)
    next(i for i in model.graph.initializer if i.name == "scales").CopyFrom(
        onnx.numpy_helper.from_array(np.float32([1, 1, 4, 4]), "scales")
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"head `labels`.*\(B, 64, 128\)"):
        open_backend(path, backend="onnxruntime").submit(np.zeros((1, 64, 128, 3), np.uint8))


def test_reads_the_same_metadata_as_the_onnx_package(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    entries = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert read_metadata(path).to_json() == entries["fada"]
    # Fixed-width fields, which ModelProto does not have today, are skipped (here fields 82 and 83).
    path.write_bytes(b"\x95\x06" + bytes(4) + b"\x99\x06" + bytes(8) + path.read_bytes())
    assert read_metadata(path).to_json() == entries["fada"]
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("device", [0, "0", "cuda", "cuda:0"])
def test_device_numbers_and_names_mean_the_same(device: str | int) -> None:
    assert cuda_index(device) == 0


def test_device_index() -> None:
    assert [cuda_index(device) for device in (2, "2", "cuda:2", "cuda:12")] == [2, 2, 2, 12]
    assert cuda_index("auto") is None and cuda_index("cpu") is None


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:x", "cuda:", "cpu:1", "", "-1", "²", "cuda:cuda", "cuda0", -1, True]
)
def test_rejects_unknown_devices(device: str | int) -> None:
    with pytest.raises(UsageError) as error:
        cuda_index(device)
    assert repr(device) in message_of(error) and "cuda:N" in message_of(error)


@every_backend
def test_cpu_device(tmp_path: Path, backend: str) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    assert open_backend(model, backend=backend, device="cpu").device == "cpu"
    with pytest.raises(UsageError, match="gpu"):
        open_backend(model, backend=backend, device="gpu")


@every_backend
@pytest.mark.parametrize("device", ["cuda:1", 1])
def test_unavailable_cuda_is_an_error(
    tmp_path: Path, backend: str, device: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backends.base.find_gpu", lambda index: None)
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    with pytest.raises(
        DeviceError,
        match=rf"cuda:1 is not available: no NVIDIA GPU was found.*{backend}.*"
        "pip install onnxruntime-gpu",
    ) as error:
        open_backend(toy.color_model(tmp_path / "m.onnx"), backend=backend, device=device)
    message_of(error)


@pytest.mark.parametrize("starts", [False, True])
def test_silent_fallback_of_the_cuda_provider_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    sessions: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            sessions.append((providers, options.intra_op_num_threads))
            self.cuda = starts and len(providers) == 2

        def get_providers(self) -> list[str]:
            return [*(["CUDAExecutionProvider"] if self.cuda else []), "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="frames", type="tensor(uint8)")]

        def get_outputs(self) -> list[Any]:
            return []

    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None),
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    open_ort = BACKENDS["onnxruntime"]
    model = toy.color_model(tmp_path / "m.onnx")
    assert open_ort(model, device="auto").device == ("cuda:0" if starts else "cpu")
    assert sessions[-1] == (
        [("CUDAExecutionProvider", {"device_id": 0, "use_tf32": 0}), "CPUExecutionProvider"],
        usable_cores(),
    )
    assert open_ort(model, device="cpu").device == "cpu"
    assert sessions[-1][0] == ["CPUExecutionProvider"]
    if starts:
        assert open_ort(model, device="cuda:1").device == "cuda:1"
        assert open_ort(model, device=1).device == "cuda:1"
        assert sessions[-1][0][0] == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    else:
        with pytest.raises(DeviceError, match=r"cuda:1.*CUDA provider"):
            open_ort(model, device="cuda:1")


def test_backend_names_and_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="auto, onnxruntime, openvino"):
        open_backend(model, backend="tensorflow")
    assert open_backend(model).name == "onnxruntime"
    find = importlib.util.find_spec
    monkeypatch.setattr(
        backend_selection, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert open_backend(model).name == "openvino"
    monkeypatch.setattr(backend_selection, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnxruntime"):
        open_backend(model)


@every_backend
def test_missing_package_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    model = toy.color_model(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingExtraError, match=f"{backend} is not installed; run: pip install"):
        open_backend(model, backend=backend)


@every_backend
def test_package_that_does_not_load(
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
    """Move a weight to another file, referenced by the graph, a node or a subgraph."""
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
def test_rejects_weights_outside_the_models_folder(
    tmp_path: Path, backend: str, where: str, location: str
) -> None:
    path = with_external_weight(
        toy.color_model(tmp_path / "in" / "m.onnx"), location.format(folder=tmp_path / "in"), where
    )
    with pytest.raises(ModelError, match=r"has weights in '.*x', outside its own folder") as error:
        open_backend(path, backend=backend)
    message_of(error)


def test_rejects_a_symbolic_link_to_weights_elsewhere(tmp_path: Path) -> None:
    path = with_external_weight(
        toy.color_model(tmp_path / "in" / "m.onnx"), "weights.bin", "initializer"
    )
    (tmp_path / "secret").write_bytes(bytes(4 * 13 * 3))
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="outside its own folder"):
        open_backend(path)


@every_backend
def test_reads_weights_in_the_models_folder(tmp_path: Path, backend: str) -> None:
    path = toy.color_model(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name == "weight")
    (tmp_path / "in" / "weights.bin").write_bytes(weight.raw_data)
    with_external_weight(path, "weights.bin", "initializer")
    frame, truth = toy.scene(3)
    labels = open_backend(path, backend=backend).submit(frame[None]).labels((64, 128))
    np.testing.assert_array_equal(inner(labels[0]), inner(truth))


def test_rejects_deeply_nested_graphs(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    # graph { node { attribute { g { node { … } } } } }, built from the inside out.
    deep = b""
    for _ in range(3000):
        for tag in (0x32, 0x2A, 0x0A):
            deep = bytes([tag]) + _varint(len(deep)) + deep
    (tmp_path / "deep.onnx").write_bytes(path.read_bytes() + b"\x3a" + _varint(len(deep)) + deep)
    with pytest.raises(ModelError, match="not an ONNX file"):
        open_backend(tmp_path / "deep.onnx")


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_io_binding_gives_the_same_output(tmp_path: Path) -> None:
    """Run the code path of CUDA on the CPU: the binding is real, only the device differs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from fada_deploy.runtime.backends.onnxruntime import _BoundSession

    path = toy.color_model(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    bound = _BoundSession(onnxruntime, session, "logits", "cpu", 0)
    rng = np.random.default_rng(0)
    for count in (2, 1, 2, 3, 4, 5, 2):
        frames = rng.integers(0, 256, (count, 64, 128, 3), dtype=np.uint8)
        before = frames.copy()
        expected = session.run(["logits"], {"frames": frames})[0]
        np.testing.assert_array_equal(bound.run(frames), expected)
        np.testing.assert_array_equal(frames, before)


def test_rejects_a_backend_that_cannot_run_the_file(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(UsageError, match=r"model\.engine.*openvino.*tensorrt"):
        open_backend(engine, backend="openvino")
    model = toy.color_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx.*tensorrt.*onnxruntime or openvino"):
        open_backend(model, backend="tensorrt")
    for name in ("weights.pt", "weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04")
        with pytest.raises(ModelError, match=rf"{name}.*fada export") as error:
            open_backend(tmp_path / name)
        message_of(error)


def test_without_any_backend_the_error_names_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    hidden = {"onnxruntime", "openvino"}
    monkeypatch.setattr(
        backend_selection,
        "find_spec",
        lambda name: None if name in hidden else find("json") if name == "tensorrt" else find(name),
    )
    backend_selection.require_any_backend()
    hidden |= {"tensorrt", "tensorrt_rtx"}
    with pytest.raises(UsageError, match="pip install onnxruntime"):
        backend_selection.require_any_backend()


def test_openvino_telemetry_is_off(tmp_path: Path) -> None:
    """Its package sends usage data when it is imported."""
    model = toy.color_model(tmp_path / "m.onnx")
    code = (
        "import sys, pathlib\n"
        "from fada_deploy import Segmenter\n"
        f"Segmenter({str(model)!r}, backend='openvino').close()\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
        "assert not list(pathlib.Path.home().iterdir())\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    # In place of the package, one that reports its import.
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(home / 'imported')!r}, 'w')\n")
    environment = {
        **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_onnxruntime_telemetry_is_off(tmp_path: Path) -> None:
    """The telemetry would leave an id and a database in the user's cache."""
    model, cache = toy.color_model(tmp_path / "toy.onnx"), tmp_path / "cache"
    code = (
        "from pathlib import Path\n"
        "from fada_deploy.runtime.backend_selection import open_backend\n"
        f"open_backend(Path({str(model)!r}))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment["XDG_CACHE_HOME"] = str(cache)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not [p for p in cache.rglob("*") if "Microsoft" in str(p)]


_TWO_FIRST_REQUESTS = """
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
def test_first_two_requests_at_the_same_time(backend: str, tmp_path: Path) -> None:
    """OpenVINO's Python binding used to deadlock here in one of six processes."""
    model = toy.color_model(tmp_path / "m.onnx")
    for _ in range(6):
        subprocess.run(
            [sys.executable, "-c", _TWO_FIRST_REQUESTS, str(model), backend], check=True, timeout=60
        )
