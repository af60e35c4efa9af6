"""ONNX Runtime: the CPU, and CUDA through onnxruntime-gpu."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.errors import ModelError, one_line
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import usable_cores
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    batch_for,
    closed_model,
    cuda_index,
    cuda_unavailable,
    import_engine,
    prediction_of,
)
from fada_deploy.runtime.backends.onnx_file import read_model

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_SIZES_KEPT = 4


class OnnxRuntimeBackend:
    """A model in an ONNX Runtime session."""

    name = "onnxruntime"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str = "auto", parallel: int = 1) -> None:
        onnxruntime = import_engine("onnxruntime", "cpu")
        self.metadata = read_model(path)
        self._where = str(path)
        index = cuda_index(device)
        have = onnxruntime.get_available_providers()
        if index is not None and _CUDA not in have:
            raise cuda_unavailable(self.name, device, "the CPU only")
        use_cuda = _CUDA in have and device != "cpu"
        self._session = self._open(onnxruntime, path, index or 0, parallel, use_cuda=use_cuda)
        # A CUDA provider that does not start is replaced by the CPU in silence.
        on_cuda = self._session.get_providers()[0] == _CUDA
        if index is not None and not on_cuda:
            raise cuda_unavailable(
                self.name, device, "the CPU only, as its CUDA provider did not start"
            )
        self.device = f"cuda:{index or 0}" if on_cuda else "cpu"
        self.parallel = 1 if on_cuda else parallel
        self._bound = (
            _BoundRuns(onnxruntime, self._session, "cuda", index or 0) if on_cuda else None
        )
        inputs = self._session.get_inputs()
        if [(i.name, i.type) for i in inputs] != [("frames", "tensor(uint8)")]:
            found = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ModelError(
                f"{path}: takes {found}, not one input `frames` of uint8; export it again"
            )

    def _open(self, ort: Any, path: Path, index: int, parallel: int, *, use_cuda: bool) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, usable_cores() // parallel)
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
        session, bound = self._session, self._bound
        if session is None:
            raise closed_model(self._where)
        try:
            if bound is not None:
                output = bound.run(batch, self.metadata.head)
            else:
                output = session.run([self.metadata.head], {"frames": batch})[0]
        except Exception as error:
            raise ModelError(f"{self._where}: onnxruntime failed ({one_line(error)})") from None
        return prediction_of(np.asarray(output), len(frames_bhwc), self.metadata, self._where)

    def close(self) -> None:
        """Let the session go."""
        self._bound = self._session = None


class _BoundRuns:
    """Runs whose input stays in one place on the device, and whose output comes back in one copy.

    Left to itself a session allocates and frees both for each run.
    """

    def __init__(self, ort: Any, session: Any, device: str, index: int) -> None:
        self._ort, self._session = ort, session
        self._place = (device, index)
        self._inputs: dict[int, Any] = {}
        # The input's place is one caller's at a time.
        self._lock = threading.Lock()

    def run(self, batch: Frames, head: str) -> Any:
        with self._lock:
            held = self._inputs.get(len(batch))
            if held is None:
                # A stream has one batch size and a shorter last batch; more are not worth their memory.
                if len(self._inputs) >= _SIZES_KEPT:
                    self._inputs.clear()
                held = self._inputs[len(batch)] = self._ort.OrtValue.ortvalue_from_numpy(
                    batch, *self._place
                )
            else:
                held.update_inplace(batch)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("frames", held)
            binding.bind_output(head, *self._place)
            self._session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[0]
