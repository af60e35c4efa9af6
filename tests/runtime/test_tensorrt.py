"""The TensorRT backend's own logic, on a machine without a GPU.

`tensorrt_rtx` and `cupy` are stand-ins made here: the engine answers by ONNX Runtime, device memory is NumPy's,
and the kernels are the real source compiled for the CPU. So the order of the checks, the buffers, padding, graphs
and the proof are shown; that TensorRT and CuPy behave as the stand-ins do is not.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import toy
from host_kernels import compile_kernels

from fada_deploy.common.errors import DeviceError, GateError, MissingExtraError, ModelError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import gpu, open_backend
from fada_deploy.runtime.backends.engine_file import EngineSidecar, EngineTensor, read_engine, write_sidecar
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend
from fada_deploy.runtime.overlay import overlay
from fada_deploy.runtime.proof import Proof
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.upsample import labels_from_logits

VERSION = "1.7.1.116"
SIZE = (64, 128)


class Array:
    """Device memory: an array that plain NumPy functions do not take."""

    living: ClassVar[dict[int, np.ndarray]] = {}

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values)
        self.living[self.values.ctypes.data] = self.values

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    size = property(lambda self: self.values.size)
    ndim = property(lambda self: self.values.ndim)
    data = property(lambda self: SimpleNamespace(ptr=self.values.ctypes.data))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.values[key])

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit copies from the device are an error in CuPy")

    def copy(self) -> Array:
        return Array(self.values.copy())

    def set(self, values: np.ndarray, stream: Any) -> None:
        assert values.flags.c_contiguous and values.shape == self.shape
        self.values[...] = values

    def get(self, *, stream: Any, out: np.ndarray, blocking: bool) -> np.ndarray:
        assert not blocking
        out[...] = self.values
        return out


class Stream:
    ptr = 77

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.captured: list[Any] | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def synchronize(self) -> None:
        assert self.captured is None, "a capture does not survive this"

    def record(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        assert self.captured is not None
        work, self.captured = self.captured, None
        return Graph(work)


class Graph:
    launches = 0

    def __init__(self, work: list[Any]) -> None:
        self.work = work

    def launch(self, stream: Any) -> None:
        Graph.launches += 1
        for part in self.work:
            part()


def make_cupy(library: ctypes.CDLL, streams: list[Stream]) -> Any:
    def kernel(name: str) -> Any:
        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            kinds = {np.int32: ctypes.c_int, np.int64: ctypes.c_longlong, np.float32: ctypes.c_float}
            getattr(library, name)(
                *(
                    ctypes.c_void_p(a.data.ptr) if isinstance(a, Array) else kinds[type(a)](a.item())
                    for a in arguments
                )
            )

        return run

    def stream(non_blocking: bool) -> Stream:
        streams.append(Stream(non_blocking))
        return streams[-1]

    class Device:
        def __init__(self, index: int) -> None:
            assert index in (0, 1)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: Any) -> None: ...

    return SimpleNamespace(
        cuda=SimpleNamespace(Device=Device, Stream=stream),
        zeros=lambda shape, dtype: Array(np.zeros(shape, dtype)),
        empty=lambda shape, dtype: Array(np.full(shape, 99, dtype)),
        empty_like=lambda a: Array(np.full_like(a.values, 99)),
        asarray=lambda a: Array(a.copy()),
        concatenate=lambda parts: Array(np.concatenate([p.values for p in parts])),
        RawModule=lambda code, options: SimpleNamespace(get_function=kernel),
    )


class Machine:
    """A computer with a card, and what is noted about what is asked of it."""

    def __init__(self, library: ctypes.CDLL, model: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.metadata = read_metadata(model)
        self.events: list[str] = []
        self.runs: list[int] = []
        self.streams: list[Stream] = []
        self.bias = 0.0
        self.capturable = True
        self.fails = False
        self.cupy = make_cupy(library, self.streams)
        self.trt = self._trt()
        batch = self.metadata.batch or -1
        head = {"logits": ("float", (13, 8, 16)), "labels": ("uint8", SIZE)}[self.metadata.head]
        self.io = (
            EngineTensor("frames", "in", "uint8", (batch, *SIZE, 3)),
            EngineTensor(self.metadata.head, "out", head[0], (batch, *head[1])),
        )

    def _trt(self) -> Any:
        machine = self

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        class Context:
            def __init__(self) -> None:
                self.addresses: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shape = shape
                return name == "frames" and shape[1:] == (*SIZE, 3)

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (self.shape[0], *machine.io[1].shape[1:])

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def is_stream_capturable(self, stream: int) -> bool:
                return machine.capturable

            def execute_async_v3(self, stream: int) -> bool:
                assert stream == Stream.ptr
                head = machine.metadata.head

                def work() -> None:
                    frames = Array.living[self.addresses["frames"]]
                    machine.runs.append(len(frames))
                    (answer,) = machine.session.run([head], {"frames": frames})
                    Array.living[self.addresses[head]][...] = answer
                    if machine.bias:
                        Array.living[self.addresses[head]][:, 3] += np.float32(machine.bias)

                if machine.fails:
                    machine.log.log(ILogger.ERROR, "IExecutionContext::enqueueV3: Error Code 1\n (illegal access)")
                    return False
                captured = machine.streams[-1].captured
                captured.append(work) if captured is not None else work()
                return True

        class Engine:
            num_io_tensors = 2

            def get_tensor_name(self, index: int) -> str:
                return machine.io[index].name

            def _tensor(self, name: str) -> EngineTensor:
                return next(t for t in machine.io if t.name == name)

            def get_tensor_mode(self, name: str) -> str:
                return self._tensor(name).kind

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self._tensor(name).shape

            def get_tensor_dtype(self, name: str) -> Any:
                return SimpleNamespace(name=self._tensor(name).dtype.upper())

            def create_runtime_config(self) -> Any:
                return SimpleNamespace()

            def create_execution_context(self, runtime_config: Any) -> Context:
                assert runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
                machine.events.append("context")
                return Context()

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, log: Any) -> None:
                machine.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                machine.events.append("deserialise")
                assert not self.engine_host_code_allowed
                if plan.startswith(b"bad"):
                    machine.log.log(ILogger.ERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed")
                    machine.log.log(ILogger.ERROR, "[checkMacros.cpp::catchCudaError] cudaError 35")
                    return None
                return Engine()

        return SimpleNamespace(
            __version__=VERSION,
            ILogger=ILogger,
            Runtime=Runtime,
            TensorIOMode=SimpleNamespace(INPUT="in"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        )

    def engine(self, path: Path, plan: bytes = b"plan", **changes: Any) -> Path:
        """Write an engine and its sidecar."""
        path.write_bytes(plan)
        sidecar = EngineSidecar(
            flavour="tensorrt_rtx",
            flavour_version=VERSION,
            engine_sha256=hashlib.sha256(plan).hexdigest(),
            engine_bytes=len(plan),
            onnx_name="model.onnx",
            onnx_sha256="0" * 64,
            metadata=self.metadata,
            io=self.io,
            precision="fp32",
            layers={"fp32": 1},
            compute_capabilities=("SM86",),
            profile=None if self.metadata.batch else (2, 2, 4),
        )
        write_sidecar(path, replace(sidecar, **changes))
        return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


def frames_of(*numbers: int) -> np.ndarray:
    return np.stack([toy.scene(n)[0] for n in numbers])


def machine_with(
    library: ctypes.CDLL,
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    batch: int | None = None,
    head: str = "logits",
) -> Machine:
    """Return a machine with a card, an engine's proof pack in its folder, and the libraries installed."""
    model = toy.color_model(folder / "model.onnx", batch=batch, head=head)
    machine = Machine(library, model)
    logits_model = toy.color_model(folder / "in" / "logits.onnx")
    session = onnxruntime.InferenceSession(str(logits_model), providers=["CPUExecutionProvider"])
    frames = frames_of(0, 3, 6)
    (logits,) = session.run(["logits"], {"frames": frames})
    labels = np.stack([labels_from_logits(z, SIZE, align_corners=False) for z in logits])
    if head == "labels":
        parts = [frames[i : i + 1].repeat(batch or 1, axis=0) for i in range(3)]
        labels = np.concatenate([machine.session.run(["labels"], {"frames": p})[0][:1] for p in parts])
    Proof(frames, logits, labels).save(folder / "model.proof.npz")
    hashes = {"proof": sha256(folder / "model.proof.npz")}
    machine.metadata = replace(machine.metadata, hashes=hashes)
    patch.setitem(sys.modules, "tensorrt_rtx", machine.trt)
    patch.setitem(sys.modules, "cupy", machine.cupy)
    empty = SimpleNamespace(empty_pinned=lambda shape, dtype: np.full(shape, 77, dtype))
    patch.setitem(sys.modules, "cupyx", empty)
    patch.setattr(
        "fada_deploy.runtime.backends.tensorrt.find_gpu",
        lambda index: gpu.Gpu("A card", "8.6") if index < 2 else None,
    )
    return machine


