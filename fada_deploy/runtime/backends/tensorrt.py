"""TensorRT and TensorRT-RTX: NVIDIA GPUs.

Every reason not to run an engine is looked for before it is deserialized, and an engine whose answers were not
compared with the network's on this card is compared before its first answer is given out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DeviceError, ModelError, one_line
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    batch_for,
    checked_output,
    cuda_index,
    import_engine,
)
from fada_deploy.runtime.backends.cuda_labels import CudaLabeler, DevicePrediction
from fada_deploy.runtime.backends.cuda_stream import CudaStream
from fada_deploy.runtime.backends.engine_file import (
    EngineSidecar,
    EngineTensor,
    check_can_run,
    load_engine,
)
from fada_deploy.runtime.backends.gpu import Gpu, find_gpu
from fada_deploy.runtime.backends.trt_library import EXTRAS, make_logger, said
from fada_deploy.runtime.backends.trt_runner import EngineRunner


class TensorRtBackend:
    """An engine on an NVIDIA GPU; the library is the one that built it."""

    name = "tensorrt"
    device: str
    metadata: ModelMetadata
    parallel = 1

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        sidecar, plan = load_engine(path)
        self.metadata = sidecar.metadata
        self._where = str(path)
        index, gpu = _gpu_for(path, device)
        self.device = f"cuda:{index}"
        trt = import_engine(sidecar.flavor, EXTRAS[sidecar.flavor])
        try:
            check_can_run(
                sidecar,
                flavor_version=str(trt.__version__),
                compute_capability=gpu.compute_capability,
            )
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        cupy = import_engine("cupy", EXTRAS[sidecar.flavor])
        log = make_logger(trt)
        lane, self._painter = _lane_on(cupy, index, path)
        with lane.entered():
            # The library keeps no references of its own to either.
            self._kept, engine = _deserialized(trt, log, plan, sidecar, path)
        del plan
        _check_tensors(engine, trt, sidecar, path)
        batch = self.metadata.batch
        least, _, most = sidecar.profile or (batch or 1,) * 3
        self._runner = EngineRunner(trt, engine, log, lane, self.metadata, (least, most))
        # Where and by what it runs, as the sidecar's verification names it.
        self.runs_on = f"{gpu.name}, {sidecar.flavor} {trt.__version__}"
        self.sidecar = sidecar

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = batch_for(frames_bhwc, self.metadata)
        try:
            output = self._runner.run(batch)
        except ModelError as error:
            raise ModelError(f"{self._where}: {error}") from None
        output = checked_output(output, len(frames_bhwc), self.metadata, self._where)
        return DevicePrediction(output, self.metadata, self._painter)

    def close(self) -> None:
        """Let the engine and its memory go."""
        self._runner.close()


def _gpu_for(path: Path, device: str) -> tuple[int, Gpu]:
    """Return the GPU asked for and its number; raise `DeviceError` when there is none."""
    index = cuda_index(device)
    if device == "cpu":
        raise DeviceError(
            f"{path}: an engine runs on an NVIDIA GPU, not on the CPU; for that take the .onnx"
        )
    gpu = find_gpu(index or 0)
    if gpu is None:
        raise DeviceError(
            f"{path}: an engine needs an NVIDIA GPU, and cuda:{index or 0} is not to be had here; take the .onnx "
            "file, or look at `nvidia-smi`"
        )
    return index or 0, gpu


def _lane_on(cupy: Any, index: int, path: Path) -> tuple[CudaStream, CudaLabeler]:
    """Return a stream on the GPU and our kernels, compiled for it; raise `DeviceError` when CuPy cannot."""
    try:
        lane = CudaStream(cupy, index)
        return lane, CudaLabeler(lane)
    except Exception as error:  # of the driver, of the compiler, of a library that is not found
        raise DeviceError(
            f"{path}: cupy cannot work on cuda:{index} ({one_line(error)}); it has to be for this driver's CUDA "
            "and needs NVRTC: pip install 'cupy-cuda13x[ctk]' or 'cupy-cuda12x[ctk]'"
        ) from None


def _deserialized(
    trt: Any, log: Any, plan: bytes, sidecar: EngineSidecar, path: Path
) -> tuple[Any, Any]:
    """Return the library's runtime and the engine; raise `ModelError` when it does not take it."""
    # `engine_host_code_allowed` stays off: a plan may hold code for the CPU, and none of ours does.
    runtime = engine = None
    try:
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
    except TypeError:
        # Without a working driver the constructor gives nothing.
        pass
    if engine is None:
        why = said(log.errors)
        if sidecar.options.get("version_compatible"):
            why += "; it is version-compatible, so it carries host code, which is not run here"
        raise ModelError(
            f"{path}: {sidecar.flavor} cannot open it ({why}); build it again: {sidecar.rebuild}"
        )
    return runtime, engine


def _check_tensors(engine: Any, trt: Any, sidecar: EngineSidecar, path: Path) -> None:
    """Raise `ModelError` when the engine's inputs and outputs are not those of its sidecar and metadata."""
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = "in" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "out"
        shape = tuple(int(n) for n in engine.get_tensor_shape(name))
        found.append(EngineTensor(name, kind, engine.get_tensor_dtype(name).name.lower(), shape))
    metadata = sidecar.metadata
    batch = metadata.batch or -1
    frames = EngineTensor("frames", "in", "uint8", (batch, *metadata.input_size_hw, 3))
    heads = {"logits": "float", "labels": "uint8"}
    answers = [(t.name, t.dtype) for t in found if t.kind == "out"]
    expected = [(metadata.head, heads[metadata.head])]
    if (
        set(found) != set(sidecar.io)
        or [t for t in found if t.kind == "in"] != [frames]
        or answers != expected
    ):
        listed = ", ".join(f"{t.kind} {t.name} {t.dtype} {t.shape}" for t in found)
        raise ModelError(
            f"{path}: has {listed}, which is not what its sidecar says of it; build it again: {sidecar.rebuild}"
        )
