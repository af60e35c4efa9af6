"""What is installed here and truly works, and what to type for the rest: `fada doctor`.

A check imports what it needs itself and may fail as it likes: it then is a line of the answer. A broken
OpenCV, for example, leaves all that needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fada_deploy.inspection.doctor.backends import (
    gpu_check,
    onnxruntime_checks,
    openvino_checks,
    some_engine,
    tensorrt_checks,
)
from fada_deploy.inspection.doctor.check import Check, State, guarded
from fada_deploy.inspection.doctor.machine import codecs, cores, disks, display, kernels
from fada_deploy.inspection.doctor.packages import clashes, extras, libraries, python
from fada_deploy.inspection.doctor.training import Torch

__all__ = ["Check", "State", "diagnose"]


def diagnose() -> list[Check]:
    """Return every check of this machine; takes some seconds, leaves no file of ours behind."""
    # Torch takes the longest to import, so it starts first, in a process of its own.
    torch = Torch()
    try:
        parts: list[tuple[str, Callable[[], Iterable[Check]]]] = [
            ("python", python),
            ("libraries", libraries),
            ("extras", extras),
            ("clashes", clashes),
            ("gpu", gpu_check),
            ("engines", some_engine),
            ("onnxruntime", onnxruntime_checks),
            ("openvino", openvino_checks),
            ("tensorrt", tensorrt_checks),
            ("torch", torch.checks),
            ("video", codecs),
            ("kernels", kernels),
            ("cores", cores),
            ("display", display),
            ("disk", disks),
        ]
        return [check for name, part in parts for check in guarded(name, part)]
    finally:
        torch.close()
