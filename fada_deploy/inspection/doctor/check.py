"""The result of one check of `fada doctor`, and helpers that the checks share."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from fada_deploy.common.errors import one_line

if TYPE_CHECKING:
    from fada_deploy.runtime.backends.gpu import Gpu

State = Literal["ok", "info", "warning", "problem"]
_MAX_REASON = 300


@dataclass(frozen=True)
class Check:
    """The result of one check.

    `state` is "ok", "info" (neutral), "warning" (slower or less convenient) or "problem" (something
    fails, or gives wrong results). `remedy` is a command that helps; "" if there is none.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


def run_checks(name: str, checks: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return the results of `checks`; an exception becomes a problem called `name`."""
    results: list[Check] = []
    try:
        for check in checks():
            results.append(check)
    except Exception as error:
        # A library that does not load has a problem of its own, which is listed earlier.
        remedy = (
            "fada doctor  # again, after the problems above are solved"
            if isinstance(error, ImportError)
            else "fada doctor --json  # and report a bug with its output"
        )
        results.append(Check(name, "problem", one_line(error, with_type=True), remedy))
    return results


def gpu_or_none() -> Gpu | None:
    """Return the first NVIDIA GPU; None if there is none, or if the runtime cannot be imported."""
    try:
        from fada_deploy.runtime.backends.gpu import find_gpu
    except ImportError:
        return None
    return find_gpu()


def is_installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was added to sys.modules by hand has no spec
        return package in sys.modules


@contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Hide what libraries print, also from C++; yield a function that returns the likely error.

    It returns the last line that names a missing library, otherwise the last line that reads like
    an error, otherwise "".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        originals = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]

        def reason() -> str:
            output.flush()
            output.seek(0)
            text = re.sub(r"\x1b\[[0-9;]*m", "", output.read())
            # onnxruntime prefixes its messages with the time and the place in its source code.
            text = re.sub(r"^.*\.cc:\d+[^\]\n]*\] ", "", text, flags=re.MULTILINE)
            for pattern in (r"[^\s:]+: cannot open.*", r".*(?:fail|error|require).*"):
                if matches := re.findall(pattern, text, re.IGNORECASE):
                    return str(matches[-1]).strip()[:_MAX_REASON]
            return ""

        try:
            for descriptor, _ in originals:
                os.dup2(output.fileno(), descriptor)
            with redirect_stdout(output), redirect_stderr(output):
                yield reason
        finally:
            for descriptor, original in originals:
                os.dup2(original, descriptor)
                os.close(original)
