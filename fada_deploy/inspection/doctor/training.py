"""Does torch load and see the GPU: asked of another process, as nothing of it is needed in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import Check, card, is_here

_CODE = (
    "import json, torch; "
    "print(json.dumps([torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0]))"
)
_PATIENCE_S = 60.0


class Torch:
    """An import of torch that goes on beside the other checks, where torch is installed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._refused: OSError | None = None
        if not is_here("torch"):
            return
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE],
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
        except OSError as error:
            self._refused = error

    def checks(self) -> Iterator[Check]:
        """Say what came of it; nothing where torch is not installed."""
        if self._refused is not None:
            raise self._refused
        if self._process is None:
            return
        version = installed_version("torch") or "(version unknown)"
        again = "pip install --force-reinstall torch"
        try:
            out, err = self._process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            yield Check(
                "torch", "bad", f"{version} does not load within {_PATIENCE_S:.0f} s", again
            )
            return
        if self._process.returncode:
            lines = err.strip().splitlines() or [f"exit code {self._process.returncode}"]
            yield Check("torch", "bad", f"{version} does not load ({lines[-1]})", again)
            return
        cuda, devices = json.loads(out.splitlines()[-1])
        if devices:
            yield Check(
                "torch",
                "ok",
                f"{version} loads, CUDA {cuda}, {devices} GPU{'s' if devices > 1 else ''}",
            )
        elif card() is None:
            yield Check("torch", "ok", f"{version} loads, trains on the CPU")
        elif cuda is None:
            found = f"{version} loads, but is built without CUDA, so the GPU stands idle"
            yield Check("torch", "note", found, f"{again}  # not the +cpu build")
        else:
            found = f"{version} loads, but its CUDA {cuda} sees no GPU: the driver may be too old for it"
            yield Check("torch", "bad", found, "nvidia-smi  # says which CUDA the driver takes")

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
