"""One line of `fada doctor`, and what becomes of a check that fails."""

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

if TYPE_CHECKING:
    from fada_deploy.runtime.backends.gpu import Gpu

State = Literal["ok", "note", "bad"]
_LONGEST = 300


@dataclass(frozen=True)
class Check:
    """What was found of one thing. `remedy` is what to type, "" where nothing is to be done.

    `bad` fails somewhere or gives another answer than was asked for; `note` costs speed or a convenience.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def guarded(name: str, part: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return a part's checks; one that raises gives what it had, and a bad line with the exception's last line."""
    done: list[Check] = []
    try:
        for check in part():
            done.append(check)
    except Exception as error:
        # A library that does not load has a line of its own, further up.
        again = "fada doctor  # again, once what is above is mended"
        report = "fada doctor --json  # and report what it says"
        done.append(
            Check(
                name, "bad", last_line(error), again if isinstance(error, ImportError) else report
            )
        )
    return done


def last_line(error: BaseException) -> str:
    """Return an exception as one line, its type in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}"[:_LONGEST] if lines else type(error).__name__


def said_to_type(text: str) -> tuple[str, str]:
    """Split one of this package's messages into what is so and what to type."""
    found, _, remedy = text.partition("; type: ")
    return found, remedy


def card() -> Gpu | None:
    """Return the GPU; None too where the runtime does not load, which has a line of its own."""
    try:
        from fada_deploy.runtime.backends.gpu import find_gpu
    except ImportError:
        return None
    return find_gpu()


def is_here(package: str) -> bool:
    """Say whether a package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        return package in sys.modules


@contextmanager
def overheard() -> Iterator[Callable[[], str]]:
    """Keep what libraries print, from C++ too, off the terminal; yield a function that gives the reason in it.

    That is the last line that names a missing library, else the last that sounds like a reason, else "".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as heard:
        kept = [(number, os.dup(number)) for number in (1, 2)]

        def reason() -> str:
            heard.flush()
            heard.seek(0)
            said = re.sub(r"\x1b\[[0-9;]*m", "", heard.read())
            # onnxruntime puts the time and places in its source in front.
            said = re.sub(r"^.*\.cc:\d+[^\]\n]*\] ", "", said, flags=re.MULTILINE)
            for sign in (r"[^\s:]+: cannot open.*", r".*(?:fail|error|require).*"):
                if telling := re.findall(sign, said, re.IGNORECASE):
                    return str(telling[-1]).strip()[:_LONGEST]
            return ""

        try:
            for number, _ in kept:
                os.dup2(heard.fileno(), number)
            with redirect_stdout(heard), redirect_stderr(heard):
                yield reason
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
