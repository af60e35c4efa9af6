"""The logic of the TensorRT backend, tested without a GPU.

`tensorrt_rtx` and `cupy` are replaced by stand-ins (`stand_in_trt`): ONNX Runtime computes the
engine's outputs, device memory is NumPy memory, and the kernels are the real source compiled for
the CPU. This covers the order of checks, buffers, padding, graphs and verification, but not the
behavior of the real TensorRT and CuPy.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import toy
from host_kernels import compile_kernels
from stand_in_trt import SIZE, VERSION, Graph, Machine

from fada_deploy.common.errors import (
    DeviceError,
    MissingExtraError,
    ModelError,
    ToleranceError,
    UsageError,
)
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import gpu
from fada_deploy.runtime.backends.engine_file import read_engine, write_sidecar
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend
from fada_deploy.runtime.kernels.upsample import labels_from_logits
from fada_deploy.runtime.parity import ReferenceOutputs
from fada_deploy.runtime.segmenter import Segmenter


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
    """Return a machine with a GPU, both libraries and the reference outputs of an engine."""
    model = toy.color_model(folder / "model.onnx", batch=batch, head=head)
    machine = Machine(library, model)
    logits_model = toy.color_model(folder / "in" / "logits.onnx")
    session = onnxruntime.InferenceSession(str(logits_model), providers=["CPUExecutionProvider"])
    frames = frames_of(0, 3, 6)
    (logits,) = session.run(["logits"], {"frames": frames})
    labels = np.stack([labels_from_logits(z, SIZE, align_corners=False) for z in logits])
    if head == "labels":
        parts = [frames[i : i + 1].repeat(batch or 1, axis=0) for i in range(3)]
        labels = np.concatenate(
            [machine.session.run(["labels"], {"frames": p})[0][:1] for p in parts]
        )
    ReferenceOutputs(frames, logits, labels).save(folder / "model.reference.npz")
    hashes = {"reference": sha256(folder / "model.reference.npz")}
    machine.metadata = replace(machine.metadata, hashes=hashes)
    patch.setitem(sys.modules, "tensorrt_rtx", machine.trt)
    patch.setitem(sys.modules, "cupy", machine.cupy)
    cupyx = SimpleNamespace(empty_pinned=lambda shape, dtype: np.full(shape, 77, dtype))
    patch.setitem(sys.modules, "cupyx", cupyx)
    patch.setattr(
        "fada_deploy.runtime.backends.tensorrt.find_gpu",
        lambda index: gpu.Gpu("A card", "8.6") if index < 2 else None,
    )
    return machine


@pytest.fixture
def machine(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machine_with(library, tmp_path, monkeypatch)


def error_message(kind: type[Exception], path: Path, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        open_backend(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_predictions_equal_the_network(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    assert (backend.name, backend.device, backend.metadata) == (
        "tensorrt",
        "cuda:0",
        machine.metadata,
    )
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
    assert prediction.confidence(SIZE).shape == (3, *SIZE)
    with pytest.raises(UsageError, match="frames must be uint8"):
        backend.submit(frames[:, :32])
    backend.close()


def test_predictions_survive_later_runs(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    first = backend.submit(frames_of(1, 2))
    before = first.labels(SIZE)
    backend.submit(frames_of(7, 8))
    np.testing.assert_array_equal(first.labels(SIZE), before)


def test_batches_are_split_and_padded_and_graphs_are_cached(
    machine: Machine, tmp_path: Path
) -> None:
    """The profile is 2 to 4: one frame is padded, five are split, each size is prepared once."""
    backend = TensorRtBackend(machine.engine(tmp_path / "model.engine"))
    machine.runs.clear()
    machine.events.clear()
    Graph.launches = 0
    for numbers in ((4,), (4, 5, 6, 7, 8), (4, 5), (1, 2, 3), (3,)):
        frames = frames_of(*numbers)
        (logits,) = machine.session.run(["logits"], {"frames": frames})
        np.testing.assert_array_equal(backend.submit(frames).logits(), logits)
    # Each new size has one warm-up run and one captured run.
    assert machine.runs == [2, 2, 4, 4, 2, 2, 3, 3, 2]
    assert machine.events == ["context"] * 3 and Graph.launches == 6
    assert len(machine.streams) == 1


def test_engine_that_cannot_be_captured_runs_without_graphs(
    machine: Machine, tmp_path: Path
) -> None:
    machine.capturable = False
    backend = TensorRtBackend(machine.engine(tmp_path / "model.engine"))
    Graph.launches = 0
    frames = frames_of(4, 5)
    (logits,) = machine.session.run(["logits"], {"frames": frames})
    np.testing.assert_array_equal(backend.submit(frames).logits(), logits)
    assert Graph.launches == 0


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_heads_and_fixed_batches(
    library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: str,
    batch: int | None,
) -> None:
    machine = machine_with(library, tmp_path, monkeypatch, batch=batch, head=head)
    with Segmenter(machine.engine(tmp_path / "model.engine"), batch=batch or 2) as segmenter:
        assert segmenter.batch == (batch or 2)
        frames = frames_of(2, 4, 6, 8)
        padded = np.concatenate([frames, frames[-1:], frames[-1:]])
        outputs = [machine.session.run([head], {"frames": padded[i : i + 3]})[0] for i in (0, 3)]
        expected = np.concatenate(outputs)[:4]
        if head == "logits":
            expected = np.stack(
                [labels_from_logits(z, SIZE, align_corners=False) for z in expected]
            )
        else:
            with pytest.raises(ModelError, match="head `labels`"):
                segmenter.backend.submit(frames[:2]).logits()
        labels = np.stack(segmenter.labels(list(frames), color="rgb"))
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(segmenter.backend.submit(frames[:2]).labels(SIZE), labels[:2])


def test_engine_is_verified_once_per_gpu(machine: Machine, tmp_path: Path) -> None:
    path = machine.engine(tmp_path / "model.engine")
    open_backend(path).close()
    verification = read_engine(path).verification
    assert isinstance(verification, dict)
    assert verification["tensorrt"]["on"] == f"A card, tensorrt_rtx {VERSION}"
    assert verification["tensorrt"]["equal_labels"] == 1.0
    assert verification["tensorrt"]["frames"] == 3
    machine.runs.clear()
    open_backend(path).close()
    assert machine.runs == []
    # A result of another GPU does not count: TensorRT-RTX compiles the engine for each GPU.
    sidecar = read_engine(path)
    write_sidecar(path, replace(sidecar, verification={"tensorrt": {"on": "Another card"}}))
    open_backend(path).close()
    assert machine.runs


def test_engine_that_differs_from_the_network_is_rejected(machine: Machine, tmp_path: Path) -> None:
    machine.bias = 1e5
    path = machine.engine(tmp_path / "model.engine")
    text = error_message(ToleranceError, path)
    assert "model.engine" in text and "is not run" in text
    assert read_engine(path).verification == "not_run"
    assert open_backend(path, allow_unverified=True).name == "tensorrt"


def test_engine_without_reference_outputs_needs_allow_unverified(
    machine: Machine, tmp_path: Path
) -> None:
    path = machine.engine(tmp_path / "model.engine")
    reference = (tmp_path / "model.reference.npz").read_bytes()
    (tmp_path / "model.reference.npz").unlink()
    text = error_message(ModelError, path)
    assert "model.engine" in text and "A card" in text
    assert "model.reference.npz" in text and "--allow-unverified" in text
    assert open_backend(path, allow_unverified=True).device == "cuda:0"
    (tmp_path / "model.reference.npz").write_bytes(reference + b" ")
    assert "model.reference.npz" in error_message(ModelError, path)


def test_engine_in_a_read_only_folder_is_verified_each_time(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fada_deploy.runtime.backend_selection.can_write_sidecar", lambda path: False
    )
    path = machine.engine(tmp_path / "model.engine")
    for _ in range(2):
        machine.runs.clear()
        open_backend(path).close()
        assert machine.runs and read_engine(path).verification == "not_run"


def test_everything_is_checked_before_deserialization(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(**changes: Any) -> Path:
        return machine.engine(tmp_path / "model.engine", **changes)

    text = error_message(ModelError, path(flavor_version="1.6.0.1"))
    assert "tensorrt_rtx 1.6.0.1" in text and f"{VERSION} is installed" in text
    assert "SM86" in error_message(ModelError, path(compute_capabilities=("SM89",)))
    assert "cuda:2" in error_message(DeviceError, path(), device="cuda:2")
    assert ".onnx" in error_message(DeviceError, path(), device="cpu")
    assert "gpu" in error_message(UsageError, path(), device="gpu")
    (tmp_path / "model.engine").write_bytes(b"plam")
    assert "is not the engine that" in error_message(ModelError, tmp_path / "model.engine")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "cupy is not installed" in error_message(MissingExtraError, path())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "[tensorrt-rtx]" in error_message(MissingExtraError, path())
    assert machine.events == []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        assert "[tensorrt]" in error_message(MissingExtraError, path(flavor="tensorrt"))


def test_engines_that_cannot_be_opened(machine: Machine, tmp_path: Path) -> None:
    text = error_message(ModelError, machine.engine(tmp_path / "model.engine", b"bad plan"))
    assert "tensorrt_rtx" in text and "(header.magicTag == kEXPECTED_MAGIC_TAG failed)" in text
    assert "fada export model.onnx --trt" in text
    path = machine.engine(
        tmp_path / "model.engine", b"bad plan", options={"version_compatible": True}
    )
    assert "host code" in error_message(ModelError, path)
    other = (machine.io[0], replace(machine.io[1], dtype="half"))
    assert "differ from its sidecar" in error_message(
        ModelError, machine.engine(tmp_path / "model.engine", io=other)
    )
    machine.io = other
    assert "in frames uint8" in error_message(ModelError, machine.engine(tmp_path / "model.engine"))


def test_failed_run_is_one_line(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.engine(tmp_path / "model.engine")
    backend = open_backend(path)
    machine.fails = True
    with pytest.raises(
        ModelError,
        match=r"model\.engine: the engine failed: IExecutionContext::enqueueV3.*access\)$",
    ):
        backend.submit(frames_of(1, 2, 3))
    machine.fails = False

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDARuntimeError\ncudaErrorIllegalAddress")

    monkeypatch.setattr(Graph, "launch", broken)
    with pytest.raises(ModelError, match=r"the GPU failed \(cudaErrorIllegalAddress\)"):
        backend.submit(frames_of(1, 2))


def test_cupy_that_does_not_work(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failure finding libnvrtc.so.13\nNo such file")

    monkeypatch.setattr(machine.cupy, "RawModule", broken)
    text = error_message(DeviceError, machine.engine(tmp_path / "model.engine"))
    assert "cupy" in text and "cuda:0" in text and "[ctk]" in text
    assert machine.events == []


def test_rejects_logits_that_are_not_finite(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    machine.bias = float("nan")
    prediction = backend.submit(frames_of(1, 2))
    with pytest.raises(ModelError, match="not finite"):
        prediction.labels(SIZE)


def test_threads_can_share_a_backend(machine: Machine, tmp_path: Path) -> None:
    backend = open_backend(machine.engine(tmp_path / "model.engine"))
    failed: list[int] = []

    def work(number: int) -> None:
        frames = frames_of(*range(number, number + 1 + number % 3))
        (logits,) = machine.session.run(["logits"], {"frames": frames})
        for _ in range(5):
            labels = backend.submit(frames).labels(SIZE)
            if not np.array_equal(
                labels[0], labels_from_logits(logits[0], SIZE, align_corners=False)
            ):
                failed.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_engine_needs_its_sidecar(machine: Machine, tmp_path: Path) -> None:
    path = machine.engine(tmp_path / "model.engine")
    assert json.loads((tmp_path / "model.engine.json").read_text())["metadata"]["schema"] == 1
    assert isinstance(read_engine(path).metadata, ModelMetadata)
    (tmp_path / "model.engine.json").unlink()
    assert "model.engine.json is missing" in error_message(ModelError, path)
