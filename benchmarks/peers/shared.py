"""What the peers share: the job they are given, an H.264 film by PyAV, and the line of JSON they answer with.

Nothing here knows fada_deploy: sizes, palette and encoder settings come with the job.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Job:
    """One run.

    `encoder` is mp4v (OpenCV's) or libx264 (PyAV's, with `options`). The labels of the frames `keep` are saved.
    `precision` and `streams` are OpenVINO's; "" leaves the precision to it.
    """

    peer: str
    model: str
    clip: str
    frames: int
    threads: int
    width: int
    height: int
    palette_rgb: list[list[int]]
    film: str
    labels: str
    keep: list[int]
    encoder: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    precision: str = "f32"
    streams: int = 1

    @classmethod
    def given(cls) -> Job:
        """Read the job, a JSON document that is the only argument."""
        job = cls(**json.loads(sys.argv[1]))
        cv2.setNumThreads(job.threads)
        return job

    @property
    def palette_bgr(self) -> np.ndarray:
        """(256, 3) uint8, black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette_rgb)] = np.array(self.palette_rgb, np.uint8)[:, ::-1]
        return table


class Clock:
    """Wall and CPU seconds from here until `answer`, and the labels that are kept on the way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._kept: dict[str, np.ndarray] = {}
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def keep(self, index: int, labels: np.ndarray) -> None:
        if index in self._job.keep:
            self._kept[str(index)] = labels

    def answer(self, frames: int, packages: tuple[str, ...], remarks: str = "") -> None:
        """Stop the clock, save the labels, print one JSON line."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        np.savez_compressed(
            self._job.labels,
            **{name: labels.astype(np.uint8) for name, labels in self._kept.items()},
        )
        document = {
            "frames": frames,
            "seconds": seconds,
            "fps": frames / seconds,
            "cpu_ms": 1e3 * cpu / frames,
            "versions": {name: version(name) for name in packages},
            "remarks": remarks,
        }
        print(json.dumps(document))


@contextmanager
def film(job: Job, rate: float, size_wh: tuple[int, int]) -> Iterator[Callable[[np.ndarray], Any]]:
    """Open the job's film and yield `add(bgr)`."""
    if job.encoder == "mp4v":
        writer = cv2.VideoWriter(job.film, cv2.VideoWriter.fourcc(*"mp4v"), rate, size_wh)
        if not writer.isOpened():
            raise SystemExit(f"{job.film}: OpenCV cannot write it")
        try:
            yield writer.write
        finally:
            writer.release()
        return
    import av

    with av.open(job.film, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(
            job.encoder, rate=Fraction(rate).limit_denominator(1001), options=job.options
        )
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"

        def add(bgr: np.ndarray) -> None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bgr, format="bgr24")))

        yield add
        container.mux(stream.encode(None))


def onnxruntime_session(job: Job) -> Callable[[np.ndarray], np.ndarray]:
    """Open the file in ONNX Runtime, warm; return frames (1, H, W, 3) uint8 RGB → logits (K, h, w)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])

    def run(frames: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"frames": frames})[0][0]
        return logits

    run(np.full((1, job.height, job.width, 3), 128, np.uint8))
    return run


def labels_of(job: Job, run: Callable[[np.ndarray], np.ndarray], bgr: np.ndarray) -> np.ndarray:
    """Return the labels of a frame the way everyone writes it: logits to the frame's size, then arg max."""
    rgb = cv2.cvtColor(cv2.resize(bgr, (job.width, job.height)), cv2.COLOR_BGR2RGB)
    logits = run(rgb[None]).transpose(1, 2, 0)
    height, width = bgr.shape[:2]
    return np.argmax(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR), axis=2)
