"""Several processes train one run: `torchrun --nproc-per-node 4 -m fada_deploy train …`.

The processes share each batch out by slots, take every loss as their part of the global batch's, and
add up their gradients, so that any number of them takes the step that one would. Without `torchrun`
there is one process, and everything here is what it is for one. Process 0, "main", writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fada_deploy.common.errors import UsageError


def join(device: torch.device) -> None:
    """Join the other processes of `torchrun`; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_device(name: str) -> str:
    """Return the device that this process should take: `auto` and `cuda` are one GPU a process."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{local}"
    return name


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Say whether this process is the one that writes and speaks."""
    return rank() == 0


def local_slots(batch: int) -> range:
    """Return the slots of a global batch that this process loads; raise `UsageError` if they cannot be equal."""
    if batch % size():
        raise UsageError(
            f"a batch of {batch} cannot be shared out among {size()} processes; give --batch {size()}"
        )
    each = batch // size()
    return range(rank() * each, (rank() + 1) * each)


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes."""
    if not dist.is_initialized():
        return value
    summed = value.clone()
    dist.all_reduce(summed)
    return summed


def any_of(flag: bool, device: torch.device) -> bool:
    """Say whether any process says so. Alone this asks no device, so that a GPU never waits for it."""
    return (
        flag if not dist.is_initialized() else bool(total(torch.tensor(int(flag), device=device)))
    )


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sum over the processes, in one exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def gather(value: Any) -> list[Any]:
    """Return every process's value, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait for all processes to come here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let process 0 go through first, so that the others find what it wrote."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


Module = TypeVar("Module", bound=nn.Module)


def synchronized(model: Module) -> Module:
    """Return the model with batch normalization over the global batch, which NVIDIA GPUs alone can do."""
    if size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
