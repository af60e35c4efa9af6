"""Detect NVIDIA GPUs through the driver library alone.

This needs no CUDA package, so an engine for another GPU is rejected before any package is imported.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_DRIVER = "libcuda.so.1"


# The compute capabilities of TensorRT-RTX 1.7; it also supports later ones.
_RTX_CAPABILITIES = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name ("NVIDIA RTX A2000") and compute capability ("8.6")."""

    name: str
    compute_capability: str

    @property
    def architecture(self) -> str:
        """Return the compute capability in the form SM86."""
        return f"SM{self.compute_capability.replace('.', '')}"


def supports_rtx(gpu: Gpu) -> bool:
    """Return whether TensorRT-RTX runs on a GPU, as far as is known without the library."""
    major, minor = map(int, gpu.compute_capability.split("."))
    return (major, minor) in _RTX_CAPABILITIES or (major, minor) > max(_RTX_CAPABILITIES)


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
