"""Console output next to progress bars."""

from __future__ import annotations

import io
import logging

import pytest

from fada_deploy.cli import console
from fada_deploy.common.progress import progress_bar, set_progress_factory


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_message_during_a_progress_bar_is_on_its_own_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console.install()
    try:
        with progress_bar(4, "scoring") as bar:
            bar.update(1)
            logging.getLogger("fada_deploy.test").warning("a message")
            bar.update(3)
    finally:
        set_progress_factory(None)
    lines = terminal.getvalue().split("\n")
    # Everything after the last carriage return of a line stays visible.
    assert "warning: a message" in [line.rpartition("\r")[2] for line in lines]
    assert "4/4" in lines[-2]
