"""Run `fada` and print the seconds until each step of its startup as one JSON line.

Arguments: start time by `time.monotonic()` of the parent process (the clock is shared by all
processes), "end" or "first-frame" (when to stop), and the arguments of `fada`.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

START, UNTIL, ARGUMENTS = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
marks: dict[str, float] = {}


def mark(step: str) -> None:
    marks.setdefault(step, time.monotonic() - START)


mark("Python started")
from fada_deploy.cli import main

mark("command line imported")
import fada_deploy.cli.infer  # noqa: F401
from fada_deploy.runtime import segmenter
from fada_deploy.runtime.backends import onnxruntime, openvino
from fada_deploy.runtime.writers import inference

mark("runtime imported")


def mark_around(owner: Any, name: str, before: str, after: str) -> None:
    """Replace `owner.name` by a function that marks a step before and one after the call."""
    function = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        mark(before)
        try:
            return function(*args, **kwargs)
        finally:
            mark(after)

    setattr(owner, name, call)


def mark_first_frame(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """Wrap `save_results`: print the marks after the first frame."""
    for item in save_results(*args, **kwargs):
        if "first frame written" not in marks:
            mark("first frame written")
            print(json.dumps(marks), flush=True)
            if UNTIL == "first-frame":
                os._exit(0)
        yield item


mark_around(segmenter.Segmenter, "__init__", "sources opened", "model opened")
for module in onnxruntime, openvino:
    mark_around(module, "import_backend", "backend import started", "backend imported")
save_results = inference.save_results
inference.save_results = mark_first_frame  # type: ignore[assignment]
sys.exit(main(ARGUMENTS))
