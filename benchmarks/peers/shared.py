"""What the peers share: the job description, an H.264 writer based on PyAV, and the JSON result.

This module does not import fada_deploy: sizes, palette and encoder settings are part of the job.
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
    """One run of a peer.

    `encoder` is "mp4v" (OpenCV) or "libx264" (PyAV, with `options`). The labels of the frames
    `sampled_frames` are saved to `labels`. `precision` and `streams` are OpenVINO settings; an
    empty precision leaves the choice to OpenVINO.
    """

    peer: str
    model: str
    video: str
    frames: int
    threads: int
    width: int
    height: int
    palette_rgb: list[list[int]]
    output: str
    labels: str
    sampled_frames: list[int]
    encoder: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    precision: str = "f32"
    streams: int = 1

    @classmethod
    def from_arguments(cls) -> Job:
        """Read the job from the only command-line argument, a JSON document."""
        job = cls(**json.loads(sys.argv[1]))
        cv2.setNumThreads(job.threads)
        return job

    @property
    def palette_bgr(self) -> np.ndarray:
        """(256, 3) uint8 BGR; indices without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette_rgb)] = np.array(self.palette_rgb, np.uint8)[:, ::-1]
        return table


class Recorder:
    """Measures wall and CPU time from its creation and collects the labels of sampled frames."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._labels: dict[str, np.ndarray] = {}
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def add_labels(self, index: int, labels: np.ndarray) -> None:
        """Keep the labels of frame `index` if it is one of the sampled frames."""
        if index in self._job.sampled_frames:
            self._labels[str(index)] = labels

    def finish(self, frames: int, packages: tuple[str, ...], remarks: str = "") -> None:
        """Stop the clock, save the labels and print one JSON line."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        np.savez_compressed(
            self._job.labels,
            **{name: labels.astype(np.uint8) for name, labels in self._labels.items()},
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
def open_writer(
    job: Job, rate: float, size_wh: tuple[int, int]
) -> Iterator[Callable[[np.ndarray], Any]]:
    """Open the output video and yield a function that writes one BGR frame."""
    if job.encoder == "mp4v":
        writer = cv2.VideoWriter(job.output, cv2.VideoWriter.fourcc(*"mp4v"), rate, size_wh)
        if not writer.isOpened():
            raise SystemExit(f"OpenCV cannot write {job.output}")
        try:
            yield writer.write
        finally:
            writer.release()
        return
    import av

    with av.open(job.output, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(
            job.encoder, rate=Fraction(rate).limit_denominator(1001), options=job.options
        )
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"

        def write(bgr: np.ndarray) -> None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bgr, format="bgr24")))

        yield write
        container.mux(stream.encode(None))


def load_onnxruntime(job: Job) -> Callable[[np.ndarray], np.ndarray]:
    """Load the model in ONNX Runtime and run it once.

    Return a function from frames (1, H, W, 3) uint8 RGB to logits (K, h, w).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])

    def run(frames: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"frames": frames})[0][0]
        return logits

    run(np.full((1, job.height, job.width, 3), 128, np.uint8))
    return run


def predict_labels(
    job: Job, run: Callable[[np.ndarray], np.ndarray], bgr: np.ndarray
) -> np.ndarray:
    """Return the labels of a frame: resize the logits to the size of the frame, then argmax."""
    rgb = cv2.cvtColor(cv2.resize(bgr, (job.width, job.height)), cv2.COLOR_BGR2RGB)
    logits = run(rgb[None]).transpose(1, 2, 0)
    height, width = bgr.shape[:2]
    return np.argmax(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR), axis=2)
