"""A CUDA stream on one GPU, with memory on both sides, based on CuPy."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fada_deploy.common.errors import ModelError, one_line

# The bases of the errors of CuPy and the driver; the second one is for memory of the device too.
_ERRORS = (RuntimeError, MemoryError)
# Buffers are kept for this many batch sizes. A video has one, and a shorter last batch.
MAX_CACHED_BATCH_SIZES = 4


class CudaStream:
    """The stream of one backend: work runs in the order in which any thread submits it."""

    def __init__(self, cupy: Any, index: int) -> None:
        self.cupy = cupy
        self._index = index
        self._lock = threading.RLock()
        with cupy.cuda.Device(index):
            self.stream = cupy.cuda.Stream(non_blocking=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this device and stream current for the thread and keep other threads out.

        Raise `ModelError` for errors of the driver.
        """
        try:
            # A new Device object each time: it stores which device to restore, per `with` block.
            with self._lock, self.cupy.cuda.Device(self._index), self.stream:
                yield
        except _ERRORS as error:
            raise ModelError(f"the GPU failed ({one_line(error)})") from None

    def wait(self, event: Any) -> None:
        """Wait for an event of the stream; other threads can submit work meanwhile.

        Raise `ModelError` for errors of the driver.
        """
        try:
            event.synchronize()
        except _ERRORS as error:
            raise ModelError(f"the GPU failed ({one_line(error)})") from None

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return page-locked host memory, which the device can access directly."""
        array: NDArray[Any] = importlib.import_module("cupyx").empty_pinned(shape, dtype)
        return array

    def to_host(self, *arrays: Any) -> list[NDArray[Any]]:
        """Return copies of device arrays in host memory.

        Other threads can submit work while this one waits for the copies.
        """
        with self.entered():
            copies = [self.pinned(array.shape, array.dtype) for array in arrays]
            for copy, array in zip(copies, arrays, strict=True):
                array.get(stream=self.stream, out=copy, blocking=False)
            copied = self.stream.record()
        self.wait(copied)
        return copies

    def to_device(self, array: NDArray[Any]) -> Any:
        """Return a copy of a host array on the device."""
        return self.cupy.asarray(np.ascontiguousarray(array))
