"""ONNX Runtime on a GPU with label maps computed there, tested without a GPU.

The session and its binding are real but run on the CPU, CuPy is a stand-in whose device memory is
NumPy memory (`stand_in_trt`), and the kernels are the real source compiled for the CPU.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import toy
from host_kernels import compile_kernels
from stand_in_trt import Stream, make_cupy

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.backends.cuda_labels import DevicePrediction
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend, _BoundSession

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
RealSession = onnxruntime.InferenceSession


class Binding:
    """A real binding, to the memory of the CPU instead of the GPU's."""

    def __init__(self, session: Any, events: list[str]) -> None:
        self.real, self._events = session.io_binding(), events

    def bind_input(self, name: str, device: str, index: int, *values: Any) -> None:
        assert (device, index) == ("cuda", 1)
        self.real.bind_input(name, "cpu", 0, *values)

    def bind_output(self, name: str, device: str, index: int, *values: Any) -> None:
        assert (device, index) == ("cuda", 1)
        self.real.bind_output(name, "cpu", 0, *values)

    def synchronize_outputs(self) -> None:
        self._events.append("outputs")


class CudaProviderSession:
    """A session that says that it uses the CUDA provider."""

    events: list[str]

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        self._real = RealSession(path, options, providers=[CPU])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def io_binding(self) -> Binding:
        return Binding(self._real, self.events)

    def run_with_iobinding(self, binding: Binding) -> None:
        self.events.append("run")
        self._real.run_with_iobinding(binding.real)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def events(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace CuPy and ONNX Runtime's session; return what is recorded of their calls."""
    events: list[str] = []
    monkeypatch.setattr(CudaProviderSession, "events", events, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", CudaProviderSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    copied = SimpleNamespace(synchronize=lambda: events.append("stream"))
    monkeypatch.setattr(Stream, "record", lambda self: copied)
    monkeypatch.setitem(sys.modules, "cupy", make_cupy(library, []))
    cupyx = SimpleNamespace(empty_pinned=lambda shape, dtype: np.full(shape, 77, dtype))
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    return events


@pytest.mark.parametrize("batch", [None, 3])
def test_outputs_equal_those_of_the_cpu(
    events: list[str], tmp_path: Path, batch: int | None
) -> None:
    path = toy.color_model(tmp_path / "m.onnx", batch=batch)
    backend, cpu = OnnxRuntimeBackend(path, device="cuda:1"), RealSession(str(path))
    rng = np.random.default_rng(0)
    predictions = []
    for count in (2, 1, 3, 2) if batch else (2, 1, 3, 4, 5, 2):
        frames = rng.integers(0, 256, (count, 64, 128, 3), dtype=np.uint8)
        padded = frames if batch is None else frames[[*range(count), *[-1] * (batch - count)]]
        (logits,) = cpu.run(["logits"], {"frames": padded})
        predictions.append((backend.submit(frames), logits[:count]))
    assert events == ["stream", "run", "outputs"] * len(predictions)
    # Compared after all runs: each prediction has memory of its own.
    for prediction, logits in predictions:
        assert isinstance(prediction, DevicePrediction) and len(prediction) == len(logits)
        np.testing.assert_array_equal(prediction.logits(), logits)
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.submit(frames)


def test_label_maps_equal_those_of_the_cpu(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    frames = np.stack([toy.scene(seed)[0] for seed in (1, 2)])
    prediction = OnnxRuntimeBackend(path, device="cuda:1").submit(frames)
    monkeypatch.setattr(onnxruntime, "InferenceSession", RealSession)
    expected = OnnxRuntimeBackend(path, device="cpu").submit(frames)
    for size_hw in ((64, 128), (97, 201), (16, 20)):
        labels = expected.labels(size_hw)
        np.testing.assert_array_equal(prediction.labels(size_hw), labels)
        np.testing.assert_array_equal(prediction[-1].labels(size_hw)[0], labels[1])
        np.testing.assert_array_equal(prediction.confidence(size_hw), expected.confidence(size_hw))


def test_without_a_working_cupy_label_maps_are_computed_on_the_cpu(
    events: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    caplog.set_level(logging.INFO, "fada_deploy")

    def fail(code: str, options: object) -> None:
        raise RuntimeError("no kernel image\nmore")

    for cupy, level, part in (
        (SimpleNamespace(**vars(sys.modules["cupy"]) | {"RawModule": fail}), "WARNING", "NVRTC"),
        (None, "INFO", "pip install 'cupy-cuda13x[ctk]'"),
    ):
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        caplog.clear()
        backend = OnnxRuntimeBackend(path, device="cuda:1")
        assert isinstance(backend._bound, _BoundSession)
        (record,) = caplog.records
        assert record.levelname == level and part in record.getMessage()
        assert "\n" not in record.getMessage()


def test_a_failure_of_the_gpu_is_one_line(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    backend = OnnxRuntimeBackend(path, device="cuda:1")

    for error, owner, name, part in (
        (MemoryError, sys.modules["cupy"], "empty", "the GPU failed (out of memory)"),
        (RuntimeError, CudaProviderSession, "run_with_iobinding", "onnxruntime failed"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ModelError) as caught:
            patch.setattr(owner, name, Mock(side_effect=error("somewhere\nout of memory")))
            backend.submit(np.zeros((1, 64, 128, 3), np.uint8))
        assert str(caught.value).startswith(f"{path}: {part}") and "\n" not in str(caught.value)


def test_models_that_output_labels_are_not_bound_to_cupy(events: list[str], tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx", head="labels")
    backend: Any = OnnxRuntimeBackend(path, device="cuda:1")
    assert isinstance(backend._bound, _BoundSession) and backend._labeler is None
