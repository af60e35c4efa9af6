"""Runs a deserialized engine: memory that stays, one stream, a CUDA graph for each batch size."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.base import Frames
from fada_deploy.runtime.backends.cuda_stream import CudaStream
from fada_deploy.runtime.backends.trt_library import said

# A stream has one batch size and a shorter last batch; each size has its own memory on the device.
_SIZES_KEPT = 4


@dataclass
class _Size:
    """What one batch size has: an execution context, memory on both sides, and the captured run."""

    context: Any
    staging: Any
    frames: Any
    output: Any
    graph: Any


class EngineRunner:
    """One engine on one lane; `profile` is the least and the largest batch that it takes."""

    def __init__(
        self,
        trt: Any,
        engine: Any,
        log: Any,
        lane: CudaStream,
        metadata: ModelMetadata,
        profile: tuple[int, int],
    ) -> None:
        self._trt, self._engine, self._log, self._lane = trt, engine, log, lane
        self._metadata, self._profile = metadata, profile
        self._sizes: OrderedDict[int, _Size] = OrderedDict()

    def run(self, frames_bhwc: Frames) -> Any:
        """Return the head's output for frames (B, H, W, 3) uint8, on the device and the caller's to keep.

        More than the engine takes at once go in parts, fewer are padded with the last one.
        """
        least, most = self._profile
        with self._lane.entered():
            parts = []
            for start in range(0, len(frames_bhwc), most):
                part = frames_bhwc[start : start + most]
                padding = np.repeat(part[-1:], max(least - len(part), 0), axis=0)
                output = self._run_part(np.concatenate([part, padding]) if len(padding) else part)
                parts.append(output[: len(part)])
            joined = parts[0] if len(parts) == 1 else self._lane.cupy.concatenate(parts)
            # A failure on the device is to be told of the run that it belongs to.
            self._lane.stream.synchronize()
            return joined

    def _run_part(self, part: Frames) -> Any:
        size = self._size(len(part))
        np.copyto(size.staging, part)
        size.frames.set(size.staging, stream=self._lane.stream)
        if size.graph is not None:
            size.graph.launch(stream=self._lane.stream)
        else:
            self._execute(size.context)
        output = size.output.copy()
        # The staging memory is written again by the next part.
        self._lane.stream.synchronize()
        return output

    def _size(self, count: int) -> _Size:
        if count not in self._sizes:
            while len(self._sizes) >= _SIZES_KEPT:
                self._sizes.popitem(last=False)
            self._sizes[count] = self._make(count)
        self._sizes.move_to_end(count)
        return self._sizes[count]

    def _make(self, count: int) -> _Size:
        """Set up one batch size, run it once, and capture the second run."""
        context = self._context()
        head = self._metadata.head
        shape = (count, *self._metadata.input_size_hw, 3)
        if not context.set_input_shape("frames", shape):
            raise ModelError(
                f"the engine takes no frames of shape {shape}: {said(self._log.errors)}"
            )
        kinds = {"logits": np.float32, "labels": np.uint8}
        frames = self._lane.cupy.zeros(shape, np.uint8)
        output = self._lane.cupy.empty(tuple(context.get_tensor_shape(head)), kinds[head])
        context.set_tensor_address("frames", frames.data.ptr)
        context.set_tensor_address(head, output.data.ptr)
        # The first run sets up what must not be captured.
        self._execute(context)
        self._lane.stream.synchronize()
        staging = self._lane.pinned(shape, np.uint8)
        return _Size(context, staging, frames, output, self._captured(context))

    def _context(self) -> Any:
        trt, engine = self._trt, self._engine
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # RTX compiles for a shape when it meets one, by default behind the first runs; a captured graph
            # would keep the slow kernels of those.
            runtime_config = engine.create_runtime_config()
            runtime_config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise ModelError(f"the engine cannot be set up to run: {said(self._log.errors)}")
        return context

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._lane.stream.ptr):
            raise ModelError(f"the engine failed: {said(self._log.errors)}")

    def _captured(self, context: Any) -> Any:
        """Return a run as a CUDA graph, None where the engine cannot be captured."""
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(
            self._lane.stream.ptr
        ):
            return None
        try:
            self._lane.stream.begin_capture()
            try:
                self._execute(context)
            finally:
                graph = self._lane.stream.end_capture()
        except (RuntimeError, ModelError):
            return None
        return graph

    def close(self) -> None:
        """Let all memory on the device go; the engine goes last."""
        with self._lane.entered():
            self._sizes.clear()
            self._engine = None
