"""Check what is installed on this machine and whether it works, as `fada doctor` does.

Each check imports what it needs and may fail in any way; the failure becomes a problem in the
report and does not affect the other checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fada_deploy.inspection.doctor.backends import (
    backend_check,
    cupy_check,
    gpu_check,
    onnxruntime_checks,
    openvino_checks,
    tensorrt_checks,
)
from fada_deploy.inspection.doctor.check import Check, State, run_checks
from fada_deploy.inspection.doctor.machine import (
    core_checks,
    disk_checks,
    display_check,
    kernel_check,
    video_checks,
)
from fada_deploy.inspection.doctor.packages import (
    clash_checks,
    extra_checks,
    library_checks,
    python_check,
)
from fada_deploy.inspection.doctor.training import TorchCheck

__all__ = ["Check", "State", "diagnose"]


def diagnose() -> list[Check]:
    """Run all checks. They take a few seconds and change nothing on this machine."""
    # Importing torch takes longest, so it runs in another process meanwhile.
    torch = TorchCheck()
    try:
        groups: list[tuple[str, Callable[[], Iterable[Check]]]] = [
            ("python", python_check),
            ("libraries", library_checks),
            ("extras", extra_checks),
            ("clashes", clash_checks),
            ("gpu", gpu_check),
            ("backends", backend_check),
            ("onnxruntime", onnxruntime_checks),
            ("openvino", openvino_checks),
            ("tensorrt", tensorrt_checks),
            ("cupy", cupy_check),
            ("torch", torch.checks),
            ("video", video_checks),
            ("kernels", kernel_check),
            ("cores", core_checks),
            ("display", display_check),
            ("disk", disk_checks),
        ]
        return [check for name, checks in groups for check in run_checks(name, checks)]
    finally:
        torch.close()
