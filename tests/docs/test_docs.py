"""The Python examples of the documentation run, page by page, as a reader would run them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from markdown_pages import README, ROOT, SITE_PAGES, code_blocks, page_name

from fada_deploy.training.methods import alignment

RUN = [
    page
    for page in (README, *SITE_PAGES)
    if any(block.language == "python" and not block.reason for block in code_blocks(page))
]


def test_guides_have_examples_that_run() -> None:
    docs = ROOT / "docs"
    assert {docs / "quick-start.md", *(docs / "tutorials").glob("*.md")} - set(RUN) == {
        docs / "tutorials" / "your-own-video.md"  # it trains
    }


@pytest.mark.parametrize("page", RUN, ids=page_name)
def test_examples_run(
    page: Path, example_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(example_files, folder)
    monkeypatch.chdir(folder)
    # A page adds a method.
    monkeypatch.setattr(alignment, "METHODS", dict(alignment.METHODS))
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in code_blocks(page):
        if block.language == "python" and not block.reason:
            exec(compile("\n" * block.line + block.text, page_name(page), "exec"), names)
