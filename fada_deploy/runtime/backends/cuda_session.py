"""Run an ONNX Runtime session on memory of CuPy, so that label maps are computed on the GPU."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fada_deploy.runtime.backends.base import Frames
from fada_deploy.runtime.backends.cuda_stream import MAX_CACHED_BATCH_SIZES, CudaStream

_LOGITS = "logits"


class CudaSession:
    """A session with head `logits` whose input and output stay on the device.

    Args:
        session: The session, on the device.
        stream: The stream of the copies.
        device: Type and number of the device, such as ("cuda", 0).
    """

    def __init__(self, session: Any, stream: CudaStream, device: tuple[str, int]) -> None:
        self._session, self._stream, self._device = session, stream, device
        (output,) = session.get_outputs()
        self._output_shape: tuple[int, ...] = tuple(output.shape[1:])
        # The buffers serve one caller at a time.
        self._lock = threading.Lock()
        # Batch size → pinned host memory, and the frames on the device.
        self._inputs: dict[int, tuple[Any, Any]] = {}

    @staticmethod
    def supports(session: Any) -> bool:
        """Return whether a session outputs float32 logits of a size that is known in advance."""
        outputs = session.get_outputs()
        return [(o.name, o.type) for o in outputs] == [(_LOGITS, "tensor(float)")] and all(
            isinstance(size, int) for size in outputs[0].shape[1:]
        )

    def run(self, batch: Frames) -> Any:
        """Return logits (B, K, h, w) float32 as a new device array for frames (B, H, W, 3) uint8.

        Raise `ModelError` for errors of the driver.
        """
        with self._lock:
            with self._stream.entered():
                staging, frames = self._buffers(batch)
                np.copyto(staging, batch)
                frames.set(staging, stream=self._stream.stream)
                logits = self._stream.cupy.empty((len(batch), *self._output_shape), np.float32)
                submitted = self._stream.stream.record()
            # ONNX Runtime has a stream of its own: it must not read the frames before they are
            # copied, nor write to memory that earlier kernels still read. Other threads can use
            # the stream during the run.
            self._stream.wait(submitted)
            binding = self._session.io_binding()
            binding.bind_input("frames", *self._device, np.uint8, frames.shape, frames.data.ptr)
            binding.bind_output(_LOGITS, *self._device, np.float32, logits.shape, logits.data.ptr)
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return logits

    def _buffers(self, batch: Frames) -> tuple[Any, Any]:
        if len(batch) not in self._inputs:
            if len(self._inputs) >= MAX_CACHED_BATCH_SIZES:
                self._inputs.clear()
            staging = self._stream.pinned(batch.shape, np.uint8)
            self._inputs[len(batch)] = staging, self._stream.cupy.empty(batch.shape, np.uint8)
        return self._inputs[len(batch)]
