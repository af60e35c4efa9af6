"""Check that torch can be imported and can use the GPU.

The import runs in another process: it is slow, and this process does not need torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import Check, gpu_or_none, is_installed

_CODE = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.version.cuda, count]))
"""
_TIMEOUT_S = 60.0


class TorchCheck:
    """Imports torch in another process, if it is installed, while other checks run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._start_error: OSError | None = None
        if not is_installed("torch"):
            return
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- no input from outside
                [sys.executable, "-c", _CODE],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._start_error = error

    def checks(self) -> Iterator[Check]:
        """Wait for the process and return its result; nothing if torch is not installed."""
        if self._start_error is not None:
            raise self._start_error
        if self._process is None:
            return
        version = installed_version("torch") or "(version unknown)"
        reinstall = "pip install --force-reinstall torch"
        try:
            out, err = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            detail = f"{version} cannot be imported within {_TIMEOUT_S:.0f} s"
            yield Check("torch", "problem", detail, reinstall)
            return
        if self._process.returncode:
            lines = err.strip().splitlines() or [f"exit code {self._process.returncode}"]
            yield Check(
                "torch", "problem", f"{version} cannot be imported ({lines[-1]})", reinstall
            )
            return
        cuda, devices = json.loads(out.splitlines()[-1])
        if devices:
            gpus = f"{devices} GPU{'s' if devices > 1 else ''}"
            yield Check("torch", "ok", f"{version}, CUDA {cuda}, {gpus}")
        elif gpu_or_none() is None:
            yield Check("torch", "ok", f"{version}, trains on the CPU")
        elif cuda is None:
            detail = f"{version} is built without CUDA, so training does not use the GPU"
            yield Check("torch", "warning", detail, f"{reinstall}  # not the +cpu build")
        else:
            detail = f"{version} is built for CUDA {cuda}, but the GPU driver may be too old for it"
            remedy = "nvidia-smi  # shows the latest CUDA version that the driver supports"
            yield Check("torch", "problem", detail, remedy)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
