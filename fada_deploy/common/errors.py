"""The exceptions of this package.

A message is one line: what was found, what is allowed, what to do. The command line prints it and
exits with `exit_code`; library callers catch `FadaError`.

Exit codes of every command: 0 done, 1 failed (or partly failed after finishing the good part),
2 usage, 3 a tolerance was exceeded, 70 an unexpected error, 130 interrupted.
"""

from __future__ import annotations

from fada_deploy.common.extras import install_command


class FadaError(Exception):
    """Base class of all errors that this package raises on purpose."""

    exit_code = 1


class UsageError(FadaError):
    """An argument is unknown or invalid, or arguments cannot be combined."""

    exit_code = 2


class DataError(FadaError):
    """A data set, image, video or label file cannot be used."""


class UnwritableFrameError(DataError):
    """An image that its file format cannot store, for example because it is too large."""


class ModelError(FadaError):
    """A model file or a run cannot be used."""


class DeviceError(FadaError):
    """A requested device or backend is not available."""


class ToleranceError(FadaError):
    """A result differs by more than its tolerance; no file got its final name."""

    exit_code = 3


class MissingExtraError(UsageError):
    """An optional package is not installed; the message contains the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: {install_command(extra)}")
        self._arguments = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Make it again from its arguments; it is sent between processes."""
        return type(self), self._arguments


class InterruptedRunError(FadaError):
    """A signal stopped the work after its state was saved."""

    exit_code = 130


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """Return the last non-empty line of an exception's message, shortened to 300 characters.

    An empty message is replaced by the name of the type; `with_type` adds the name to the others.
    """
    kind = type(error).__name__
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return kind
    return (f"{kind}: {lines[-1]}" if with_type else lines[-1])[:300]
