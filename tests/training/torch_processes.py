"""Processes that have imported torch already: a new Python takes six seconds for it."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import redirect_stderr
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from fada_deploy.cli import main


def context() -> ForkServerContext:
    """Return a context whose processes are copies of one that has imported what training needs."""
    result = multiprocessing.get_context("forkserver")
    # The first step of an optimizer imports torch._dynamo, which takes seconds.
    result.set_forkserver_preload(["fada_deploy.training.run", "torch._dynamo"])
    return result


def run_processes(function: Callable[..., None], *arguments: object, count: int) -> None:
    """Call `function(number, *arguments)` in each of `count` processes; raise their errors."""
    context()  # All contexts of this kind share the process that is copied.
    start_processes(function, arguments, count, start_method="forkserver")


def run_as_torchrun(arguments: list[str], folder: Path, *, count: int) -> str:
    """Run `fada` in processes with the environment of torchrun; return what they report."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run_processes(_run_rank, arguments, str(folder), port, count, count=count)
    return "".join((folder / f"rank{number}.err").read_text() for number in range(count))


def _run_rank(number: int, arguments: list[str], folder: str, port: int, count: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with Path(folder, f"rank{number}.err").open("w") as log, redirect_stderr(log):
        try:
            main(arguments)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"fada ended with {end.code}; see {log.name}") from None
