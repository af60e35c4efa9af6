"""Interrupt a training in this process as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fada_deploy.training.loop import TrainingLoop


@contextmanager
def interrupted_after(iterations: int, stage: str) -> Iterator[None]:
    """Within the context, send SIGINT once, after some logged iterations of a stage."""
    log, logged = TrainingLoop.log, 0

    def interrupting_log(self: TrainingLoop, *values: Any) -> None:
        nonlocal logged
        log(self, *values)
        if self.folder.name == stage:
            logged += 1
            if logged == iterations:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "log", interrupting_log)
        yield
