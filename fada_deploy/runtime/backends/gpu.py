"""Which NVIDIA GPU is there, asked of its driver alone.

No CUDA package is needed for that, so an engine of another card is refused before one is looked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class Gpu:
    """A card's name ("NVIDIA RTX A2000") and compute capability ("8.6")."""

    name: str
    compute_capability: str

    @property
    def architecture(self) -> str:
        """Return the compute capability as builders name it: SM86."""
        return f"SM{self.compute_capability.replace('.', '')}"


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU of that number, None when there is none or no driver for it."""
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
