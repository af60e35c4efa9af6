"""A driving-perception app to start from: what lies ahead, in time, and whether the model is where it belongs.

python app.py drive.mp4 --model model.onnx --budget-ms 50 --out annotated.mp4 > frames.jsonl
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, TextIO

import click
import numpy as np
from draw import annotated
from perception import Corridor, Scene, perceive

from fada_deploy import Segmenter
from fada_deploy.common.errors import DataError, FadaError, UsageError
from fada_deploy.common.images import resize_frame
from fada_deploy.runtime.drift import Drift, DriftMonitor
from fada_deploy.runtime.sources.base import Frame, live_sources
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.video_writer import VideoWriter

# Drift looks at every fifth labeled frame: neighbors say little new, and confidence costs time.
_WATCH_EVERY = 5
Clock = Callable[[], float]


class Budget:
    """Holds a latency budget by labeling every second frame while each one would be too much.

    `LATE` labeled frames in a row over the budget begin that degraded mode, `CALM` in a row under `EASY` of it
    end it: two thresholds, so that it does not flutter. None is no budget.
    """

    LATE, CALM, EASY = 3, 12, 0.8

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.degraded = seconds, False
        self.late = self.held = self.entered = 0
        self._in_a_row, self._labeled = 0, False

    def wants_labels(self) -> bool:
        """Say whether the next frame is to be labeled, or the last answer held."""
        self._labeled = not (self.degraded and self._labeled)
        return self._labeled

    def note(self, latency_s: float, *, labeled: bool) -> bool:
        """Take a frame's latency; return whether it was over the budget."""
        budget = float("inf") if self.seconds is None else self.seconds
        late = latency_s > budget
        self.late, self.held = self.late + late, self.held + (not labeled)
        if labeled:
            turns = latency_s <= self.EASY * budget if self.degraded else late
            self._in_a_row = self._in_a_row + 1 if turns else 0
            if self._in_a_row == (self.CALM if self.degraded else self.LATE):
                self.degraded, self._in_a_row = not self.degraded, 0
                self.entered += self.degraded
        return late


