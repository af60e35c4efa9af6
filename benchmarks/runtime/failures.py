"""Part `failures`: time from a failure in one stage until the run has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from clip import LoopedSource
from processes import run_job

from fada_deploy.common.system import throughput_parallelism
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.writers.save import SaveOptions, save_results
from fada_deploy.runtime.writers.video_writer import VideoWriter

FAILING_STAGES = ("reader", "network", "drawing", "writer")
FAILS_AT_FRAME = 20


class InjectedError(RuntimeError):
    """The failure that is injected into a stage."""


class FaultInjector:
    """Raises `InjectedError` at call number `FAILS_AT_FRAME` + 1 and records the time."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._remaining = FAILS_AT_FRAME
        self.raised_at: float | None = None

    def __call__(self) -> None:
        self._remaining -= 1
        if self._remaining < 0:
            self.raised_at = self.raised_at or time.perf_counter()
            raise InjectedError(self._stage)


def _inject(
    stage: str, injector: FaultInjector, source: LoopedSource, segmenter: Segmenter
) -> AbstractContextManager[Any]:
    """Return a context in which the stage fails when the injector raises."""

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            injector()
            return function(*args, **kwargs)

        return call

    if stage == "reader":
        frames = source.frames

        def read() -> Iterator[Any]:
            for item in frames():
                injector()
                yield item

        return mock.patch.object(source, "frames", read)
    if stage == "network":
        return mock.patch.object(segmenter.backend, "submit", failing(segmenter.backend.submit))
    if stage == "drawing":
        draw = failing(OverlayRenderer.draw_for_video)
        return mock.patch.object(OverlayRenderer, "draw_for_video", draw)
    return mock.patch.object(VideoWriter, "write", failing(VideoWriter.write))


def job(options: dict[str, Any]) -> dict[str, Any]:
    """Let one stage fail; return how long the run took to end, its error and what it left."""
    stage = options["stage"]
    source = LoopedSource(Path(options["clip"]), 10 * FAILS_AT_FRAME)
    injector, cause = FaultInjector(stage), "none"
    with TemporaryDirectory() as folder:
        with Segmenter(
            options["model"], backend=options["backend"], parallel=throughput_parallelism()
        ) as segmenter:
            try:
                with _inject(stage, injector, source, segmenter):
                    for _ in save_results(segmenter, [source], SaveOptions(Path(folder))):
                        pass
            except InjectedError as error:
                cause = str(error)
        ended = time.perf_counter()
        files = [
            str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()
        ]
    if injector.raised_at is None:
        raise SystemExit(f"the failure in stage {stage} was not reached; update failures.py")
    # The kernel loader belongs to the process, not to the run.
    threads = [t.name for t in threading.enumerate() if t.name.startswith("fada-")]
    threads = [name for name in threads if name != "fada-kernels"]
    return {
        "stage": stage,
        "seconds": ended - injector.raised_at,
        "cause": cause,
        "files_left": files,
        "threads_left": threads,
    }


def run(common: dict[str, Any]) -> list[dict[str, Any]]:
    """Let each stage of the first model fail once."""
    rows = [run_job("failures", common | {"stage": stage}) for stage in FAILING_STAGES]
    cells = [
        [
            row["stage"],
            f"{row['seconds']:.2f}",
            row["cause"],
            ", ".join(row["files_left"] + row["threads_left"]) or "nothing",
        ]
        for row in rows
    ]
    print(f"\nfailure at frame {FAILS_AT_FRAME}; seconds until the run has ended")
    print(format_table(("stage", "seconds", "error from", "left behind"), cells, align="lrll"))
    return rows
