"""How fast a film is labeled here: beside the bare network, and beside what others write.

`python benchmarks/runtime.py MODEL…`. Everything runs on the same cores (`--cores`, 2) with as many threads, each
measurement in a process of its own, in turn: ours, a peer, another peer, ours again. Medians of `--repeats` are
reported, and ratios are medians of the ratios within a turn. Parts (`--parts`):

  road    the bare network and the road decode → … → H.264 of `runtime.benchmark`, in one process
  stages  CPU time of each of the road's stages, one after the other with nothing beside it
  peers   the whole clip to an overlay film by others with the same ONNX file, in a venv of their own made at the
          first use (benchmarks/peers): the loop that everyone writes, supervision, OpenVINO Model API. From the
          first frame asked for until the film is closed; all is loaded and the model run once before. Ours draws
          a legend too. A film by OpenCV is MPEG-4, since its wheels cannot write H.264; PyAV's has our encoder's
          settings, which is checked in the film.
  long    memory over `--long` frames (10000)
  kill    seconds from a failure in the reader, the network, the drawing or the writer until the run has ended
  first   seconds from the start of `fada infer` to its first frame behind the writer

Files of one stem (lite0.onnx, lite0.int8-cpu.onnx) share a table; labels are compared with those of its first row.
Without `--clip` a street is rendered. The upsampling has a benchmark of its own, benchmarks/upsample.py.
Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import cache_folder
from fada_deploy.common.sizes import parse_size
from fada_deploy.common.system import (
    installed_version,
    memory_mib,
    throughput_parallelism,
    usable_cores,
)
from fada_deploy.common.video import open_video
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.benchmark import STAGES, measure
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.videos import VideoSource
from fada_deploy.runtime.writers.save import SaveOptions, save_results
from fada_deploy.runtime.writers.video_writer import X264_CRF, VideoWriter

PEERS = Path(__file__).parent / "peers"
PARTS = ("end_to_end", "stages", "peers", "long", "kill", "first")
ENGINES = ("onnxruntime", "openvino", "numba", "av", "opencv-python-headless", "numpy")
# Of our overlay films; `settings_of` says whether the peers' are truly alike.
ENCODER = {"preset": SaveOptions(Path()).x264_preset, "crf": X264_CRF}
CLIP_SECONDS = 8.0
STAGE_REST_S = 0.005
KEPT, STAGE_FRAMES, LONG_EVERY, LONG_FROM, LONG_BEYOND, FAILS_AT = 5, 60, 250, 1000, 50, 20
FIRST_REPEATS = 5


class Looped:
    """A clip's frames, over and over until there are `count`; timestamps go on."""

    is_video = True
    is_live = False
    pixel_aspect = None
    audio: Path | None = None

    def __init__(self, path: Path, count: int) -> None:
        self.name = str(path)
        video = VideoSource(path)
        video.probe()
        self.rate = video.rate
        self._count = count

    def count(self) -> int:
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield the frames; raise what a damaged clip gives."""
        index = offset = 0
        while True:
            last = step = 0
            with closing(VideoSource(Path(self.name)).frames()) as items:
                for item in items:
                    if isinstance(item, DataError):
                        raise item
                    assert item.pts is not None and item.time_base is not None
                    step, last = item.pts - last, item.pts
                    pts = offset + item.pts
                    yield replace(item, source=self.name, index=index, item=f"{index:06d}", pts=pts)
                    index += 1
                    if index == self._count:
                        return
            offset += last + max(1, step)


# What runs in a process of its own: each takes a document and returns one.


def job_end_to_end(doc: dict[str, Any]) -> dict[str, Any]:
    """The bare network and the road, as `fada bench MODEL --source CLIP`."""
    source = Looped(Path(doc["clip"]), doc["frames"])
    found = measure(
        Path(doc["model"]), backend=doc["backend"], parallel=throughput_parallelism(), source=source,
        seconds=doc["seconds"],
    )  # fmt: skip
    return found.to_dict()


def job_stages(doc: dict[str, Any]) -> dict[str, Any]:
    """CPU ms a frame of each stage by itself, all of its threads; nothing is kept that the road would not keep."""
    source, spent = Looped(Path(doc["clip"]), doc["frames"]), dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[name] += 1e3 * (time.process_time() - start) / doc["frames"]
        # Threads of engines and libraries spin for a while when they are done, which is no work of the next stage.
        time.sleep(STAGE_REST_S)

    with (
        Segmenter(doc["model"], backend=doc["backend"]) as segmenter,
        TemporaryDirectory() as folder,
    ):
        size_hw, space = segmenter.metadata.input_size_hw, segmenter.space
        kernel_loader.wait()
        with clock("decode"):
            for _ in source.frames():
                pass
        frames = [item for item in source.frames() if isinstance(item, Frame)]
        segmenter.backend.submit(resize_frame(frames[0].rgb, size_hw)[None])
        drawing, base = OverlayRenderer(OverlayStyle(), space), frames[0].time_base
        assert base is not None
        path, size = Path(folder) / "film.mp4", (frames[0].rgb.shape[0], frames[0].rgb.shape[1])
        with VideoWriter(path, size, fps=source.rate, time_base=base) as writer:
            for frame in frames:
                with clock("resize"):
                    picture = resize_frame(frame.rgb, size_hw)[None]
                with clock("network"):
                    prediction = segmenter.backend.submit(picture)
                with clock("upsample"):
                    labels = prediction.labels(frame.rgb.shape[:2])[0]
                with clock("draw"):
                    drawn = drawing.draw_for_video(_result(frame, labels, space))
                with clock("write"):
                    assert frame.pts is not None
                    writer.write(drawn, frame.pts)
        return {"cpu_ms": spent, "total": sum(spent.values()), "backend": segmenter.backend.name}


def _result(frame: Frame, labels: Any, space: Any) -> Result:
    return Result(
        labels, frame.rgb, space, frame.captured, 0.0, source=frame.source, index=frame.index, item=frame.item,
        pts=frame.pts, time_base=frame.time_base, decoded=frame.decoded,
    )  # fmt: skip


def job_film(doc: dict[str, Any]) -> dict[str, Any]:
    """The clip to an overlay film as `fada infer` makes it, timed as the peers are."""
    source, kept = Looped(Path(doc["clip"]), doc["frames"]), {}
    with (
        Segmenter(
            doc["model"], backend=doc["backend"], parallel=throughput_parallelism()
        ) as segmenter,
        TemporaryDirectory() as folder,
    ):
        height, width = segmenter.metadata.input_size_hw
        segmenter.backend.submit(np.full((1, height, width, 3), 128, np.uint8))
        kernel_loader.wait()
        cpu, start, done = time.process_time(), time.perf_counter(), 0
        for item in save_results(segmenter, [source], SaveOptions(Path(folder))):
            if isinstance(item, Result):
                if item.index in doc["keep"]:
                    kept[str(item.index)] = item.labels
                done += 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        np.savez_compressed(doc["labels"], **kept)  # type: ignore[arg-type]
        (path,) = Path(folder).rglob("*.mp4")
        settings = settings_of(path)
        engine = f"{segmenter.backend.name}, {segmenter.backend.parallel} requests"
    return {
        "frames": done, "seconds": seconds, "fps": done / seconds, "cpu_ms": 1e3 * cpu / done, "remarks": engine,
        "settings": settings,
    }  # fmt: skip


def settings_of(path: Path) -> str:
    """Return what x264 wrote into a film of how it was made, "" where it did not."""
    found = re.search(rb"x264 - core [ -~]*options: ([ -~]+)", path.read_bytes())
    return found[1].decode() if found else ""


def job_long(doc: dict[str, Any]) -> dict[str, Any]:
    """Resident memory, threads and descriptors every so many frames."""
    seen: list[tuple[int, float, int, int]] = []
    # A few frames more: behind the last one the reader's memory is free already.
    source, start = Looped(Path(doc["clip"]), doc["frames"] + LONG_BEYOND), time.perf_counter()
    with (
        Segmenter(
            doc["model"], backend=doc["backend"], parallel=throughput_parallelism()
        ) as segmenter,
        TemporaryDirectory() as folder,
    ):
        for item in save_results(segmenter, [source], SaveOptions(Path(folder))):
            if isinstance(item, Result) and (item.index + 1) % LONG_EVERY == 0:
                pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
                threads = len(list(Path("/proc/self/task").iterdir()))
                descriptors = len(list(Path("/proc/self/fd").iterdir()))
                mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                seen.append((item.index + 1, round(mib, 2), threads, descriptors))
                print(f"  frame {item.index + 1}: {mib:.1f} MiB", file=sys.stderr, flush=True)
        backend = segmenter.backend.name
    since = next((row for row in seen if row[0] >= LONG_FROM), seen[0])
    return {
        "frames": doc["frames"], "seconds": time.perf_counter() - start, "backend": backend, "samples": seen,
        "from_frame": since[0], "growth": seen[-1][1] / since[1] - 1, "peak_mib": memory_mib(peak=True),
    }  # fmt: skip


class _Failed(RuntimeError):
    """What a part is made to raise."""


class _Bomb:
    """Let `FAILS_AT` calls through, raise at the next one, and remember when."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._left = FAILS_AT
        self.at: float | None = None

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.at = self.at or time.perf_counter()
            raise _Failed(self._part)