class App:
    """Frames in, answers out, one after the other, so that a frame's latency is its own."""

    def __init__(
        self,
        segmenter: Segmenter,
        corridor: Corridor,
        budget: Budget,
        window: int = 250,
        clock: Clock = monotonic,
    ) -> None:
        self.segmenter, self.corridor, self.budget = segmenter, corridor, budget
        known = segmenter.metadata.target_statistics is not None
        watched = max(1, window // _WATCH_EVERY)
        self.watch = DriftMonitor.for_model(segmenter.metadata, window=watched) if known else None
        self.drift: Drift | None = None
        self._clock = clock
        # Engines take memory and time at their first frame, which is late enough for the first real one.
        black = np.zeros((*segmenter.metadata.input_size_hw, 3), np.uint8)
        self._scene = perceive(segmenter.predict(black, color="rgb").labels, segmenter.space, corridor).to_dict()
        self._captured, self._labeled = 0.0, 0

    def step(self, frame: Frame) -> dict[str, Any]:
        """Answer one frame, by its own labels or by the last answer; return its JSON line (README.md)."""
        labeled = self.budget.wants_labels()
        if labeled:
            self._scene, self._captured = self._perceive(frame).to_dict(), frame.captured
        now = self._clock()
        late = self.budget.note(now - frame.captured, labeled=labeled)
        return {
            "index": frame.index,
            "time_s": None if frame.pts is None else float(frame.pts * (frame.time_base or 0)),
            "latency_ms": round(1000 * (now - frame.captured), 2),
            "age_ms": round(1000 * (now - self._captured), 2),
            "late": late,
            "stale": not labeled,
            "degraded": self.budget.degraded,
            "drift": None if self.drift is None else round(self.drift.score, 3),
            "drifting": self.drift is not None and self.drift.drifting,
            **self._scene,
        }

    def _perceive(self, frame: Frame) -> Scene:
        # At the network's own size: labels of a larger picture are interpolated from the same answer.
        metadata = self.segmenter.metadata
        watched = self.watch is not None and self._labeled % _WATCH_EVERY == 0
        picture = resize_frame(frame.rgb, metadata.input_size_hw)
        result = self.segmenter.predict(picture, color="rgb", confidence=watched and metadata.head == "logits")
        self._labeled += 1
        if watched and self.watch is not None:
            before, self.drift = self.drift, self.watch.update(result)
            if self.drift.drifting != (before is not None and before.drifting):
                _say(
                    f"{'warning' if self.drift.drifting else 'note'}: frame {frame.index}: {_told(self.drift)}"
                )
        return perceive(result.labels, self.segmenter.space, self.corridor)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _told(drift: Drift | None) -> str:
    if drift is None:
        return "drift not watched"
    if not drift.warmed_up:
        return f"drift {drift.score:.2f} so far, of too few frames to say"
    sure = "" if drift.confidence is None else f", confidence {drift.confidence:+.1f} deviations"
    moved = f", classes that moved: {', '.join(drift.shifted_classes)}" if drift.shifted_classes else ""
    return f"drift {drift.score:.2f}, {'un' * drift.drifting}like the frames of the export{sure}{moved}"


@click.command(context_settings={"show_default": True})
@click.argument("source")
@click.option("--model", help="Exported file [the newest under runs/].")
@click.option(
    "--budget-ms",
    type=click.FloatRange(0, min_open=True),
    help="From capture to answer [no budget].",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write an annotated film (.mp4).")
@click.option(
    "--json", "lines", type=click.File("w", "utf-8"), default="-", help="Write a line a frame here."
)
@click.option(
    "--vanishing-point", type=float, nargs=2, default=(0.5, 0.48), help="X and Y, where lanes meet."
)
@click.option(
    "--corridor-width", type=float, default=0.5, help="Of the ego corridor at the lower edge."
)
@click.option(
    "--bonnet",
    type=float,
    default=0.0,
    help="Share of the height where the camera sees the car itself.",
)
@click.option(
    "--drift-window",
    type=click.IntRange(1),
    default=250,
    help="Labeled frames that drift looks back.",
)
def main(
    source: str,
    model: str | None,
    budget_ms: float | None,
    out: Path | None,
    lines: TextIO,
    vanishing_point: tuple[float, float],
    corridor_width: float,
    bonnet: float,
    drift_window: int,
) -> None:
    """Say of each frame of SOURCE (a film, pictures, a camera's number, rtsp://…) what lies ahead.

    Positions are fractions of the picture. Ctrl-C ends a run, and its film is whole.
    """
    budget = Budget(None if budget_ms is None else budget_ms / 1000)
    try:
        corridor = Corridor(*vanishing_point, corridor_width, 1 - bonnet)
        with Segmenter(model) as segmenter:
            sys.exit(
                min(1, _run(App(segmenter, corridor, budget, drift_window), source, lines, out))
            )
    except BrokenPipeError:
        # Who read the lines has left (`… | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (FadaError, OSError) as error:
        _say(f"error: {error}")
        sys.exit(getattr(error, "exit_code", 1))


def _run(app: App, source: str, lines: TextIO, out: Path | None) -> int:
    """Answer all frames; return how many could not be read."""
    if app.watch is None:
        _say(
            "note: the model says nothing of its target's frames, so drift is not watched; export it again"
        )
    stream, *others = open_sources([source])
    if others:
        raise UsageError(f"{source}: holds several films or kinds of pictures; give one")
    if out is not None and out.suffix.lower() != ".mp4":
        raise UsageError(f"--out {out}: writes an .mp4")
    if out is not None and out.resolve() == Path(stream.name).resolve():
        raise UsageError(f"--out {out}: is the film that it is made of; give another")
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        for live in live_sources([stream]):
            live.stop()
        for each in before:
            signal.signal(each, signal.default_int_handler)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    latencies: list[float] = []
    failed = 0
    with ExitStack() as stack:
        for each, handler in before.items():
            stack.callback(signal.signal, each, handler)
        writer: VideoWriter | None = None
        for item in stream.frames():
            if stopped:
                break
            if isinstance(item, DataError):
                failed += 1
                _say(f"failed: {item}")
            elif isinstance(item, Frame):
                line = app.step(item)
                print(json.dumps(line), file=lines, flush=True)
                latencies.append(line["latency_ms"])
                if out is not None:
                    picture = annotated(item.rgb, line, app.corridor, app.budget.seconds)
                    # Still pictures make a film of ten a second.
                    clock, size = (
                        item.time_base or Fraction(1, 10),
                        (picture.shape[0], picture.shape[1]),
                    )
                    if writer is None:
                        writer = stack.enter_context(
                            VideoWriter(out, size, fps=stream.rate or None, time_base=clock)
                        )
                    writer.write(picture, item.index if item.pts is None else item.pts)
    if latencies:
        median, most = np.percentile(latencies, (50, 95))
        budget = app.budget
        _say(
            f"{len(latencies)} frames, {failed} failed; latency {median:.1f} ms, 95 % within {most:.1f}"
        )
        _say(
            f"{budget.late} late, half rate {budget.entered} times, {budget.held} held; {_told(app.drift)}"
        )
    return failed


if __name__ == "__main__":
    main()
