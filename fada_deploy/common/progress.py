"""Progress of long work: library code reports it, the caller decides how to show it.

By default nothing is shown. The command line installs progress bars; a program that embeds the
library installs its own factory with `set_progress_factory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Progress(Protocol):
    """One running piece of work."""

    def update(self, n: int = 1) -> object:
        """Count `n` more finished units."""
        ...

    def set_postfix(self, values: Mapping[str, str]) -> object:
        """Show the latest values beside the bar."""
        ...


class ProgressFactory(Protocol):
    """Open a progress display for one piece of work."""

    def __call__(
        self, *, total: int | None, description: str, unit: str, initial: int
    ) -> AbstractContextManager[Progress]: ...


class _Silent:
    def update(self, n: int = 1) -> None:
        return None

    def set_postfix(self, values: Mapping[str, str]) -> None:
        return None


def _silent(**_: Any) -> AbstractContextManager[Progress]:
    return nullcontext(_Silent())


_factory: ProgressFactory = _silent


def set_progress_factory(factory: ProgressFactory | None) -> None:
    """Show the progress of all later work with `factory`; None shows nothing."""
    global _factory
    _factory = factory or _silent


def progress_bar(
    total: int | None, description: str, *, unit: str = "frame", initial: int = 0
) -> AbstractContextManager[Progress]:
    """Return a context manager that yields the `Progress` of one piece of work.

    `total` is the number of units, None if unknown; `initial` units are already done.
    """
    return _factory(total=total, description=description, unit=unit, initial=initial)
