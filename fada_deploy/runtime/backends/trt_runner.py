"""Run a deserialized engine with persistent buffers, one stream and a CUDA graph per batch size."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import Frames
from fada_deploy.runtime.backends.cuda_stream import MAX_CACHED_BATCH_SIZES, CudaStream
from fada_deploy.runtime.backends.trt_library import error_summary


@dataclass
class _BatchSize:
    """The resources of one batch size.

    `staging` is pinned host memory; `graph` is the captured run, None if it cannot be captured.
    """

    context: Any
    staging: Any
    frames: Any
    output: Any
    graph: Any


class EngineRunner:
    """One engine on one stream; `batch_range` is the smallest and the largest batch it accepts."""

    def __init__(
        self,
        trt: Any,
        engine: Any,
        log: Any,
        stream: CudaStream,
        metadata: ModelMetadata,
        batch_range: tuple[int, int],
    ) -> None:
        self._trt, self._engine, self._log, self._stream = trt, engine, log, stream
        self._metadata, self._batch_range = metadata, batch_range
        self._sizes: OrderedDict[int, _BatchSize] = OrderedDict()

    def run(self, frames_bhwc: Frames) -> Any:
        """Return the head's output for frames (B, H, W, 3) uint8 as a new device array.

        Larger batches than the engine accepts are split; smaller ones are padded with the last
        frame.
        """
        min_batch, max_batch = self._batch_range
        with self._stream.entered():
            outputs = []
            for start in range(0, len(frames_bhwc), max_batch):
                part = frames_bhwc[start : start + max_batch]
                padding = np.repeat(part[-1:], max(min_batch - len(part), 0), axis=0)
                output = self._run_part(np.concatenate([part, padding]) if len(padding) else part)
                outputs.append(output[: len(part)])
            joined = outputs[0] if len(outputs) == 1 else self._stream.cupy.concatenate(outputs)
            # Wait here, so that an asynchronous failure is reported by the run that caused it.
            self._stream.stream.synchronize()
            return joined

    def _run_part(self, part: Frames) -> Any:
        size = self._size(len(part))
        np.copyto(size.staging, part)
        size.frames.set(size.staging, stream=self._stream.stream)
        if size.graph is not None:
            size.graph.launch(stream=self._stream.stream)
        else:
            self._execute(size.context)
        output = size.output.copy()
        # The next part overwrites the staging memory.
        self._stream.stream.synchronize()
        return output

    def _size(self, count: int) -> _BatchSize:
        if count not in self._sizes:
            while len(self._sizes) >= MAX_CACHED_BATCH_SIZES:
                self._sizes.popitem(last=False)
            self._sizes[count] = self._prepare(count)
        self._sizes.move_to_end(count)
        return self._sizes[count]

    def _prepare(self, count: int) -> _BatchSize:
        """Allocate the buffers of a batch size, run once, and capture the second run."""
        context = self._create_context()
        head = self._metadata.head
        shape = (count, *self._metadata.input_size_hw, 3)
        if not context.set_input_shape("frames", shape):
            raise ModelError(
                f"the engine rejects frames of shape {shape}: {error_summary(self._log.errors)}"
            )
        dtypes = {"logits": np.float32, "labels": np.uint8}
        frames = self._stream.cupy.zeros(shape, np.uint8)
        output = self._stream.cupy.empty(tuple(context.get_tensor_shape(head)), dtypes[head])
        context.set_tensor_address("frames", frames.data.ptr)
        context.set_tensor_address(head, output.data.ptr)
        # The first run does lazy initialization, which must not be captured.
        self._execute(context)
        self._stream.stream.synchronize()
        staging = self._stream.pinned(shape, np.uint8)
        return _BatchSize(context, staging, frames, output, self._capture(context))

    def _create_context(self) -> Any:
        trt, engine = self._trt, self._engine
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # By default TensorRT-RTX compiles specialized kernels in the background during the
            # first runs, and a captured graph would keep the slow generic kernels.
            runtime_config = engine.create_runtime_config()
            runtime_config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise ModelError(
                f"the engine has no execution context: {error_summary(self._log.errors)}"
            )
        return context

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.stream.ptr):
            raise ModelError(f"the engine failed: {error_summary(self._log.errors)}")

    def _capture(self, context: Any) -> Any:
        """Return one run as a CUDA graph, None if the engine cannot be captured."""
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(
            self._stream.stream.ptr
        ):
            return None
        try:
            self._stream.stream.begin_capture()
            try:
                self._execute(context)
            finally:
                graph = self._stream.stream.end_capture()
        except (RuntimeError, ModelError):
            return None
        return graph

    @property
    def is_closed(self) -> bool:
        return self._engine is None

    def close(self) -> None:
        """Release all device memory; the engine is released last."""
        with self._stream.entered():
            self._sizes.clear()
            self._engine = None
