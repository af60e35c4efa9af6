"""The one error tree of the package.

Every message says what was found, what is allowed and what to do about it. The command line
prints it as one line and exits with `exit_code`; library callers catch `FadaError`.

Exit codes of every command: 0 done, 1 failed (or partly failed after finishing the good part),
2 usage, 3 a quality gate refused, 130 interrupted.
"""

from __future__ import annotations


class FadaError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1


class UsageError(FadaError):
    """The caller asked for something that does not exist or cannot be combined."""

    exit_code = 2


class DataError(FadaError):
    """A data set, image, video or label file cannot be used."""


class ModelError(FadaError):
    """A model file or run cannot be used."""


class DeviceError(FadaError):
    """The device or backend that was asked for is not to be had."""


class ToleranceError(FadaError):
    """A quality gate refused a product; nothing was written under its final name."""

    exit_code = 3


class MissingExtraError(UsageError):
    """An optional package is not installed; the message holds the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; type: pip install 'fada_deploy[{extra}]'")


class InterruptedRunError(FadaError):
    """Work was stopped by a signal after its state was saved."""

    exit_code = 130


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """Return the last non-empty line of an exception's message, shortened to 300 characters.

    The type's name stands for an empty message; `with_type` puts it in front of any other.
    """
    kind = type(error).__name__
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return kind
    return (f"{kind}: {lines[-1]}" if with_type else lines[-1])[:300]
