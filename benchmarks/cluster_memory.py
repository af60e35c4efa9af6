"""Memory of driver and workers of `fada infer --ray`: many inputs, and a long video.

    python benchmarks/cluster_memory.py --images 10000
    python benchmarks/cluster_memory.py --hours 2

The network is the built-in one. Prints the resident memory in MiB at each tenth of the work.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.output_folder import OutputFolder
from fada_deploy.common.runs import BUILTIN, exported_model
from fada_deploy.common.system import memory_mib
from fada_deploy.runtime.distributed import job
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import SaveOptions

SAMPLE = Path(job.__file__).parents[2] / "samples/street.mp4"
RATE = 10


def write_images(folder: Path, count: int) -> list[Path]:
    """Write images of 96×64 pixels, each of them an input of its own."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    ok, data = cv2.imencode(".jpg", image)
    assert ok
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for path in paths:
        path.write_bytes(data.tobytes())
    return paths


def write_video(folder: Path, hours: float) -> list[Path]:
    """Repeat the sample clip at 10 frames per second and 96×54 pixels."""
    with av.open(str(SAMPLE)) as source:
        clip = [f.to_ndarray(width=96, height=54, format="rgb24") for f in source.decode(video=0)]
    path = folder / "long.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "g": "100"})
        stream.width, stream.height, stream.pix_fmt = 96, 54, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for index in range(round(hours * 3600 * RATE)):
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(clip[index % len(clip)], format="rgb24"))
            )
        out.mux(stream.encode())
    return [path]


def worker_memory_mib() -> list[int]:
    """Return the resident memory of the Ray workers on this machine."""
    sizes = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if (status.parent / "cmdline").read_text().startswith("ray::_Actor"):
                sizes.append(int(status.read_text().split("VmRSS:")[1].split()[0]) >> 10)
        except (OSError, IndexError):
            continue
    return sorted(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    job.progress_bar = lambda *_, **__: _Samples()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = write_images(folder, arguments.images)
        if arguments.hours:
            inputs += write_video(folder, arguments.hours)
        summary = job.run_job(
            job.ModelOptions(path=exported_model(Path(BUILTIN)), backend="onnxruntime"),
            open_sources(inputs),
            SaveOptions(folder / "out", ("mask",) if arguments.images else ("mask-video", "json")),
            OutputFolder(folder / "out"),
            ClusterOptions(workers=arguments.workers),
        )
    print(json.dumps({"frames": summary.frames, "seconds": round(summary.seconds, 1)}))


class _Samples:
    """A progress display that prints the memory at each tenth."""

    def __init__(self) -> None:
        self._percent = 0

    def __enter__(self) -> _Samples:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        before, self._percent = self._percent, self._percent + n
        if self._percent // 10 > before // 10:
            sizes = {"driver_mib": memory_mib(), "workers_mib": worker_memory_mib()}
            print(json.dumps({"percent": self._percent, **sizes}), flush=True)

    def set_postfix(self, values: Any) -> None:
        pass


if __name__ == "__main__":
    main()