@pytest.fixture
def machine(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machine_with(library, tmp_path, monkeypatch)


def refusal(kind: type[Exception], path: Path, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        open_backend(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_are_the_networks(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    assert (backend.name, backend.device, backend.metadata) == ("tensorrt", "cuda:0", machine.metadata)
    frames = frames_of(1, 5, 9)
    (logits,) = machine.session.run(["logits"], {"frames": frames})
    prediction = backend.submit(frames)
    np.testing.assert_array_equal(prediction.logits(), logits)
    for size in (SIZE, (100, 260), (20, 30)):
        expected = np.stack([labels_from_logits(z, size, align_corners=False) for z in logits])
        np.testing.assert_array_equal(prediction.labels(size), expected)
    np.testing.assert_array_equal(
        prediction[-1].labels(SIZE)[0], labels_from_logits(logits[2], SIZE, align_corners=False)
    )
    with pytest.raises(IndexError):
        prediction[3]
    large = frames.repeat(2, axis=1)
    for alpha in (0.5, 0.3):
        labels, pictures = prediction.overlay(large, toy.SPACE.palette, alpha)
        for frame, plane, picture in zip(large, labels, pictures, strict=True):
            np.testing.assert_array_equal(picture, overlay(frame, plane, toy.SPACE.palette, alpha))
    assert prediction.confidence(SIZE).shape == (3, *SIZE)
    with pytest.raises(UsageError, match="the model takes uint8 frames"):
        backend.submit(frames[:, :32])
    backend.close()


def test_predictions_keep_their_answer_when_the_engine_runs_on(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    first = backend.submit(frames_of(1, 2))
    before = first.labels(SIZE)
    backend.submit(frames_of(7, 8))
    np.testing.assert_array_equal(first.labels(SIZE), before)


def test_batches_are_cut_and_padded_to_the_profile_and_graphs_are_kept(machine: Machine, tmp_path: Path) -> None:
    """The profile is 2 to 4: one is padded, five are four and one, and each size is set up once."""
    backend = TensorRtBackend(machine.engine(tmp_path / "model.engine"), allow_unproven=True)
    machine.runs.clear()
    machine.events.clear()
    Graph.launches = 0
    for numbers in ((4,), (4, 5, 6, 7, 8), (4, 5), (1, 2, 3), (3,)):
        frames = frames_of(*numbers)
        (logits,) = machine.session.run(["logits"], {"frames": frames})
        np.testing.assert_array_equal(backend.submit(frames).logits(), logits)
    # One run of each new size to warm up, then the graph.
    assert machine.runs == [2, 2, 4, 4, 2, 2, 3, 3, 2]
    assert machine.events == ["context"] * 3 and Graph.launches == 6
    assert len(machine.streams) == 1


def test_an_engine_that_cannot_be_captured_runs_without_graphs(machine: Machine, tmp_path: Path) -> None:
    machine.capturable = False
    backend = TensorRtBackend(machine.engine(tmp_path / "model.engine"), allow_unproven=True)
    Graph.launches = 0
    frames = frames_of(4, 5)
    (logits,) = machine.session.run(["logits"], {"frames": frames})
    np.testing.assert_array_equal(backend.submit(frames).logits(), logits)
    assert Graph.launches == 0


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_heads_and_fixed_batches(
    library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, batch: int | None
) -> None:
    machine = machine_with(library, tmp_path, monkeypatch, batch=batch, head=head)
    with Segmenter(machine.engine(tmp_path / "model.engine"), batch=batch or 2) as segmenter:
        assert segmenter.batch == (batch or 2)
        frames = frames_of(2, 4, 6, 8)
        padded = np.concatenate([frames, frames[-1:], frames[-1:]])
        answers = [machine.session.run([head], {"frames": padded[i : i + 3]})[0] for i in (0, 3)]
        expected = np.concatenate(answers)[:4]
        if head == "logits":
            expected = np.stack([labels_from_logits(z, SIZE, align_corners=False) for z in expected])
            labels, pictures = segmenter.backend.submit(frames[:2]).overlay(frames[:2], toy.SPACE.palette, 0.5)
        else:
            labels, pictures = segmenter.backend.submit(frames[:2]).overlay(frames[:2], toy.SPACE.palette, 0.5)
            with pytest.raises(ModelError, match="head `labels`"):
                segmenter.backend.submit(frames[:2]).logits()
        np.testing.assert_array_equal(np.stack(segmenter.labels(list(frames))), expected)
        np.testing.assert_array_equal(labels, expected[:2])
        np.testing.assert_array_equal(pictures[0], overlay(frames[0], labels[0], toy.SPACE.palette, 0.5))


def test_the_proof_is_made_once_and_kept(machine: Machine, tmp_path: Path) -> None:
    path = machine.engine(tmp_path / "model.engine")
    open_backend(path).close()
    found = read_engine(path).verification
    assert isinstance(found, dict) and found["tensorrt"]["on"] == f"A card, tensorrt_rtx {VERSION}"
    assert found["tensorrt"]["equal_labels"] == 1.0 and found["tensorrt"]["frames"] == 3
    machine.runs.clear()
    open_backend(path).close()
    assert machine.runs == []
    # Another card's proof is none of this one's; the engine of RTX is compiled for each.
    sidecar = read_engine(path)
    write_sidecar(path, replace(sidecar, verification={"tensorrt": {"on": "Another card"}}))
    open_backend(path).close()
    assert machine.runs


def test_an_engine_that_is_another_network_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.bias = 1e5
    path = machine.engine(tmp_path / "model.engine")
    text = refusal(GateError, path)
    assert "the file is not the network" in text and "is not run" in text
    assert read_engine(path).verification == "not_run"
    assert open_backend(path, allow_unproven=True).name == "tensorrt"


def test_without_a_proof_pack_an_engine_is_not_run_unless_told_to(machine: Machine, tmp_path: Path) -> None:
    path = machine.engine(tmp_path / "model.engine")
    pack = (tmp_path / "model.proof.npz").read_bytes()
    (tmp_path / "model.proof.npz").unlink()
    text = refusal(ModelError, path)
    assert (
        "was not compared with the network" in text and "no such proof pack" in text and "--allow-unproven" in text
    )
    assert open_backend(path, allow_unproven=True).device == "cuda:0"
    (tmp_path / "model.proof.npz").write_bytes(pack + b" ")
    assert "is not the proof pack" in refusal(ModelError, path)


def test_a_proof_that_cannot_be_kept_is_made_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backends.tensorrt.can_record", lambda path: False)
    path = machine.engine(tmp_path / "model.engine")
    for _ in range(2):
        machine.runs.clear()
        open_backend(path).close()
        assert machine.runs and read_engine(path).verification == "not_run"


def test_nothing_is_deserialised_before_all_else_is_checked(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(**changes: Any) -> Path:
        return machine.engine(tmp_path / "model.engine", **changes)

    assert "built by tensorrt_rtx 1.6.0.1 and" in refusal(ModelError, path(flavour_version="1.6.0.1"))
    assert "this GPU is SM86" in refusal(ModelError, path(compute_capabilities=("SM89",)))
    assert "cuda:2 is not to be had" in refusal(DeviceError, path(), device="cuda:2")
    assert "not on the CPU" in refusal(DeviceError, path(), device="cpu")
    assert "there are auto, cpu and cuda" in refusal(UsageError, path(), device="gpu")
    (tmp_path / "model.engine").write_bytes(b"plam")
    assert "is not the engine that" in refusal(ModelError, tmp_path / "model.engine")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cupy is not installed; type: pip install" in refusal(MissingExtraError, path())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "fada_deploy[tensorrt-rtx]" in refusal(MissingExtraError, path())
    assert machine.events == []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        assert "fada_deploy[tensorrt]" in refusal(MissingExtraError, path(flavour="tensorrt"))


def test_engines_that_do_not_open(machine: Machine, tmp_path: Path) -> None:
    text = refusal(ModelError, machine.engine(tmp_path / "model.engine", b"bad plan"))
    assert "tensorrt_rtx cannot open it (header.magicTag == kEXPECTED_MAGIC_TAG failed); build it again" in text
    path = machine.engine(tmp_path / "model.engine", b"bad plan", options={"version_compatible": True})
    assert "carries host code" in refusal(ModelError, path)
    other = (machine.io[0], replace(machine.io[1], dtype="half"))
    assert "which is not what its sidecar says of it" in refusal(
        ModelError, machine.engine(tmp_path / "model.engine", io=other)
    )
    machine.io = other
    assert "has in frames uint8" in refusal(ModelError, machine.engine(tmp_path / "model.engine"))


def test_a_run_that_fails_is_one_line(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = machine.engine(tmp_path / "model.engine")
    backend = open_backend(path)
    machine.fails = True
    with pytest.raises(
        ModelError, match=r"model\.engine: the engine failed: IExecutionContext::enqueueV3.*access\)$"
    ):
        backend.submit(frames_of(1, 2, 3))
    machine.fails = False

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDARuntimeError\ncudaErrorIllegalAddress")

    monkeypatch.setattr(Graph, "launch", broken)
    with pytest.raises(ModelError, match=r"the GPU failed \(cudaErrorIllegalAddress\)"):
        backend.submit(frames_of(1, 2))


def test_a_cupy_that_does_not_work_here(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failure finding libnvrtc.so.13\nNo such file")

    monkeypatch.setattr(machine.cupy, "RawModule", broken)
    text = refusal(DeviceError, machine.engine(tmp_path / "model.engine"))
    assert "cupy cannot work on cuda:0" in text and "[ctk]" in text and machine.events == []


def test_logits_that_are_not_finite_are_refused(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"), allow_unproven=True)
    machine.bias = float("nan")
    prediction = backend.submit(frames_of(1, 2))
    for ask in (
        lambda: prediction.labels(SIZE),
        lambda: prediction.overlay(frames_of(1, 2), toy.SPACE.palette, 0.5),
    ):
        with pytest.raises(ModelError, match="not finite"):
            ask()


def test_many_threads_share_a_backend(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    failed: list[int] = []

    def work(number: int) -> None:
        frames = frames_of(*range(number, number + 1 + number % 3))
        (logits,) = machine.session.run(["logits"], {"frames": frames})
        for _ in range(5):
            got = backend.submit(frames).labels(SIZE)
            if not np.array_equal(got[0], labels_from_logits(logits[0], SIZE, align_corners=False)):
                failed.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_the_sidecar_alone_is_the_contract(machine: Machine, tmp_path: Path) -> None:
    path = machine.engine(tmp_path / "model.engine")
    assert json.loads((tmp_path / "model.engine.json").read_text())["metadata"]["schema"] == 1
    assert isinstance(read_engine(path).metadata, ModelMetadata)
    (tmp_path / "model.engine.json").unlink()
    assert "model.engine.json is not beside it" in refusal(ModelError, path)
