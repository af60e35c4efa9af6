"""`fada infer --ray` as a user types it: a cluster on this machine, kills, an object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("ray")

Run = Callable[..., tuple[int, str, str]]
FADA = [sys.executable, "-m", "fada_deploy"]
# Backends round the sums of an int8 model differently, and the choice of one is remembered.
MODEL = ["--model", "builtin", "--backend", "onnxruntime"]
FRAMES = 300
# In the manifest: a part is done.
PART = '"line":"part"'


def write_video(path: Path, seed: int) -> Path:
    """Write a moving pattern with a keyframe every 20 frames."""
    pattern = np.random.default_rng(seed).integers(0, 256, (12, 60, 3), dtype=np.uint8)
    pattern = pattern.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(FRAMES):
            image = np.ascontiguousarray(pattern[:, index : index + 160])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate("ab"):
        write_video(folder / f"{name}.mp4", seed)
    return folder


def options(videos: Path, out: Path | str) -> list[object]:
    return [
        "infer", videos, *MODEL, "--save", "mask-video,json", "--out", out,
        "--ray", "local", "--ray-workers", 2, "--chunk-frames", 40,
    ]  # fmt: skip


def ids_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def expected(videos: Path) -> dict[str, list[np.ndarray]]:
    """The masks of one process."""
    out = videos.parent / "expected"
    subprocess.run(
        [*FADA, "infer", videos, *MODEL, "--save", "mask-video,json", "--out", out],
        check=True, capture_output=True,
    )  # fmt: skip
    return {path.name: ids_of(path) for path in (out / "mask-video").iterdir()}


def assert_complete(out: Path, expected: dict[str, list[np.ndarray]]) -> None:
    for name, frames in expected.items():
        for ids, other in zip(ids_of(out / "mask-video" / name), frames, strict=True):
            np.testing.assert_array_equal(ids, other)
        document = json.loads((out / "json" / name).with_suffix(".json").read_text())
        assert [frame["index"] for frame in document["frames"]] == list(range(FRAMES))


def test_a_killed_worker_and_a_killed_driver(
    videos: Path, expected: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    """The driver is killed after some chunks, later both workers: nothing is lost."""
    out = tmp_path / "out"
    command = [*FADA, *map(str, options(videos, out))]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_for_lines(out / "manifest.jsonl", PART, 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert driver.stderr is not None
    driver.stderr.close()
    assert not (out / "mask-video/a.mp4").exists() or not (out / "mask-video/b.mp4").exists()
    before = parts_of(out)
    driver = subprocess.Popen(
        [*command, "--resume", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(out / "manifest.jsonl", PART, len(before) + 1, driver)
    # Stopped, the driver gives out no further tasks until the workers are dead. Killing only one
    # could hit a worker that is still starting, and has no task to lose.
    driver.send_signal(signal.SIGSTOP)
    try:
        for worker in workers_of(driver.pid):
            os.kill(worker, signal.SIGKILL)
    finally:
        driver.send_signal(signal.SIGCONT)
    stdout, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert "a worker was lost" in stderr
    document = json.loads(stdout)
    assert document["failed"] == []
    assert_complete(out, expected)
    assert not (out / ".parts").exists()
    assert parts_of(out)[: len(before)] == before, "the job was begun anew"


def wait_for_lines(
    manifest: Path, text: str, count: int, driver: subprocess.Popen[bytes] | subprocess.Popen[str]
) -> None:
    deadline = time.monotonic() + 120
    while not manifest.is_file() or manifest.read_text().count(text) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts_of(out: Path) -> list[tuple[str, int]]:
    lines = (out / "manifest.jsonl").read_text().split("\n")[:-1]
    return [(d["id"], d["part"]) for d in map(json.loads, lines) if d["line"] == "part"]


def workers_of(driver: int) -> list[int]:
    """Return the processes of the Ray workers that a driver started, through its raylet."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            pid = int(status.parent.name)
            names[pid] = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        parent = int(text.split("PPid:")[1].split()[0])
        children.setdefault(parent, []).append(pid)
    pending, workers = [driver], []
    while pending:
        pid = pending.pop()
        if names.get(pid, "").startswith("ray::_Actor"):
            workers.append(pid)
        pending += children.get(pid, [])
    assert workers
    return workers


def test_an_object_store(
    videos: Path, expected: dict[str, list[np.ndarray]], tmp_path: Path, fada: Run, s3: str
) -> None:
    code, stdout, stderr = fada(*options(videos, f"{s3}/labels"), "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["frames"] == 2 * FRAMES
    assert document["workers"] == 2
    assert document["saved"]["json"] == f"{s3}/labels/json"
    import fsspec

    system, root = fsspec.core.url_to_fs(f"{s3}/labels", use_listings_cache=False)
    system.get(root, str(tmp_path / "copy"), recursive=True)
    assert_complete(tmp_path / "copy", expected)
    names = {path.relative_to(tmp_path / "copy").as_posix() for path in system_files(tmp_path)}
    assert names == {
        "manifest.jsonl", "json/a.json", "json/b.json", "mask-video/a.mp4", "mask-video/b.mp4",
    }  # fmt: skip


def system_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "copy").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.mp4", "--ray", "--show"], "--show"),
        (["rtsp://camera", "--ray"], "live source"),
        (["a.mp4", "--out", "b.mp4", "--ray"], "folder"),
        (["a.mp4", "--out", "s3://bucket/folder"], "--ray"),
        (["--ray", "a.mp4"], "end of the command"),
        (["a.mp4", "--out", "nothing://bucket", "--ray"], "nothing://bucket"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], part: str, videos: Path, fada: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes((videos / "a.mp4").read_bytes())
    code, _, stderr = fada("infer", *arguments)
    assert code == 2
    assert part in stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
