"""Training device, reduced precision and deterministic algorithms."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fada_deploy.common.errors import DeviceError, UsageError
from fada_deploy.common.system import memory_mib, usable_cores


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    On a CPU, also set the number of threads. Raise `UsageError` for another name and `DeviceError`
    if the device does not exist.
    """
    if name == "auto":
        return choose_device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    kind, _, number = name.partition(":")
    num_gpus = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= num_gpus:
        raise DeviceError(
            f"{name} is not available: this machine has {num_gpus} CUDA devices; use --device cpu"
        )
    if kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # torch counts the cores of the host, not those that a container may use.
        torch.set_num_threads(usable_cores())
    return torch.device(name)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak of `peak_memory_mib` on a GPU; a process has one peak on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> int:
    """Return the peak memory in MiB: allocated on a GPU, resident in this process on a CPU.

    0 if unknown.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) >> 20)
    return memory_mib(peak=True) or 0


def copy_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; the host does not wait for a GPU.

    On a CPU the tensor shares the memory of the array.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    # Only a copy from pinned memory is asynchronous.
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let PyTorch use deterministic algorithms only, if `enabled`; warn of operations without one.

    A GPU then computes the same bits each time, and is slower.
    """
    if not enabled:
        yield
        return
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers in hardware.

    Recent GPUs do, and CPUs with AMX or AVX-512 BF16.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The oldest supported torch lacks this function; then assume no support.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
