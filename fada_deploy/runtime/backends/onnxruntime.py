"""ONNX Runtime: the CPU, and CUDA through onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.cores import usable_cores
from fada_deploy.common.errors import MissingExtraError, ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    batch_for,
    broken_engine,
    cuda_index,
    one_line,
    prediction_of,
    refuse_cuda,
)
from fada_deploy.runtime.backends.onnx_file import read_metadata

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """A model in an ONNX Runtime session."""

    name = "onnxruntime"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtraError("onnxruntime", "cpu") from None
        except ImportError as error:
            raise broken_engine(self.name, error) from None
        self.metadata = read_metadata(path)
        self._where = str(path)
        index = cuda_index(device)
        have = onnxruntime.get_available_providers()
        if index is not None and _CUDA not in have:
            raise refuse_cuda(self.name, device, "the CPU only")
        use_cuda = _CUDA in have and device != "cpu"
        self._session = self._open(onnxruntime, path, index or 0, use_cuda=use_cuda)
        # A CUDA provider that does not start is replaced by the CPU in silence.
        on_cuda = self._session.get_providers()[0] == _CUDA
        if index is not None and not on_cuda:
            raise refuse_cuda(self.name, device, "the CPU only, as its CUDA provider did not start")
        self.device = f"cuda:{index or 0}" if on_cuda else "cpu"
        inputs = self._session.get_inputs()
        if [(i.name, i.type) for i in inputs] != [("frames", "tensor(uint8)")]:
            found = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ModelError(f"{path}: takes {found}, not one input `frames` of uint8; export it again")

    def _open(self, ort: Any, path: Path, index: int, *, use_cuda: bool) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from decoding, drawing and encoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        providers: list[Any] = [(_CUDA, {"device_id": index}), _CPU] if use_cuda else [_CPU]
        try:
            return ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its error classes share no base and change with its version
            raise ModelError(f"{path}: onnxruntime cannot open it ({one_line(error)})") from None

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = batch_for(frames_bhwc, self.metadata)
        try:
            output = self._session.run([self.metadata.head], {"frames": batch})[0]
        except Exception as error:
            raise ModelError(f"{self._where}: onnxruntime failed ({one_line(error)})") from None
        return prediction_of(np.asarray(output), len(frames_bhwc), self.metadata, self._where)

    def close(self) -> None:
        """Let the session go."""
        self._session = None
