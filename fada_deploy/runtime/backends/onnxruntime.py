"""The ONNX Runtime backend: CPU, and CUDA with onnxruntime-gpu."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fada_deploy.common.errors import DeviceError, MissingExtraError, ModelError, one_line
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import usable_cores
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    closed_model_error,
    cuda_index,
    cuda_unavailable_error,
    import_backend,
    pad_batch,
    unpad_output,
)
from fada_deploy.runtime.backends.cuda_labels import (
    INSTALL_CUPY,
    CudaLabeler,
    DevicePrediction,
    open_labeler,
)
from fada_deploy.runtime.backends.cuda_session import CudaSession
from fada_deploy.runtime.backends.cuda_stream import MAX_CACHED_BATCH_SIZES
from fada_deploy.runtime.backends.onnx_file import read_model

logger = logging.getLogger(__name__)

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """An ONNX model in an ONNX Runtime inference session."""

    name = "onnxruntime"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str | int = "auto", parallel: int = 1) -> None:
        onnxruntime = import_backend("onnxruntime", "cpu")
        self.metadata = read_model(path)
        self._where = str(path)
        index = cuda_index(device)
        available = onnxruntime.get_available_providers()
        if index is not None and _CUDA not in available:
            raise cuda_unavailable_error(self.name, index, "is installed without CUDA support")
        use_cuda = _CUDA in available and device != "cpu"
        self._session = self._open(onnxruntime, path, index or 0, parallel, use_cuda=use_cuda)
        # If the CUDA provider fails to start, ONNX Runtime silently uses the CPU.
        on_cuda = self._session.get_providers()[0] == _CUDA
        if index is not None and not on_cuda:
            raise cuda_unavailable_error(
                self.name, index, "could not start its CUDA provider and fell back to the CPU"
            )
        if use_cuda and not on_cuda:
            logger.warning(
                "ONNX Runtime could not start its CUDA provider and uses the CPU; `fada doctor` "
                "shows why"
            )
        self.device = f"cuda:{index or 0}" if on_cuda else "cpu"
        self.parallel = 1 if on_cuda else parallel
        self._bound: CudaSession | _BoundSession | None = None
        self._labeler: CudaLabeler | None = None
        if on_cuda:
            self._bind(onnxruntime, index or 0)
        inputs = self._session.get_inputs()
        if [(i.name, i.type) for i in inputs] != [("frames", "tensor(uint8)")]:
            listed = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ModelError(
                f"{path} has inputs {listed}, expected one input `frames` of uint8; export it again"
            )

    def _open(self, ort: Any, path: Path, index: int, parallel: int, *, use_cuda: bool) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, usable_cores() // parallel)
        options.inter_op_num_threads = 1
        # Spinning threads would take CPU time from decoding, drawing and encoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        # TF32 rounds more than the tolerance of float32 allows; fp16 is the faster precision.
        cuda = (_CUDA, {"device_id": index, "use_tf32": 0})
        providers: list[Any] = [cuda, _CPU] if use_cuda else [_CPU]
        try:
            return ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions have no common base and change with versions
            raise ModelError(f"{path}: onnxruntime cannot open it ({one_line(error)})") from None

    def _bind(self, ort: Any, index: int) -> None:
        """Let the input and, if CuPy works, the logits stay on the GPU."""
        if CudaSession.supports(self._session):
            try:
                stream, self._labeler = open_labeler(index)
            except MissingExtraError:
                logger.info(
                    "label maps are computed on the CPU; CuPy computes them on the GPU: %s",
                    INSTALL_CUPY,
                )
            except DeviceError as error:
                logger.warning("label maps are computed on the CPU: %s", error)
            else:
                self._bound = CudaSession(self._session, stream, ("cuda", index))
                return
        self._bound = _BoundSession(ort, self._session, self.metadata.head, "cuda", index)

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = pad_batch(frames_bhwc, self.metadata)
        session, bound, labeler = self._session, self._bound, self._labeler
        if session is None:
            raise closed_model_error(self._where)
        try:
            if bound is not None:
                output = bound.run(batch)
            else:
                output = session.run([self.metadata.head], {"frames": batch})[0]
        except ModelError as error:
            raise ModelError(f"{self._where}: {error}") from None
        except Exception as error:
            raise ModelError(f"{self._where}: onnxruntime failed ({one_line(error)})") from None
        output = unpad_output(output, len(frames_bhwc), self.metadata, self._where)
        if labeler is not None:
            return DevicePrediction(output, self.metadata, labeler)
        return Prediction(output, self.metadata)

    def close(self) -> None:
        """Release the session."""
        self._bound = self._labeler = self._session = None


class _BoundSession:
    """Runs a session with a preallocated input on the device and one copy of the output.

    Without this, a session allocates and frees both in each run.
    """

    def __init__(self, ort: Any, session: Any, head: str, device: str, index: int) -> None:
        self._ort, self._session, self._head = ort, session, head
        self._device = (device, index)
        self._inputs: dict[int, Any] = {}
        # The input buffer serves one caller at a time.
        self._lock = threading.Lock()

    def run(self, batch: Frames) -> NDArray[Any]:
        with self._lock:
            frames = self._inputs.get(len(batch))
            if frames is None:
                if len(self._inputs) >= MAX_CACHED_BATCH_SIZES:
                    self._inputs.clear()
                frames = self._ort.OrtValue.ortvalue_from_numpy(batch, *self._device)
                self._inputs[len(batch)] = frames
            else:
                frames.update_inplace(batch)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("frames", frames)
            binding.bind_output(self._head, *self._device)
            self._session.run_with_iobinding(binding)
            output: NDArray[Any] = binding.copy_outputs_to_cpu()[0]
            return output
