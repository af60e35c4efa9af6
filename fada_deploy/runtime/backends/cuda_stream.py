"""One GPU, one stream of work on it, and memory for both sides, by way of CuPy."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fada_deploy.common.errors import ModelError, one_line


class CudaStream:
    """Where a backend's work goes, in order, from whichever thread."""

    def __init__(self, cupy: Any, index: int) -> None:
        self.cupy = cupy
        self._index = index
        self._lock = threading.RLock()
        with cupy.cuda.Device(index):
            self.stream = cupy.cuda.Stream(non_blocking=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this device and stream the thread's own, and keep other threads from putting work between.

        Raise `ModelError` for what the driver reports.
        """
        try:
            # A new Device each time: one object remembers what to return to, and threads would mix that up.
            with self._lock, self.cupy.cuda.Device(self._index), self.stream:
                yield
        except RuntimeError as error:
            # All of the driver's and CuPy's own errors are of this kind.
            raise ModelError(f"the GPU failed ({one_line(error)})") from None

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return memory of the host that the device reads and writes by itself."""
        array: NDArray[Any] = importlib.import_module("cupyx").empty_pinned(shape, dtype)
        return array

    def to_host(self, *arrays: Any) -> list[NDArray[Any]]:
        """Return device arrays as ones of the host; other threads may put work in while this one waits."""
        with self.entered():
            hosts = [self.pinned(array.shape, array.dtype) for array in arrays]
            for host, array in zip(hosts, arrays, strict=True):
                array.get(stream=self.stream, out=host, blocking=False)
            copied = self.stream.record()
        try:
            copied.synchronize()
        except RuntimeError as error:
            raise ModelError(f"the GPU failed ({one_line(error)})") from None
        return hosts

    def to_device(self, array: NDArray[Any]) -> Any:
        """Return a copy on the device."""
        return self.cupy.asarray(np.ascontiguousarray(array))
