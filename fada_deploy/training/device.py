"""Choosing where to train, and in what precision."""

from __future__ import annotations

import os

import torch
from torch import nn

from fada_deploy.common.errors import DeviceError, UsageError
from fada_deploy.common.system import memory_mib, usable_cores


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda[:N]`; raise when it is not to be had."""
    if name == "auto":
        return choose_device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if (
        kind not in ("cpu", "cuda")
        or (number and not number.isdigit())
        or (kind == "cpu" and number)
    ):
        raise UsageError(f"no device {name!r}; there are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{name}: this machine shows {torch.cuda.device_count()} CUDA devices; try --device cpu"
        )
    if kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # A container's share of the host, not the host's cores.
        torch.set_num_threads(usable_cores())
    return torch.device(name)


def peak_memory_mib(device: torch.device) -> int:
    """Return the most memory held on a GPU, or by this process on a CPU, since it began, in MiB (0: not told)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) >> 20)
    return memory_mib(peak=True) or 0


def compiled(network: nn.Module) -> None:
    """Let torch compile a network, in place; its parameters keep their names."""
    # Source and target have two sizes, and each gets kernels of its own.
    network.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Raise `UsageError` where torch cannot compile for a device, before any work is done."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        # Whatever is missing (a C++ compiler, Triton, Python's headers), each raises something else.
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"--compile: torch cannot compile for {device} here ({reason}); leave it out"
        ) from None


def bf16_pays(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 matrices in hardware: a recent GPU, or a CPU with AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Newer than the oldest torch that is allowed; without it the safe answer is no.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))
