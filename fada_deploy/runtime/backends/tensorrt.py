"""The TensorRT backend for NVIDIA GPUs (TensorRT and TensorRT-RTX).

Everything that can make an engine unusable is checked before it is deserialized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DeviceError, ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    closed_model_error,
    cuda_index,
    import_backend,
    pad_batch,
    unpad_output,
)
from fada_deploy.runtime.backends.cuda_labels import DevicePrediction, open_labeler
from fada_deploy.runtime.backends.engine_file import (
    EngineSidecar,
    EngineTensor,
    check_can_run,
    load_engine,
)
from fada_deploy.runtime.backends.gpu import Gpu, find_gpu
from fada_deploy.runtime.backends.trt_library import EXTRAS, error_summary, make_logger
from fada_deploy.runtime.backends.trt_runner import EngineRunner


class TensorRtBackend:
    """A TensorRT engine on an NVIDIA GPU, run by the library that built it.

    `runs_on` names the GPU and the library version; the sidecar's verification uses the same text.
    """

    name = "tensorrt"
    device: str
    metadata: ModelMetadata
    parallel = 1

    def __init__(self, path: Path, *, device: str | int = "auto") -> None:
        sidecar, plan = load_engine(path)
        self.metadata = sidecar.metadata
        self._where = str(path)
        index, gpu = _require_gpu(path, device)
        self.device = f"cuda:{index}"
        trt = import_backend(sidecar.flavor, EXTRAS[sidecar.flavor])
        try:
            check_can_run(
                sidecar,
                flavor_version=str(trt.__version__),
                compute_capability=gpu.compute_capability,
            )
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        log = make_logger(trt)
        try:
            stream, self._labeler = open_labeler(index, EXTRAS[sidecar.flavor])
        except DeviceError as error:
            raise DeviceError(f"{path}: {error}") from None
        with stream.entered():
            # An engine does not keep its runtime alive, so keep a reference here.
            self._runtime, engine = _deserialize(trt, log, plan, sidecar, path)
        del plan
        _check_tensors(engine, trt, sidecar, path)
        batch = self.metadata.batch
        min_batch, _, max_batch = sidecar.profile or (batch or 1,) * 3
        self._runner = EngineRunner(trt, engine, log, stream, self.metadata, (min_batch, max_batch))
        self.runs_on = f"{gpu.name}, {sidecar.flavor} {trt.__version__}"
        self.sidecar = sidecar

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        if self._runner.is_closed:
            raise closed_model_error(self._where)
        batch = pad_batch(frames_bhwc, self.metadata)
        try:
            output = self._runner.run(batch)
        except ModelError as error:
            raise ModelError(f"{self._where}: {error}") from None
        output = unpad_output(output, len(frames_bhwc), self.metadata, self._where)
        return DevicePrediction(output, self.metadata, self._labeler)

    def close(self) -> None:
        """Release the engine and its memory."""
        self._runner.close()


def _require_gpu(path: Path, device: str | int) -> tuple[int, Gpu]:
    """Return the number of the requested GPU and the GPU; raise `DeviceError` without one."""
    index = cuda_index(device)
    if device == "cpu":
        raise DeviceError(
            f"{path}: a TensorRT engine needs an NVIDIA GPU, got --device cpu; "
            "use the .onnx file on the CPU"
        )
    gpu = find_gpu(index or 0)
    if gpu is None:
        raise DeviceError(
            f"{path}: a TensorRT engine needs an NVIDIA GPU, but cuda:{index or 0} is missing; "
            "use the .onnx file, or check `nvidia-smi`"
        )
    return index or 0, gpu


def _deserialize(
    trt: Any, log: Any, plan: bytes, sidecar: EngineSidecar, path: Path
) -> tuple[Any, Any]:
    """Return the TensorRT runtime and the engine; raise `ModelError` if it cannot be loaded."""
    # `engine_host_code_allowed` stays off: plans can contain CPU code, and ours have none.
    runtime = engine = None
    try:
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
    except TypeError:
        # The constructor raises TypeError if there is no working driver.
        pass
    if engine is None:
        reason = error_summary(log.errors)
        if sidecar.options.get("version_compatible"):
            reason += "; it is version-compatible, so it contains host code, which is not run"
        raise ModelError(
            f"{path}: {sidecar.flavor} cannot open it ({reason}); "
            f"build it again: {sidecar.rebuild_command}"
        )
    return runtime, engine


def _check_tensors(engine: Any, trt: Any, sidecar: EngineSidecar, path: Path) -> None:
    """Raise `ModelError` if the engine's tensors differ from its sidecar and metadata."""
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(int(n) for n in engine.get_tensor_shape(name))
        dtype = engine.get_tensor_dtype(name).name.lower()
        tensors.append(EngineTensor(name, "in" if is_input else "out", dtype, shape))
    metadata = sidecar.metadata
    batch = metadata.batch or -1
    frames = EngineTensor("frames", "in", "uint8", (batch, *metadata.input_size_hw, 3))
    dtypes = {"logits": "float", "labels": "uint8"}
    outputs = [(t.name, t.dtype) for t in tensors if t.kind == "out"]
    if (
        set(tensors) != set(sidecar.io)
        or [t for t in tensors if t.kind == "in"] != [frames]
        or outputs != [(metadata.head, dtypes[metadata.head])]
    ):
        listed = ", ".join(f"{t.kind} {t.name} {t.dtype} {t.shape}" for t in tensors)
        raise ModelError(
            f"{path} has tensors {listed}, which differ from its sidecar and metadata; "
            f"build it again: {sidecar.rebuild_command}"
        )
