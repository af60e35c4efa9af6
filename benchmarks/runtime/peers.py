"""Part `peers`: the clip to an overlay video, by `fada_deploy` and by other libraries.

The other libraries are installed into a virtual environment of their own at the first use; their
programs are in benchmarks/peers.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from clip import LoopedSource
from models import backend_for
from processes import run_job, run_json

from fada_deploy.common.files import cache_folder
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import throughput_parallelism, usable_cores
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.writers.save import SaveOptions, save_results
from fada_deploy.runtime.writers.video_writer import X264_CRF

PEERS = Path(__file__).parents[1] / "peers"
# Encoder settings of our overlay videos, which the peers use too. `x264_settings` verifies that.
ENCODER = {"preset": SaveOptions(Path()).x264_preset, "crf": X264_CRF}
Runs = dict[str, Callable[[], dict[str, Any]]]


def job(options: dict[str, Any]) -> dict[str, Any]:
    """Write the overlay video of the clip like `fada infer`, timed like the peers."""
    source, labels = LoopedSource(Path(options["clip"]), options["frames"]), {}
    with (
        Segmenter(
            options["model"], backend=options["backend"], parallel=throughput_parallelism()
        ) as segmenter,
        TemporaryDirectory() as folder,
    ):
        height, width = segmenter.metadata.input_size_hw
        segmenter.backend.submit(np.full((1, height, width, 3), 128, np.uint8))
        kernel_loader.wait()
        cpu, start, count = time.process_time(), time.perf_counter(), 0
        for item in save_results(segmenter, [source], SaveOptions(Path(folder))):
            if isinstance(item, Result):
                if item.index in options["sampled_frames"]:
                    labels[str(item.index)] = item.labels
                count += 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        np.savez_compressed(options["labels"], **labels)  # type: ignore[arg-type]
        (path,) = Path(folder).rglob("*.mp4")
        settings = x264_settings(path)
        backend = f"{segmenter.backend.name}, {segmenter.backend.parallel} requests"
    return {
        "frames": count,
        "seconds": seconds,
        "fps": count / seconds,
        "cpu_ms": 1e3 * cpu / count,
        "remarks": backend,
        "settings": settings,
    }


def x264_settings(path: Path) -> str:
    """Return the settings that x264 stored in a video, "" if there are none."""
    match = re.search(rb"x264 - core [ -~]*options: ([ -~]+)", path.read_bytes())
    return match[1].decode() if match else ""


def peers_python() -> Path:
    """Return the Python of the peers' virtual environment; create it if it does not exist."""
    requirements = PEERS / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / f"benchmark-peers-{key}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        print(f"installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        ready.touch()
    return python


class _RunList:
    """The rows of one table: by name, a function that measures it once."""

    def __init__(self, model: Path, common: dict[str, Any], python: Path, folder: Path) -> None:
        self.runs: Runs = {}
        self._common, self._python, self._folder = common, python, folder
        metadata = read_metadata(model)
        height, width = metadata.input_size_hw
        self._peer_job = {
            "video": common["clip"],
            "frames": common["frames"],
            "threads": usable_cores(),
            "width": width,
            "height": height,
            "palette_rgb": _palette(metadata),
            "output": str(folder / "peer.mp4"),
            "sampled_frames": common["sampled_frames"],
            "options": ENCODER,
        }

    def add_ours(self, name: str, model: Path, backend: str) -> None:
        options = self._common | {"model": str(model), "backend": backend}
        self.runs[name] = partial(self._run_ours, options | self._labels_file())

    def add_peer(self, name: str, script: str, model: Path, **more: Any) -> None:
        options = self._peer_job | {"peer": name, "model": str(model)} | more
        self.runs[name] = partial(self._run_peer, script, options | self._labels_file())

    def _labels_file(self) -> dict[str, str]:
        return {"labels": str(self._folder / f"{len(self.runs)}.npz")}

    def _run_ours(self, options: dict[str, Any]) -> dict[str, Any]:
        return run_job("peers", options) | {"labels": options["labels"]}

    def _run_peer(self, script: str, options: dict[str, Any]) -> dict[str, Any]:
        command = [str(self._python), str(PEERS / script), json.dumps(options)]
        result = run_json(command, options["peer"]) | {"labels": options["labels"]}
        return result | {"settings": x264_settings(Path(options["output"]))}


def _palette(metadata: ModelMetadata) -> list[list[int]]:
    space = metadata.label_space
    palette: list[list[int]] = space.palette[: space.num_classes].tolist()
    return palette


