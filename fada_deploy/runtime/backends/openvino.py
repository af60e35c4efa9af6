"""The OpenVINO backend: Intel and other x86 CPUs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from fada_deploy.common.errors import ModelError, one_line
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
from fada_deploy.runtime.backends.onnx_file import read_model

_first_array = threading.Lock()


def crashes_openvino(metadata: ModelMetadata) -> bool:
    """Return whether OpenVINO might end the process when it compiles a file.

    OpenVINO 2026.4 does when it compiles int8 networks of some architectures (DDRNet, PIDNet) for a
    fixed batch.
    """
    return metadata.precision == "int8" and metadata.batch is not None


class OpenVinoBackend:
    """An ONNX model compiled by OpenVINO for the CPU, in the precision of the file."""

    name = "openvino"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str | int = "auto", parallel: int = 1) -> None:
        openvino = import_backend("openvino", "openvino")
        self.metadata = read_model(path)
        self._where = str(path)
        if crashes_openvino(self.metadata):
            raise ModelError(
                f"{path}: openvino cannot run an int8 file with a fixed batch; use the backend "
                "onnxruntime, or export it with a dynamic batch"
            )
        if (index := cuda_index(device)) is not None:
            raise cuda_unavailable_error(self.name, index, "runs on CPUs only")
        self.device = "cpu"
        self.parallel = parallel
        # The CPU plugin gives the thread that loads it an alternate signal stack and frees that
        # stack in the thread that unloads it. If the first is the main thread, a later signal such
        # as Ctrl-C crashes the process. A worker thread gets no signals.
        with ThreadPoolExecutor(1, "fada-openvino") as opener:
            compiled = opener.submit(self._compile, openvino, path).result()
        # The first access to an array initializes the Python binding. Two threads that do this at
        # the same time can deadlock, so do it here, once.
        with _first_array:
            openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True).data  # noqa: B018
        self._closed = False
        # A request owns its buffers and serves one caller at a time. None marks a closed model.
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(parallel):
            self._requests.put(compiled.create_infer_request())

    def _compile(self, openvino: Any, path: Path) -> Any:
        config = {
            "PERFORMANCE_HINT": "LATENCY" if self.parallel == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.parallel,
            "INFERENCE_NUM_THREADS": usable_cores(),
            # The default on CPUs with bf16 support is bf16, which changes labels.
            "INFERENCE_PRECISION_HINT": "f32",
            "LOG_LEVEL": "LOG_NONE",
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            inputs = [(i.any_name, i.element_type.get_type_name()) for i in model.inputs]
            if inputs != [("frames", "u8")]:
                listed = ", ".join(f"{name} {dtype}" for name, dtype in inputs)
                raise ModelError(
                    f"{path} has inputs {listed}, expected one input `frames` of uint8; "
                    "export it again"
                )
            compiled = core.compile_model(model, "CPU", config)
            compiled.output(self.metadata.head)  # raises if the model has no such output
        except RuntimeError as error:
            raise ModelError(f"{path}: openvino cannot open it ({one_line(error)})") from None
        return compiled

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = pad_batch(frames_bhwc, self.metadata)
        request = None if self._closed else self._requests.get()
        if request is None:
            # Wake the next waiting thread, too.
            self._requests.put(None)
            raise closed_model_error(self._where)
        try:
            request.infer({"frames": batch}, share_inputs=True)
            output = np.array(request.get_tensor(self.metadata.head).data)
        except RuntimeError as error:
            raise ModelError(f"{self._where}: openvino failed ({one_line(error)})") from None
        finally:
            if not self._closed:
                self._requests.put(request)
        output = unpad_output(output, len(frames_bhwc), self.metadata, self._where)
        return Prediction(output, self.metadata)

    def close(self) -> None:
        """Release the compiled model."""
        self._closed = True
        with suppress(Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put(None)
