"""What the commands that train a run say at its end, and when it is interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fada_deploy.cli.console import emit_json, log, shown_files

if TYPE_CHECKING:
    import torch

    from fada_deploy.training.result import TrainingResult


@contextmanager
def resumable(
    run: Path,
    device: torch.device,
    *,
    less_memory: str = "--accumulate 2, or with a smaller --batch or --size",
) -> Iterator[None]:
    """Raise errors that tell the user how to continue; `less_memory` names options for a rerun."""
    import torch

    from fada_deploy.common.errors import DeviceError, InterruptedRunError
    from fada_deploy.common.runs import CONFIG

    try:
        yield
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"{device} has too little memory for this run; start again with {less_memory}"
        ) from None
    except KeyboardInterrupt:
        if not (run / CONFIG).is_file():
            raise
        raise InterruptedRunError(
            f"interrupted; resume with: fada train --resume {shlex.quote(str(run))}"
        ) from None


def write_run_report(result: TrainingResult, device: torch.device) -> None:
    from importlib.util import find_spec

    from fada_deploy.common.extras import install_command
    from fada_deploy.training.reporting.report import REPORT, write_report

    if find_spec("matplotlib") is None:
        log(f"no report, because matplotlib is not installed; run: {install_command('plot')}")
        return
    path = result.run / REPORT
    write_report([result.run], path, frames=result.frames, device=device)
    log(f"report: {path}")


def print_result(result: TrainingResult, *, as_json: bool) -> int:
    if as_json:
        emit_json(
            {
                "run": str(result.run),
                "scores": result.scores,
                "bad_files": list(result.bad_files),
            }
        )
    for line in shown_files(result.bad_files):
        log(f"not used: {line}")
    log(f"done: {result.run}")
    log(f"next: fada export {shlex.quote(str(result.run))}")
    return 1 if result.bad_files else 0
