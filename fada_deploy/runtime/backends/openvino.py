"""OpenVINO: Intel CPUs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.cores import usable_cores
from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import (
    Frames,
    Prediction,
    batch_for,
    cuda_index,
    import_engine,
    one_line,
    prediction_of,
    refuse_cuda,
)
from fada_deploy.runtime.backends.onnx_file import read_model


class OpenVinoBackend:
    """A model compiled by OpenVINO for the CPU, in the precision that the file has."""

    name = "openvino"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        openvino = import_engine("openvino", "openvino")
        self.metadata = read_model(path)
        self._where = str(path)
        if cuda_index(device) is not None:
            raise refuse_cuda(self.name, device, "the CPU only")
        self.device = "cpu"
        self._request = self._compile(openvino, path).create_infer_request()
        # A request holds its own buffers: one caller at a time, which also suits a CPU.
        self._lock = threading.Lock()

    def _compile(self, openvino: Any, path: Path) -> Any:
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores(),
            # On CPUs that have it, bf16 is taken unless told otherwise, and labels then differ.
            "INFERENCE_PRECISION_HINT": "f32",
            "LOG_LEVEL": "LOG_NONE",
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            found = [(i.any_name, i.element_type.get_type_name()) for i in model.inputs]
            if found != [("frames", "u8")]:
                names = ", ".join(f"{name} {kind}" for name, kind in found)
                raise ModelError(f"{path}: takes {names}, not one input `frames` of uint8; export it again")
            compiled = core.compile_model(model, "CPU", config)
            self._output = compiled.output(self.metadata.head)
        except RuntimeError as error:
            raise ModelError(f"{path}: openvino cannot open it ({one_line(error)})") from None
        return compiled

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = batch_for(frames_bhwc, self.metadata)
        with self._lock:
            try:
                self._request.infer({"frames": batch}, share_inputs=True)
                output = np.array(self._request.get_tensor(self._output).data)
            except RuntimeError as error:
                raise ModelError(f"{self._where}: openvino failed ({one_line(error)})") from None
        return prediction_of(output, len(frames_bhwc), self.metadata, self._where)

    def close(self) -> None:
        """Let the compiled model go."""
        self._request = None
