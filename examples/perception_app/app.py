"""Driving perception with a latency budget and drift detection, one JSON line per frame.

python app.py drive.mp4 --model model.onnx --budget-ms 50 --out annotated.mp4 > frames.jsonl
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Protocol, TextIO

import click
import cv2
import numpy as np
from budget import Budget
from draw import annotate
from drift_alarm import DriftAlarm
from numpy.typing import NDArray
from perception import Corridor, Scene, perceive

from fada_deploy import (
    DataError,
    FadaError,
    Segmenter,
    UsageError,
    VideoWriter,
    open_sources,
)

Clock = Callable[[], float]
Image = NDArray[np.uint8]


class Frame(Protocol):
    """The attributes of the frames of a source that this app uses."""

    rgb: Image
    index: int
    captured: float
    pts: int | None
    time_base: Fraction | None


class App:
    """Processes one frame at a time, so that no frame waits in a batch or queue."""

    def __init__(
        self,
        segmenter: Segmenter,
        corridor: Corridor,
        budget: Budget,
        drift_window: int = 250,
        clock: Clock = monotonic,
    ) -> None:
        self.segmenter, self.corridor, self.budget = segmenter, corridor, budget
        self.drift = DriftAlarm(segmenter, drift_window)
        self._clock = clock
        # Backends allocate memory at their first frame, which would delay the first real frame.
        black = np.zeros((*segmenter.metadata.input_size_hw, 3), np.uint8)
        labels = segmenter.predict(black, color="rgb").labels
        self._scene = perceive(labels, segmenter.space, corridor).to_dict()
        self._captured, self._segmented = 0.0, 0

    def process(self, frame: Frame) -> dict[str, Any]:
        """Return the JSON line of a frame (see README.md), from its own or from the last result."""
        segmented = self.budget.next_is_segmented()
        if segmented:
            self._scene, self._captured = self._perceive(frame).to_dict(), frame.captured
        now = self._clock()
        late = self.budget.add(now - frame.captured, segmented=segmented)
        pts, time_base = frame.pts, frame.time_base
        return {
            "index": frame.index,
            "time_s": None if pts is None or time_base is None else float(pts * time_base),
            "latency_ms": round(1000 * (now - frame.captured), 2),
            "age_ms": round(1000 * (now - self._captured), 2),
            "late": late,
            "stale": not segmented,
            "degraded": self.budget.degraded,
            "drift": None if self.drift.score is None else round(self.drift.score, 3),
            "drifting": self.drift.drifting,
            **self._scene,
        }

    def _perceive(self, frame: Frame) -> Scene:
        count, self._segmented = self._segmented, self._segmented + 1
        # Labels at the size of the network: a larger label map has no more information.
        image = resize(frame.rgb, self.segmenter.metadata.input_size_hw)
        result = self.segmenter.predict(
            image, color="rgb", confidence=self.drift.wants_confidence(count)
        )
        if self.drift.is_due(count):
            self.drift.update(result, frame.index)
        return perceive(result.labels, self.segmenter.space, self.corridor)


def resize(image: Image, size_hw: tuple[int, int]) -> Image:
    """Resize an image (H, W, 3): area averaging if both sides shrink, otherwise bilinear."""
    height, width = size_hw
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=mode), np.uint8)


def print_message(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"show_default": True})
@click.argument("source")
@click.option("--model", required=True, help="Exported file, or a run that holds one.")
@click.option(
    "--budget-ms",
    type=click.FloatRange(0, min_open=True),
    help="Time from capture to result in milliseconds [unlimited].",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write an annotated video (.mp4).")
@click.option(
    "--json",
    "lines",
    type=click.File("w", "utf-8", lazy=True),
    default="-",
    help="File of the JSON lines.",
)
@click.option(
    "--vanishing-point",
    type=float,
    nargs=2,
    default=(0.5, 0.48),
    help="Point where straight lanes meet: x and y as fractions of the image.",
)
@click.option(
    "--corridor-width",
    type=float,
    default=0.5,
    help="Width of the ego corridor at the lower edge, as a fraction of the image.",
)
@click.option(
    "--hood",
    type=float,
    default=0.0,
    help="Height of the car's own hood in the image, as a fraction of the image.",
)
@click.option(
    "--drift-window",
    type=click.IntRange(1),
    default=250,
    help="Number of segmented frames that drift is measured over.",
)
def main(
    source: str,
    model: str,
    budget_ms: float | None,
    out: Path | None,
    lines: TextIO,
    vanishing_point: tuple[float, float],
    corridor_width: float,
    hood: float,
    drift_window: int,
) -> None:
    """Find the free road and the obstacles in each frame of SOURCE.

    SOURCE is a video, an image, a folder of images, a camera number, an rtsp:// address, or - for
    the standard input. Ctrl-C ends the run and saves a playable video.
    """
    # Messages of the library, such as a lost connection.
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    budget = Budget(None if budget_ms is None else budget_ms / 1000)
    try:
        corridor = Corridor(*vanishing_point, corridor_width, 1 - hood)
        with Segmenter(model) as segmenter:
            failed = run(App(segmenter, corridor, budget, drift_window), source, lines, out)
        sys.exit(min(1, failed))
    except BrokenPipeError:
        # Python must not flush into the pipe without a reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (FadaError, OSError) as error:
        print_message(f"error: {error}")
        sys.exit(getattr(error, "exit_code", 1))


def run(app: App, address: str, lines: TextIO, out: Path | None) -> int:
    """Process all frames; return the number of frames that could not be read."""
    if not app.drift.is_available:
        print_message(
            "note: drift is not monitored, because the model has no target statistics; "
            "export it again"
        )
    source = open_source(address, out, lines)
    latencies: list[float] = []
    failed, no_reader = 0, None
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(source))
        video = AnnotatedVideo(stack, out, source)
        for item in source.frames():
            if stop.requested:
                break
            if isinstance(item, DataError):
                failed += 1
                print_message(f"failed: {item}")
            elif hasattr(item, "rgb"):  # live sources also yield pauses
                line = app.process(item)
                try:
                    print(json.dumps(line), file=lines, flush=True)
                except BrokenPipeError as error:
                    # The reader has ended (`… | head`); the video so far is completed.
                    no_reader = error
                    break
                latencies.append(line["latency_ms"])
                video.write(item, line, app)
    if no_reader is not None:
        raise no_reader
    if latencies:
        print_summary(app, latencies, failed)
    return failed


def open_source(address: str, out: Path | None, lines: TextIO) -> Any:
    """Return the only source at an address; check that no output replaces it or the other one."""
    source, *others = open_sources([address])
    if others:
        raise UsageError(f"{address}: contains {1 + len(others)} sources; name one of them")
    if out is not None and out.suffix.lower() != ".mp4":
        raise UsageError(f"--out must end in .mp4, got {out}")
    if out is not None and out.resolve() == Path(source.name).resolve():
        raise UsageError(f"--out {out} is the source itself; choose another name")
    if Path(lines.name).resolve() == Path(source.name).resolve():
        raise UsageError(f"--json {lines.name} is the source itself; choose another name")
    if out is not None and out.resolve() == Path(lines.name).resolve():
        raise UsageError(f"--out and --json both name {out}; choose another name")
    return source


class Stop:
    """Whether the run should end."""

    requested = False


@contextmanager
def stop_on_signals(source: Any) -> Iterator[Stop]:
    """Let SIGINT and SIGTERM end the run after the current frame; a second signal interrupts it."""
    stop = Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, _: FrameType | None) -> None:
        stop.requested = True
        if source.is_live:
            source.stop()
        for each in numbers:
            signal.signal(each, signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class AnnotatedVideo:
    """The annotated video, opened at the first frame; closed with the exit stack."""

    # Still images have no timestamps: ten per second.
    STILL_TIME_BASE = Fraction(1, 10)

    def __init__(self, stack: ExitStack, path: Path | None, source: Any) -> None:
        self._stack, self._path, self._source = stack, path, source
        self._writer: VideoWriter | None = None

    def write(self, frame: Frame, line: dict[str, Any], app: App) -> None:
        if self._path is None:
            return
        image = annotate(frame.rgb, line, app.corridor, app.budget.seconds)
        if self._writer is None:
            size_hw = image.shape[0], image.shape[1]
            time_base = frame.time_base or self.STILL_TIME_BASE
            writer = VideoWriter(
                self._path,
                size_hw,
                fps=self._source.rate,
                time_base=time_base,
                pixel_aspect=self._source.pixel_aspect,
                # A recording of hours is not written twice at its end.
                faststart=not self._source.is_live,
            )
            self._writer = self._stack.enter_context(writer)
        self._writer.write(image, frame.index if frame.pts is None else frame.pts)


def print_summary(app: App, latencies: list[float], failed: int) -> None:
    median, p95 = np.percentile(latencies, (50, 95))
    budget = app.budget
    print_message(
        f"{len(latencies)} frames, {failed} failed; latency: median {median:.1f} ms, "
        f"95th percentile {p95:.1f} ms"
    )
    print_message(
        f"{budget.late_frames} late, {budget.degradations} times degraded, "
        f"{budget.skipped_frames} not segmented; {app.drift.summary}"
    )


if __name__ == "__main__":
    main()
