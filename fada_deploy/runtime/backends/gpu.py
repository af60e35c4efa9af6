"""Detect NVIDIA GPUs through the driver library alone.

This needs no CUDA package, so an engine for another GPU is rejected before any package is imported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_DRIVER = "libcuda.so.1"


# The enumeration of TensorRT-RTX 1.7.
_RTX_ARCHITECTURES = ("SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name ("NVIDIA RTX A2000") and compute capability ("8.6")."""

    name: str
    compute_capability: str

    @property
    def architecture(self) -> str:
        """Return the compute capability in the form SM86."""
        return f"SM{self.compute_capability.replace('.', '')}"


def supports_rtx(gpu: Gpu, architectures: Sequence[str] = _RTX_ARCHITECTURES) -> bool:
    """Return whether TensorRT-RTX supports a GPU: one of its enumeration, or a later one."""
    numbers = [int(name.removeprefix("SM")) for name in architectures]
    own = int(gpu.architecture.removeprefix("SM"))
    return own in numbers or own > max(numbers)


def find_gpu(index: int = 0) -> Gpu | None:
    """Return a GPU by its number, None if there is no such GPU or no driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    return (
        None if failed else Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
    )
