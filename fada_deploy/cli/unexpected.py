"""What `fada` says about an exception that no command expects."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fada_deploy._version import __version__
from fada_deploy.common.errors import one_line
from fada_deploy.common.files import cache_folder

# As EX_SOFTWARE in sysexits.h.
EXIT_CODE = 70
# Parts of the messages of PyTorch, on GPUs and CPUs, and of ONNX Runtime.
_MEMORY_FAILURES = (
    "OutOfMemoryError",
    "can't allocate memory",
    "Failed to allocate memory",
    "failed to map segment",
    "bad allocation",
    "std::bad_alloc",
)
# Parts of the messages of Gloo and NCCL when another process of the training ends.
_CONNECTION_FAILURES = ("closed by peer", "connectFullMesh", "Connection reset", "remote process")
# Parts of messages of PyTorch, safetensors and NumPy when a file cannot be written.
_WRITE_FAILURES = (
    "PytorchStreamWriter failed",
    "No space left on device",
    "requested and 0 written",
)


def report(error: BaseException) -> tuple[str, int]:
    """Return one line about an unexpected exception, and the exit code.

    `main` prints an `OSError` itself. Of other types, a full disk and limits of memory and threads
    have lines of their own. For anything else, the traceback is written to a log file, which the
    line names.
    """
    text = one_line(error, with_type=True)
    if any(part in str(error) for part in _WRITE_FAILURES):
        return f"a file cannot be written ({one_line(error)}); check the space on the disk", 1
    if isinstance(error, MemoryError) or any(part in text for part in _MEMORY_FAILURES):
        return f"there is not enough memory ({text}); use a smaller batch or input size", 1
    if "can't start new thread" in str(error):
        return f"cannot start another thread ({text}); raise `ulimit -u`", 1
    path = _write_log(error)
    where = f"the details are in {path}" if path else "no log file could be written"
    is_one_of_several = os.environ.get("WORLD_SIZE", "1") != "1"
    if is_one_of_several and any(part in text for part in _CONNECTION_FAILURES):
        reason = f"the connection to another process of the training broke ({text})"
        return f"{reason}; see what that process reported; {where}", 1
    return f"unexpected error: {text}; {where}; please report it", EXIT_CODE


def _write_log(error: BaseException) -> Path | None:
    """Write the traceback to the cache folder, or else the temporary folder; return its path."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    lines = [f"fada_deploy {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n"]
    lines += traceback.format_exception(error)
    for folder in (_log_folder, lambda: Path(tempfile.gettempdir())):
        try:
            path = folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), "utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    return None


def _log_folder() -> Path:
    return cache_folder() / "logs"
