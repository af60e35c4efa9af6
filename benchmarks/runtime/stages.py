"""Part `stages`: CPU time of each stage when nothing else runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from clip import LoopedSource
from models import backend_for
from processes import run_job

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.benchmark import STAGES
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.writers.video_writer import VideoWriter

MAX_FRAMES = 60
# Threads of backends and libraries keep spinning for a while after their work; that time must not
# count for the next stage.
_REST_S = 0.005


class StageClock:
    """CPU milliseconds per frame of each stage, summed over all threads of the process."""

    def __init__(self, frames: int) -> None:
        self.cpu_ms = dict.fromkeys(STAGES, 0.0)
        self._frames = frames

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.cpu_ms[stage] += 1e3 * (time.process_time() - start) / self._frames
        time.sleep(_REST_S)


def job(options: dict[str, Any]) -> dict[str, Any]:
    """Return the CPU milliseconds per frame of each stage."""
    source = LoopedSource(Path(options["clip"]), options["frames"])
    clock = StageClock(options["frames"])
    with (
        Segmenter(options["model"], backend=options["backend"]) as segmenter,
        TemporaryDirectory() as folder,
    ):
        kernel_loader.wait()
        with clock.measure("decode"):
            for _ in source.frames():
                pass
        frames = [item for item in source.frames() if isinstance(item, Frame)]
        _run_stages(segmenter, frames, clock, Path(folder) / "overlay.mp4", source)
        backend = segmenter.backend.name
    return {"cpu_ms": clock.cpu_ms, "total": sum(clock.cpu_ms.values()), "backend": backend}


def _run_stages(
    segmenter: Segmenter,
    frames: list[Frame],
    clock: StageClock,
    path: Path,
    source: LoopedSource,
) -> None:
    """Run all stages after decoding, one after the other for each frame."""
    size_hw = segmenter.metadata.input_size_hw
    segmenter.backend.submit(resize_frame(frames[0].rgb, size_hw)[None])
    renderer = OverlayRenderer(OverlayStyle(), segmenter.space)
    height, width = frames[0].rgb.shape[:2]
    with VideoWriter(
        path, (height, width), fps=source.rate, time_base=frames[0].time_base
    ) as writer:
        for frame in frames:
            with clock.measure("resize"):
                network_input = resize_frame(frame.rgb, size_hw)[None]
            with clock.measure("network"):
                prediction = segmenter.backend.submit(network_input)
            with clock.measure("upsample"):
                labels = prediction.labels((height, width))[0]
            with clock.measure("draw"):
                overlay = renderer.draw_for_video(_to_result(frame, labels, segmenter.space))
            with clock.measure("write"):
                writer.write(overlay, frame.pts)


def _to_result(frame: Frame, labels: np.ndarray, space: LabelSpace) -> Result:
    return Result(
        labels,
        frame.rgb,
        space,
        frame.captured,
        0.0,
        source=frame.source,
        index=frame.index,
        item=frame.item,
        pts=frame.pts,
        time_base=frame.time_base,
        decoded=frame.decoded,
    )


def run(models: list[Path], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the stages of every model on every backend."""
    rows = []
    for model in models:
        for requested in common["backends"]:
            options = common | {
                "model": str(model),
                "backend": backend_for(model, requested),
                "frames": min(common["frames"], MAX_FRAMES),
            }
            rows.append({"model": model.name} | run_job("stages", options))
    cells = [
        [
            row["model"],
            row["backend"],
            *(f"{row['cpu_ms'][stage]:.2f}" for stage in STAGES),
            f"{row['total']:.2f}",
        ]
        for row in rows
    ]
    print("\nCPU ms per frame of each stage")
    header = ("model", "backend", *STAGES, "total")
    print(format_table(header, cells, align="ll" + "r" * (len(header) - 2)))
    return rows
