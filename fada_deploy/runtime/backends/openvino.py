"""OpenVINO: Intel CPUs."""

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
    batch_for,
    closed_model,
    cuda_index,
    cuda_unavailable,
    import_engine,
    prediction_of,
)
from fada_deploy.runtime.backends.onnx_file import read_model

_first_array = threading.Lock()


class OpenVinoBackend:
    """A model compiled by OpenVINO for the CPU, in the precision that the file has."""

    name = "openvino"
    device: str
    metadata: ModelMetadata

    def __init__(self, path: Path, *, device: str = "auto", parallel: int = 1) -> None:
        openvino = import_engine("openvino", "openvino")
        self.metadata = read_model(path)
        self._where = str(path)
        if cuda_index(device) is not None:
            raise cuda_unavailable(self.name, device, "the CPU only")
        self.device = "cpu"
        self.parallel = parallel
        # Its plugin gives the thread that loads it a stack for signals, and frees it in whichever thread lets the
        # plugin go. A signal in the main thread, as Ctrl-C, would then end the process. This thread gets none.
        with ThreadPoolExecutor(1, "fada-openvino") as opener:
            compiled = opener.submit(self._compile, openvino, path).result()
        # What its binding looks up at the first array, with the interpreter let go half way, hangs for ever when
        # two threads come to it at once.
        with _first_array:
            openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True).data  # noqa: B018
        self._closed = False
        # A request holds its own buffers: one caller at a time. None says that there will be no more.
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(parallel):
            self._requests.put(compiled.create_infer_request())

    def _compile(self, openvino: Any, path: Path) -> Any:
        config = {
            "PERFORMANCE_HINT": "LATENCY" if self.parallel == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.parallel,
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
                raise ModelError(
                    f"{path}: takes {names}, not one input `frames` of uint8; export it again"
                )
            compiled = core.compile_model(model, "CPU", config)
            self._output = compiled.output(self.metadata.head)
        except RuntimeError as error:
            raise ModelError(f"{path}: openvino cannot open it ({one_line(error)})") from None
        return compiled

    def submit(self, frames_bhwc: Frames) -> Prediction:
        """Run frames (B, H, W, 3) uint8 RGB; see `Backend.submit`."""
        batch = batch_for(frames_bhwc, self.metadata)
        request = None if self._closed else self._requests.get()
        if request is None:
            self._requests.put(None)
            raise closed_model(self._where)
        try:
            request.infer({"frames": batch}, share_inputs=True)
            output = np.array(request.get_tensor(self._output).data)
        except RuntimeError as error:
            raise ModelError(f"{self._where}: openvino failed ({one_line(error)})") from None
        finally:
            if not self._closed:
                self._requests.put(request)
        return prediction_of(output, len(frames_bhwc), self.metadata, self._where)

    def close(self) -> None:
        """Let the compiled model go."""
        self._closed = True
        with suppress(Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put(None)
