"""Progress of long-running work: library code reports it, the application shows it.

Nothing is shown by default. The command line shows progress bars; an application that embeds the
library can install its own display with `set_progress_factory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Progress(Protocol):
    """The progress of one task."""

    def update(self, n: int = 1) -> object:
        """Add `n` finished units."""
        ...

    def set_postfix(self, values: Mapping[str, str]) -> object:
        """Show the latest values beside the bar."""
        ...


class ProgressFactory(Protocol):
    """Open the progress display of one task."""

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
    """Show the progress of later tasks with `factory`; None shows nothing."""
    global _factory
    _factory = factory or _silent


def progress_bar(
    total: int | None, description: str, *, unit: str = "frame", initial: int = 0
) -> AbstractContextManager[Progress]:
    """Return a context manager that yields the `Progress` of one task.

    `total` is the number of units, None if unknown. `initial` units are already finished.
    """
    return _factory(total=total, description=description, unit=unit, initial=initial)