def _break(part: str, bomb: _Bomb, source: Looped, segmenter: Segmenter) -> Any:
    """Return a context in which the part fails when the bomb goes off."""

    def before(job: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            bomb()
            return job(*args, **kwargs)

        return failing

    if part == "reader":
        frames = source.frames

        def read() -> Iterator[Any]:
            for item in frames():
                bomb()
                yield item

        return mock.patch.object(source, "frames", read)
    if part == "network":
        return mock.patch.object(segmenter.backend, "submit", before(segmenter.backend.submit))
    if part == "drawing":
        return mock.patch.object(
            OverlayRenderer, "draw_for_video", before(OverlayRenderer.draw_for_video)
        )

    return mock.patch.object(VideoWriter, "write", before(VideoWriter.write))


def job_kill(doc: dict[str, Any]) -> dict[str, Any]:
    """Break a part; say how long the run took to end, with what, and what it left."""
    source, bomb = Looped(Path(doc["clip"]), 10 * FAILS_AT), _Bomb(doc["part"])
    cause = "none"
    with TemporaryDirectory() as folder:
        with Segmenter(
            doc["model"], backend=doc["backend"], parallel=throughput_parallelism()
        ) as segmenter:
            try:
                with _break(doc["part"], bomb, source, segmenter):
                    for _ in save_results(segmenter, [source], SaveOptions(Path(folder))):
                        pass
            except _Failed as error:
                cause = str(error)
        ended = time.perf_counter()
        left = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
    # The kernel's loader is no part of a run.
    threads = [t.name for t in threading.enumerate() if t.name.startswith("fada-")]
    if bomb.at is None:
        raise SystemExit(
            f"{doc['part']}: was never reached; the benchmark breaks it in the wrong place"
        )
    return {
        "part": doc["part"], "seconds": ended - bomb.at, "cause": cause, "files_left": left, 
        "threads_left": threads,
    }  # fmt: skip


JOBS = {
    "end_to_end": job_end_to_end,
    "stages": job_stages,
    "film": job_film,
    "long": job_long,
    "kill": job_kill,
}

# Exactly what the command does, with marks. `time.monotonic` is the machine's, so that the parent's start counts.
FIRST = """
import json, os, sys, time
began, whole, arguments = float(sys.argv[1]), sys.argv[2] == "whole", sys.argv[3:]
marks = {}
def mark(name): marks.setdefault(name, time.monotonic() - began)
mark("Python")
from fada_deploy.cli import main
mark("command line imported")
import fada_deploy.cli.infer
from fada_deploy.runtime import segmenter
from fada_deploy.runtime.writers import inference
from fada_deploy.runtime.backends import base, onnxruntime, openvino
mark("runtime imported")
def around(owner, name, before, after):
    job = getattr(owner, name)
    def timed(*args, **kwargs):
        mark(before)
        try: return job(*args, **kwargs)
        finally: mark(after)
    setattr(owner, name, timed)
around(segmenter.Segmenter, "__init__", "sources opened", "model opened")
for module in onnxruntime, openvino:
    around(module, "import_backend", "(before the engine's import)", "engine imported")
to_files = inference.save_results
def watched(*args, **kwargs):
    items = to_files(*args, **kwargs)
    for item in items:
        if "first frame written" not in marks:
            mark("first frame written")
            print(json.dumps(marks), flush=True)
            if not whole: os._exit(0)
        yield item
inference.save_results = watched
sys.exit(main(arguments))
"""
FIRST_STEPS = (
    "Python", "command line imported", "runtime imported", "sources opened", "engine imported", "model opened",
    "first frame written",
)  # fmt: skip


# The parent.


class Others:
    """What other processes took of our cores: a measurement on a busy machine says so."""

    def __init__(self, cores: list[int]) -> None:
        self._names = {f"cpu{core}" for core in cores}
        self.fraction: dict[str, float] = {}

    def _busy(self) -> float:
        """Return the seconds that our cores worked for anyone, stolen ones included."""
        rows = [line.split() for line in Path("/proc/stat").read_text("utf-8").splitlines()]
        # user, nice, system, -, -, irq, softirq, steal
        ticks = [
            sum(int(row[i]) for i in (1, 2, 3, 6, 7, 8)) for row in rows if row[0] in self._names
        ]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _ours() -> float:
        spent = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(each.ru_utime + each.ru_stime for each in spent)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Note their share of the cores' time while a part is measured, and say it."""
        busy, ours, start = self._busy(), self._ours(), time.monotonic()
        yield
        spent = self._busy() - busy - (self._ours() - ours)
        self.share[part] = max(0.0, spent / (len(self._names) * (time.monotonic() - start)))
        print(f"(others took {self.share[part]:.0%} of the cores)")


def backend_for(model: Path, wanted: str) -> str:
    """Return the backend to ask for: as wanted, but where `auto` would take one without kernels for the file."""
    able = runnable_backends(model)
    return able[0] if wanted == "auto" and "onnxruntime" not in able else wanted


def run_job(name: str, doc: dict[str, Any]) -> dict[str, Any]:
    return _answer([sys.executable, __file__, "--job", name, json.dumps(doc)], name)


def run_peer(python: Path, script: str, doc: dict[str, Any]) -> dict[str, Any]:
    return _answer([str(python), str(PEERS / script), json.dumps(doc)], doc["peer"])


def _answer(command: list[str], name: str) -> dict[str, Any]:
    """Return the last line that a process prints, as JSON."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=_environment(), check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: failed with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _environment(**more: str) -> dict[str, str]:
    threads = str(usable_cores())
    return os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads} | more


def peers_python() -> Path:
    """Return the interpreter of the peers' venv; make it at the first use."""
    pinned = PEERS / "requirements.txt"
    key = hashlib.sha256(pinned.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / f"benchmark-peers-{key}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        print(f"the peers' venv: {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [
            str(python),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "-r",
            str(pinned),
        ]
        subprocess.run(pip, check=True)
        ready.touch()
    return python


def rendered_clip(size_hw: tuple[int, int]) -> Path:
    """Return a rendered drive; render it at the first use (a minute for 960x540)."""
    height, width = size_hw
    folder = cache_folder() / f"benchmark-clip-{width}x{height}-{CLIP_SECONDS:g}s"
    if not (folder / "clip.mp4").is_file():
        from fada_deploy.synth.clip import write_clip

        print(f"rendering {folder / 'clip.mp4'}", file=sys.stderr)
        write_clip(folder, CLIP_SECONDS, size_hw=size_hw)
    return folder / "clip.mp4"


def clip_facts(clip: Path) -> tuple[int, int, int]:
    """Return a clip's frames, width and height."""
    container, stream = open_video(clip)
    with container:
        size = int(stream.codec_context.width), int(stream.codec_context.height)
    count = VideoSource(clip).count()
    if count is None:
        raise SystemExit(f"{clip}: does not say how many frames it has; give another --clip")
    return count, *size


def part_end_to_end(
    models: list[Path], common: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Measure bare and road of every model and backend, in turn; return medians with all that was measured."""
    asked = [(model, backend_for(model, name)) for model in models for name in common["backends"]]
    cases = [
        (model, name) for model, name in asked if name == "auto" or name in runnable_backends(model)
    ]
    found: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(repeats):
        for (model, backend), own in zip(cases, found, strict=True):
            own.append(run_job("end_to_end", common | {"model": str(model), "backend": backend}))
    rows = []
    print(
        f"\n{'the road':<28}{'backend':<13}{'bare fps':>9}{'road fps':>9}{'ratio':>7}{'CPU ms':>8}   ms by stage"
    )
    for (model, _), own in zip(cases, found, strict=True):
        row: dict[str, Any] = {
            "model": model.name,
            "backend": own[0]["backend"],
            "input": own[0]["input"],
        }
        row["ratio"] = median(each["ratio"] for each in own)
        row["bare_fps"] = median(each["model_only"]["fps"] for each in own)
        row["road_fps"] = median(each["end_to_end"]["fps"] for each in own)
        row["cpu_ms"] = median(each["end_to_end"]["cpu_ms"] for each in own)
        row["ms"] = {
            name: median(each["end_to_end"]["ms"][name]["p50"] for each in own) for name in STAGES
        }
        rows.append(row | {"all": own})
        listed = ", ".join(f"{name} {ms:.1f}" for name, ms in row["ms"].items())
        print(
            f"{model.name:<28}{row['backend']:<13}{row['bare_fps']:9.1f}{row['road_fps']:9.1f}{row['ratio']:7.2f}"
            f"{row['cpu_ms']:8.1f}   {listed}"
        )
    return rows


def part_stages(models: list[Path], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the CPU time of every model's stages."""
    rows = []
    print(
        f"\n{'CPU ms a frame':<28}{'backend':<13}"
        + "".join(f"{n:>10}" for n in STAGES)
        + f"{'total':>9}"
    )
    for model in models:
        for name in common["backends"]:
            doc = {"model": str(model), "backend": backend_for(model, name)}
            row = run_job("stages", common | doc | {"frames": min(common["frames"], STAGE_FRAMES)})
            rows.append({"model": model.name} | row)
            times = "".join(f"{row['cpu_ms'][stage]:10.2f}" for stage in STAGES)
            print(f"{model.name:<28}{row['backend']:<13}{times}{row['total']:9.2f}")
    return rows


def _runs(
    models: list[Path], common: dict[str, Any], python: Path, folder: Path
) -> dict[str, Callable[[], Any]]:
    """Return a table's rows: name → measure it once."""
    first = models[0]
    metadata = read_metadata(first)
    height, width = metadata.input_size_hw
    palette = metadata.label_space.palette[: metadata.label_space.num_classes].tolist()
    peer = {
        "clip": common["clip"], "frames": common["frames"], "threads": usable_cores(), "width": width,
        "height": height, "palette_rgb": palette, "film": str(folder / "film.mp4"), "keep": common["keep"],
        "options": ENCODER,
    }  # fmt: skip
    runs: dict[str, Callable[[], Any]] = {}

    def add_ours(name: str, model: Path, backend: str) -> None:
        doc = common | {
            "model": str(model),
            "backend": backend,
            "labels": str(folder / f"{len(runs)}.npz"),
        }
        runs[name] = lambda: run_job("film", doc) | {"labels": doc["labels"]}

    def add_peer(name: str, script: str, model: Path, **more: Any) -> None:
        doc = (
            peer
            | {"peer": name, "model": str(model), "labels": str(folder / f"{len(runs)}.npz")}
            | more
        )

        def run() -> dict[str, Any]:
            answer = run_peer(python, script, doc) | {"labels": doc["labels"]}
            return answer | {"settings": settings_of(Path(doc["film"]))}

        runs[name] = run

    is_fp32 = metadata.precision == "fp32"
    for model in models:
        kind = read_metadata(model).precision
        for backend in common["backends"]:
            name = f"ours, {kind}" + ("" if backend == common["backends"][0] else f", {backend}")
            add_ours(name, model, backend_for(model, backend))
        if model == first and is_fp32:
            add_peer("the loop, fp32", "loop.py", model)
            add_peer("the loop, fp32, MPEG-4", "loop.py", model, encoder="mp4v")
            add_peer("supervision, fp32", "supervision_video.py", model)
            add_peer("supervision, fp32, MPEG-4", "supervision_video.py", model, encoder="mp4v")
            add_peer("Model API, fp32, 1 stream", "modelapi.py", model, streams=1)
        add_peer(
            f"Model API, {kind}, {usable_cores()} streams",
            "modelapi.py",
            model,
            streams=usable_cores(),
        )
    if is_fp32:
        # Left alone, OpenVINO computes in bf16 where the processor can: another precision, in a row of its own.
        add_peer(
            "Model API, bf16 by itself", "modelapi.py", first, streams=usable_cores(), precision=""
        )
    return runs


def part_peers(
    models: list[Path], common: dict[str, Any], repeats: int, python: Path
) -> dict[str, Any]:
    """Measure ours and the peers on one network's files, in turn."""
    with TemporaryDirectory() as folder:
        runs = _runs(models, common, python, Path(folder))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for repeat in range(repeats):
            for name, run in runs.items():
                print(f"  {repeat + 1}/{repeats} {name}", file=sys.stderr, flush=True)
                found[name].append(run())
        ours, *_ = found
        settings = found[ours][0]["settings"]
        with np.load(found[ours][0]["labels"]) as archive:
            truth = {index: archive[index] for index in archive.files}
        rows = []
        for name, own in found.items():
            with np.load(own[0]["labels"]) as archive:
                equal = float(np.mean([np.mean(archive[index] == truth[index]) for index in truth]))
            remarks = own[0]["remarks"]
            if own[0]["frames"] != common["frames"]:
                remarks += f"; {own[0]['frames']} FRAMES ONLY"
            if "MPEG-4" not in name and own[0]["settings"] != settings:
                remarks += "; ENCODER SETTINGS DIFFER FROM OURS"
            rows.append(
                {
                    "name": name,
                    "fps": median(each["fps"] for each in own),
                    "fps_all": [each["fps"] for each in own],
                    "cpu_ms": median(each["cpu_ms"] for each in own),
                    "frames": own[0]["frames"],
                    "ours_is": median(
                        a["fps"] / b["fps"] for a, b in zip(found[ours], own, strict=True)
                    ),
                    "equal_labels": equal,
                    "remarks": remarks,
                    "versions": own[0].get("versions", {}),
                }
            )
    height, width = read_metadata(models[0]).input_size_hw
    encoder = ", ".join(f"{key} {value}" for key, value in ENCODER.items())
    print(
        f"\n{models[0].name}, {width}x{height}, {common['frames']} frames; films H.264 ({encoder}) but where named"
    )
    print(f"{'':<30}{'fps':>8}{'of all':>16}{'CPU ms':>8}{'ours is':>9}{'labels equal':>14}")
    for row in rows:
        span = f"{min(row['fps_all']):.1f} – {max(row['fps_all']):.1f}"
        print(
            f"{row['name']:<30}{row['fps']:8.2f}{span:>16}{row['cpu_ms']:8.1f}{row['ours_is']:8.2f}×"
            f"{row['equal_labels']:13.2%}   {row['remarks']}"
        )
    return {"model": models[0].name, "input": f"{width}x{height}", "x264": settings, "rows": rows}


def part_long(common: dict[str, Any]) -> dict[str, Any]:
    """Label many frames; return memory, threads and descriptors on the way."""
    found = run_job("long", common)
    before = next(row for row in found["samples"] if row[0] == found["from_frame"])
    after = found["samples"][-1]
    print(
        f"\n{found['frames']} frames in {found['seconds']:.0f} s: {before[1]:.1f} MiB at frame {before[0]}, "
        f"{after[1]:.1f} at {after[0]} ({found['growth']:+.2%}); threads {before[2]}→{after[2]}, "
        f"descriptors {before[3]}→{after[3]}"
    )
    return found


def part_kill(common: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        run_job("kill", common | {"part": part})
        for part in ("reader", "network", "drawing", "writer")
    ]
    print(
        f"\n{'fails at frame ' + str(FAILS_AT):<20}{'ended after':>12}   ended with      left behind"
    )
    for row in rows:
        left = ", ".join(row["files_left"] + row["threads_left"]) or "nothing"
        print(f"{row['part']:<20}{row['seconds']:10.2f} s   {row['cause']:<15} {left}")
    return rows


def part_first(common: dict[str, Any]) -> dict[str, Any]:
    """Time `fada infer` from its start to its first frame: the first time ever, and after an earlier run."""
    rows: dict[str, Any] = {}

    def start(out: Path, how: str, **environment: str) -> dict[str, float]:
        arguments = ["infer", common["clip"], "--model", common["model"], "--out", str(out)]
        arguments += ["--backend", common["backend"]]
        environment = _environment(**environment)
        began = time.monotonic()
        command = [sys.executable, "-c", FIRST, str(began), how, *arguments]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        marks: dict[str, float] = json.loads(done.stdout.splitlines()[0])
        return marks

    with TemporaryDirectory() as folder:
        root = Path(folder)
        fresh = {"XDG_CACHE_HOME": str(root / "cache"), "NUMBA_CACHE_DIR": str(root / "numba")}
        rows["first ever"] = [start(root / "cold", "first", **fresh)]
        start(root / "whole", "whole")
        rows["after an earlier run"] = [
            start(root / f"warm{i}", "first") for i in range(FIRST_REPEATS)
        ]
    found: dict[str, Any] = {}
    print(f"\n{'first frame, seconds':<24}" + "".join(f"{step:>23}" for step in FIRST_STEPS))
    for name, marks in rows.items():
        steps = {step: median(each[step] for each in marks) for step in FIRST_STEPS}
        found[name] = steps | {"all": marks}
        print(f"{name:<24}" + "".join(f"{seconds:23.2f}" for seconds in steps.values()))
    return found


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the frames a second of each, a panel a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = document["peers"]
    heights = [len(panel["rows"]) for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 1.0 * len(panels) + 0.36 * sum(heights)), squeeze=False,
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        rows = panel["rows"]
        values = [row["fps"] for row in rows]
        # Ours, peers at the same precision, and what computes in another one, which is no like for like.
        colors = [
            "#1b6ca8" if row["name"].startswith("ours, fp32")
            else "#8fbbdc" if row["name"].startswith("ours")
            else "#7d7d7d" if "fp32" in row["name"] else "#c9c9c9"
            for row in rows
        ]  # fmt: skip
        low = [row["fps"] - min(row["fps_all"]) for row in rows]
        high = [max(row["fps_all"]) - row["fps"] for row in rows]
        axis.barh(
            range(len(rows)),
            values,
            color=colors,
            xerr=(low, high),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for place, (row, up) in enumerate(zip(rows, high, strict=True)):
            axis.text(
                row["fps"] + up + 0.012 * max(values),
                place,
                f"{row['fps']:.1f}",
                va="center",
                fontsize=9,
            )
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.1 * max(v + h for v, h in zip(values, high, strict=True)))
        axis.set_title(f"{panel['model']}, {panel['input']}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(
        f"frames a second, {document['clip']} to overlay film, {document['cores']} cores\n"
        "median and range; pale: another precision",
        fontsize=9,
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)


def aims(document: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Return what was aimed at: the aim, what was measured, and whether it is met."""
    found: list[tuple[str, float, bool]] = []
    for row in document.get("end_to_end", []):
        found.append(
            (
                f"{row['model']}, {row['backend']}: road ≥ 0.85 of the bare network",
                row["ratio"],
                row["ratio"] >= 0.85,
            )
        )
    for panel in document.get("peers", []):
        # The same file in the same precision and, but for OpenCV's MPEG-4, the same encoder.
        like = [
            row
            for row in panel["rows"]
            if ", fp32" in row["name"] and not row["name"].startswith("ours")
        ]
        if not like:
            continue
        loop = min(row["ours_is"] for row in like if row["name"].startswith("the loop"))
        best = min(row["ours_is"] for row in like)
        found.append((f"{panel['model']}: ≥ 2.5 × the loop, its better film", loop, loop >= 2.5))
        found.append((f"{panel['model']}: ≥ 1.5 × the best peer at fp32", best, best >= 1.5))
        # What a user of ours would run instead, proven for the same network.
        ours = [row for row in panel["rows"] if row["name"].startswith("ours")]
        fast = min(ours, key=lambda row: row["ours_is"])
        if fast["ours_is"] < 1:
            gain = loop / fast["ours_is"]
            found.append(
                (f"{panel['model']}, {fast['name']}: ≥ 2.5 × the loop at fp32", gain, gain >= 2.5)
            )
    if "long" in document:
        growth = 100 * document["long"]["growth"]
        found.append(
            (f"memory grows < 2 % after frame {document['long']['from_frame']}", growth, growth < 2)
        )
    for row in document.get("kill", []):
        well = row["seconds"] <= 2 and row["cause"] == row["part"] and not row["files_left"]
        found.append(
            (f"{row['part']} fails: ended ≤ 2 s with the cause, nothing left", row["seconds"], well)
        )
    if "first" in document:
        seconds = document["first"]["after an earlier run"]["first frame written"]
        found.append(("first frame ≤ 1.5 s", seconds, seconds <= 1.5))
    return found


def tables_of(models: list[Path]) -> list[list[Path]]:
    """Return the files of each network, fp32 first."""
    groups: dict[str, list[Path]] = {}
    for model in models:
        groups.setdefault(model.name.split(".")[0], []).append(model)
    return [
        sorted(group, key=lambda path: read_metadata(path).precision != "fp32")
        for group in groups.values()
    ]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(JOBS[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        help="ONNX files by `fada export`; long, kill, first: the first",
    )
    parser.add_argument("--clip", type=Path, help="video [a rendered street]")
    parser.add_argument(
        "--clip-size", default="960x540", help="of the rendered street [%(default)s]"
    )
    parser.add_argument("--frames", type=int, help="of the clip [all]")
    parser.add_argument(
        "--parts", default="road,stages,peers", help=f"of {','.join(PARTS)} [%(default)s]"
    )
    parser.add_argument(
        "--long", type=int, nargs="?", const=10000, metavar="N", help="add the part long: N frames"
    )
    parser.add_argument("--kill", action="store_true", help="add the part kill")
    parser.add_argument("--first-frame", action="store_true", help="add the part first")
    parser.add_argument("--backend", default="auto", help="ours; several: NAME,… [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="on the bare network [%(default)s]"
    )
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="frames a second of each, of the part peers"
    )
    args = parser.parse_args()
    parts = [part for part in args.parts.split(",") if part]
    wanted = (("long", args.long is not None), ("kill", args.kill), ("first", args.first_frame))
    parts += [part for part, on in wanted if on and part not in parts]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)  # every process from here on inherits it
    clip = args.clip or rendered_clip(parse_size(args.clip_size))
    count, width, height = clip_facts(clip)
    frames = min(args.frames or count, count)
    keep = sorted({round(i * (frames - 1) / (KEPT - 1)) for i in range(KEPT)})
    backends = args.backend.split(",")
    common = {
        "clip": str(clip), "frames": frames, "backends": backends, "backend": backends[0], "keep": keep,
        "seconds": args.seconds, "model": str(args.models[0]),
    }  # fmt: skip
    python = peers_python() if "peers" in parts else None
    document: dict[str, Any] = {
        "benchmark": "runtime", "processor": processor(), "cores": len(cores), "clip": clip.name,
        "clip_size": f"{width}x{height}", "frames": frames, "repeats": args.repeats, "encoder": ENCODER,
        "versions": {name: installed_version(name) for name in ENGINES}, "load_before": os.getloadavg(),
    }  # fmt: skip
    print(
        f"{document['processor']}, {len(cores)} cores; {clip.name}, {width}x{height}, {frames} frames; "
        f"median of {args.repeats}; load {document['load_before'][0]:.1f}"
    )
    others = Others(cores)
    if "end_to_end" in parts:
        with others.during("end_to_end"):
            document["end_to_end"] = part_end_to_end(args.models, common, args.repeats)
    if "stages" in parts:
        document["stages"] = part_stages(args.models, common)
    if python is not None:
        with others.during("peers"):
            document["peers"] = [
                part_peers(m, common, args.repeats, python) for m in tables_of(args.models)
            ]
    if "long" in parts:
        document["long"] = part_long(common | {"frames": args.long or 10000})
    if "kill" in parts:
        document["kill"] = part_kill(common)
    if "first" in parts:
        with others.during("first"):
            document["first"] = part_first(common)
    document["others"] = others.share
    document["load_after"] = os.getloadavg()
    document["aims"] = aims(document)
    print()
    for aim, value, met in document["aims"]:
        print(f"{'met   ' if met else 'MISSED'}  {aim}: {value:.2f}")
    if args.plot is not None and "peers" in document:
        plot(document, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