def _list_runs(models: list[Path], common: dict[str, Any], python: Path, folder: Path) -> Runs:
    """Return the rows of the table for the files of one network."""
    rows, cores = _RunList(models[0], common, python, folder), usable_cores()
    is_fp32 = read_metadata(models[0]).precision == "fp32"
    for model in models:
        precision = read_metadata(model).precision
        for backend in common["backends"]:
            suffix = "" if backend == common["backends"][0] else f", {backend}"
            rows.add_ours(f"ours, {precision}{suffix}", model, backend_for(model, backend))
        if model == models[0] and is_fp32:
            rows.add_peer("plain loop, fp32", "loop.py", model)
            rows.add_peer("plain loop, fp32, MPEG-4", "loop.py", model, encoder="mp4v")
            rows.add_peer("supervision, fp32", "supervision_video.py", model)
            rows.add_peer(
                "supervision, fp32, MPEG-4", "supervision_video.py", model, encoder="mp4v"
            )
            rows.add_peer("Model API, fp32, 1 stream", "modelapi.py", model, streams=1)
        name = f"Model API, {precision}, {cores} streams"
        rows.add_peer(name, "modelapi.py", model, streams=cores)
    if is_fp32:
        # By default OpenVINO computes in bf16 on CPUs that support it: a different precision.
        name = "Model API, bf16 by default"
        rows.add_peer(name, "modelapi.py", models[0], streams=cores, precision="")
    return rows.runs


def run(models: list[Path], common: dict[str, Any], repeats: int, python: Path) -> dict[str, Any]:
    """Measure all rows for the files of one network, alternating."""
    with TemporaryDirectory() as folder:
        runs = _list_runs(models, common, python, Path(folder))
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for repeat in range(repeats):
            for name, measure in runs.items():
                print(f"  {repeat + 1}/{repeats} {name}", file=sys.stderr, flush=True)
                results[name].append(measure())
        ours = next(iter(results.values()))
        rows = [_summarize(name, each, ours, common) for name, each in results.items()]
    height, width = read_metadata(models[0]).input_size_hw
    encoder = ", ".join(f"{key} {value}" for key, value in ENCODER.items())
    print(f"\n{models[0].name}, {width}x{height}, {common['frames']} frames")
    print(f"videos are H.264 ({encoder}) unless the name says MPEG-4")
    _print_table(rows)
    return {
        "model": models[0].name,
        "input": f"{width}x{height}",
        "x264": ours[0]["settings"],
        "rows": rows,
    }


def _summarize(
    name: str, results: list[dict[str, Any]], ours: list[dict[str, Any]], common: dict[str, Any]
) -> dict[str, Any]:
    """Return the medians of a row; ratios are medians of the ratios within a turn."""
    first = results[0]
    remarks = first["remarks"]
    if first["frames"] != common["frames"]:
        remarks += f"; ONLY {first['frames']} FRAMES"
    if "MPEG-4" not in name and first["settings"] != ours[0]["settings"]:
        remarks += "; DIFFERENT ENCODER SETTINGS"
    ratios = [a["fps"] / b["fps"] for a, b in zip(ours, results, strict=True)]
    return {
        "name": name,
        "fps": median(each["fps"] for each in results),
        "fps_all": [each["fps"] for each in results],
        "cpu_ms": median(each["cpu_ms"] for each in results),
        "frames": first["frames"],
        "ours_is": median(ratios),
        "equal_labels": _equal_labels(Path(first["labels"]), Path(ours[0]["labels"])),
        "remarks": remarks,
        "versions": first.get("versions", {}),
    }


def _equal_labels(path: Path, reference: Path) -> float:
    """Return the fraction of pixels with equal labels in the sampled frames."""
    with np.load(path) as labels, np.load(reference) as expected:
        return float(np.mean([np.mean(labels[i] == expected[i]) for i in expected.files]))


def _print_table(rows: list[dict[str, Any]]) -> None:
    cells = [
        [
            row["name"],
            f"{row['fps']:.2f}",
            f"{min(row['fps_all']):.1f} – {max(row['fps_all']):.1f}",
            f"{row['cpu_ms']:.1f}",
            f"{row['ours_is']:.2f}×",
            f"{row['equal_labels']:.2%}",
            row["remarks"],
        ]
        for row in rows
    ]
    header = ("", "fps", "range", "CPU ms", "ours is", "equal labels", "")
    print(format_table(header, cells, align="lrrrrrl"))
