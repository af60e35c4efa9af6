"""Long runs keep their memory, threads and descriptors; `FADA_SOAK_S` sets their length."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import toy

# Long enough to see leaked threads and files; leaked memory is seen by `make torture`.
SECONDS = float(os.environ.get("FADA_SOAK_S", "5"))


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[str]:
    """Serve an endless stream whose connection breaks again and again."""
    clip = toy.write_video(tmp_path / "clip.ts", [toy.scene(i)[0] for i in range(20)]).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(40):
                    self.wfile.write(clip)
                    time.sleep(0.05)
            except OSError:
                return

    with toy.http_server(Handler) as address:
        yield f"{address}/clip.ts"


def usage(pid: int) -> tuple[int, int, int]:
    """Return resident memory in KiB, the number of threads, and of open files."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), files


def sample(process: subprocess.Popen[str], seconds: float) -> list[tuple[int, int, int]]:
    """Return the usage of a running process in each of the next seconds."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        assert process.poll() is None, process.communicate()[1]
        samples.append(usage(process.pid))
    return samples


def written(folder: Path) -> int:
    """Return the number of bytes in the files of a folder, which may not exist yet."""
    return sum(path.stat().st_size for path in folder.glob("*"))


def temporary_files() -> set[str]:
    return set(os.listdir(tempfile.gettempdir()))


@pytest.mark.slow
@pytest.mark.skipif("FADA_SOAK_S" not in os.environ, reason="run by `make torture`")
def test_training_is_flat(blocks: Path, tmp_path: Path) -> None:
    """Self-training with a state that is saved every second or so, interrupted and resumed."""
    command = [
        sys.executable, "-m", "fada_deploy", "train", "--src", blocks / "source.toml", "--tgt",
        blocks / "target.toml", "--recipe", "small", "--size", "96x64", "--out", "run",
        "--stages", "source,selftrain", "--set", "source.iterations=2", "--set",
        "selftrain.iterations=10000000", "--set",
        "selftrain.max_iterations=10000000", "--set", "save_every=20", "--set",
        "selftrain.batch=2", "--set", "selftrain.align=true",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "run/selftrain/metrics.jsonl"
    before_files = temporary_files()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        toy.wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 1500, process)
        before = usage(process.pid)
        samples = sample(process, SECONDS)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err, err
    memory, threads, files = (max(values) for values in zip(*samples, strict=True))
    assert memory < before[0] + 60_000 and threads <= before[1] + 2 and files <= before[2] + 3, (
        before, samples[:: max(1, len(samples) // 20)],
    )  # fmt: skip
    assert not [p for p in (tmp_path / "run").rglob("*") if ".partial" in p.name]
    assert not [name for name in temporary_files() - before_files if "fada" in name]


@pytest.mark.slow
def test_live_run_is_flat(stream: str, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "toy.onnx")
    command = [
        sys.executable, "-m", "fada_deploy", "infer", stream, "--model", model, "--out", "out",
        "--backend", "onnxruntime",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        # The packages are loaded and frames are written: what grows from here is per frame.
        toy.wait_until(lambda: written(tmp_path / "out/overlay") > 0, process)
        # Caches of FFmpeg and of the allocator fill in the first minutes.
        time.sleep(min(120.0, SECONDS / 2))
        assert process.poll() is None
        before = usage(process.pid)
        samples = sample(process, SECONDS)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    memory, threads, files = (max(values) for values in zip(*samples, strict=True))
    # The encoder and the caches of FFmpeg still grow a little in the first seconds.
    assert memory < before[0] + 40_000 and threads <= before[1] + 3 and files <= before[2] + 3, (
        before, samples[:: max(1, len(samples) // 20)],
    )  # fmt: skip
    assert len(toy.read_video(tmp_path / "out/overlay/clip.mp4")) > 20
