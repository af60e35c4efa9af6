"""Data-parallel training of one run: `torchrun --nproc-per-node 4 -m fada_deploy train ...`.

Each process loads its slots of the global batch and divides its losses by the size of the global
batch; the gradients are summed over all processes. The steps therefore do not depend on the number
of processes, except for random choices of self-training, SIBAN and AdaptPatch. Without `torchrun`
every function here does what a single process needs. Only process 0, the main process, writes files
and reports.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fada_deploy.common.errors import FadaError, UsageError
from fada_deploy.common.progress import set_progress_factory

Module = TypeVar("Module", bound=nn.Module)

# The other processes wait while the main process samples videos, renders or scores, which can take
# hours. torchrun notices a process that has ended without this limit.
TIMEOUT = timedelta(days=1)


def initialize(device: torch.device) -> None:
    """Join the process group of `torchrun`, if there is one.

    Every process but the main one then logs only errors and shows no progress. Raise `UsageError`
    if torchrun could not restart the processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            # Collectives of objects use the current device, which is GPU 0 in every process.
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **_rendezvous())
        if not is_main_process():
            logging.getLogger("fada_deploy").setLevel(logging.ERROR)
            set_progress_factory(None)


def require_single_process(what: str) -> None:
    """Raise `UsageError` if torchrun started this process, and it did not join the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        raise UsageError(
            f"{what} cannot run under torchrun, because every process would train the same run; "
            "start `fada train` with torchrun instead"
        )


def _rendezvous() -> dict[str, Any]:
    """Return the arguments of `init_process_group` with which processes find each other.

    torchrun keeps its store when it restarts the processes, with the addresses of those that ended.
    On one machine, each restart therefore gets names of its own. The agents of several machines
    count restarts differently, so there torchrun must start a store for each restart.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    if int(environment.get("GROUP_WORLD_SIZE", "1")) > 1:
        if environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            raise UsageError(
                "torchrun cannot restart the processes of several machines with a shared store; "
                "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each machine"
            )
        return {}
    store, rank, size = next(iter(rendezvous("env://")))
    prefix = f"restart-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return {"store": PrefixStore(prefix, store), "rank": rank, "world_size": size}


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_device(name: str) -> str:
    """Return the device name for this process: under `torchrun` one GPU each for auto and cuda."""
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{local_rank}"
    return name


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this process writes files and reports."""
    return rank() == 0


def local_slots(batch: int) -> range:
    """Return the slots of a global batch that this process loads.

    Raise `UsageError` if the batch cannot be divided equally among the processes.
    """
    if batch % world_size():
        suggestion = -(-batch // world_size()) * world_size()
        raise UsageError(
            f"batch must be a multiple of {world_size()} (number of processes), got {batch}; "
            f"use --batch {suggestion}"
        )
    count = batch // world_size()
    return range(rank() * count, (rank() + 1) * count)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is true in any process. A single process does not touch the device."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)))


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sum over all processes, in one collective call."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def all_gather(value: Any) -> list[Any]:
    """Return the value of every process, ordered by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_pixels(value: Tensor) -> Tensor:
    """Return the elements of a tensor of every process, flattened and ordered by rank.

    The tensors must have equal shapes.
    """
    if not dist.is_initialized():
        return value.flatten()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat([part.flatten() for part in parts])


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process first, so that the others can read the files it writes.

    If it raises a `FadaError` there, the other processes raise one without running the block.
    """
    if not is_main_process():
        if not all_gather(None)[0]:
            raise FadaError("stopped, because the main process failed; see its error")
        yield
        return
    try:
        yield
    except FadaError:
        all_gather(False)
        raise
    all_gather(True)


def convert_sync_batch_norm(model: Module) -> Module:
    """Return the model with batch normalization over the global batch; several processes need GPUs.

    A single process gets the model unchanged.
    """
    if world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
