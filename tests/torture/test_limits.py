"""Limits of the machine, and kills: one line, no half-written file, and the next run goes on."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import toy

FACTOR = int(os.environ.get("FADA_TORTURE", "1"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


def run(
    arguments: Sequence[object],
    folder: Path,
    before: Callable[[], None] | None = None,
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Run `fada` in a process of its own."""
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments)]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, cwd=folder, preexec_fn=before, text=True, env=ENVIRONMENT, timeout=300,
        check=False, stderr=subprocess.PIPE, **({"stdout": subprocess.PIPE} | options),
    )  # fmt: skip


def error_line(err: str) -> str:
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.rstrip().splitlines()[-1] == lines[0], err
    return lines[0]


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".partial" in p.name]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 128, 3), dtype=np.uint8) for _ in range(60)]
    toy.color_model(folder / "toy.onnx")
    return toy.write_video(folder / "v.mp4", noise)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("infer VIDEO --model MODEL --out out", 30_000),
        ("infer VIDEO --model MODEL --out out --save mask-video,json", 2_000),
        ("train --src SOURCE --tgt TARGET --recipe small --size 96x64 --stages source --batch 2 "
         "--set source.iterations=2 --set save_every=1 --set backbone=resnet18 --out out", 100_000),
        ("train --src SOURCE --tgt TARGET --recipe small --size 96x64 --stages source --batch 2 "
         "--set source.iterations=2 --set backbone=resnet18 --out out", 3_000),
        ("data render --source-scenes 2 --target-scenes 0 --val-scenes 0 --video-seconds 0 "
         "--size 96x64 --out out", 4_000),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line(
    command: str, limit: int, video: Path, blocks: Path, tmp_path: Path
) -> None:
    """A limit of the file size fails like a full disk, in the middle of a write."""
    names = {
        "VIDEO": video, "MODEL": video.parent / "toy.onnx",
        "SOURCE": blocks / "source.toml", "TARGET": blocks / "target.toml",
    }  # fmt: skip
    arguments = [names.get(word, word) for word in command.split()]
    done = run(arguments, tmp_path, limited(resource.RLIMIT_FSIZE, limit))
    line = error_line(done.stderr)
    assert done.returncode == 1 and "unexpected" not in line, done.stderr
    assert not leftovers(tmp_path)
    finals = [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".mp4", ".safetensors")]
    assert not finals


def test_results_to_a_full_device_are_one_line(video: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(["inspect", video.parent / "toy.onnx", "--json"], tmp_path, stdout=full)
    assert done.returncode == 1 and "No space left" in error_line(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("files", [12, 20, 40])
def test_few_file_descriptors(files: int, video: Path, tmp_path: Path) -> None:
    done = run(
        ["infer", video, "--model", video.parent / "toy.onnx", "--out", "out", "--device", "cpu",
         "--backend", "onnxruntime"],
        tmp_path, limited(resource.RLIMIT_NOFILE, files),
    )  # fmt: skip
    assert "Traceback" not in done.stderr and not leftovers(tmp_path)
    if done.returncode:
        assert done.returncode == 1, done.stderr
    else:
        assert len(toy.read_video(tmp_path / "out/overlay/v.mp4")) == 60


@pytest.mark.slow
def test_killed_inference_leaves_nothing_half_made(video: Path, tmp_path: Path) -> None:
    """`fada infer` is killed at random moments; the next run completes and gives the same."""
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
    command = [
        sys.executable, "-m", "fada_deploy", "infer", *(f"{name}.mp4" for name in names), "--model",
        str(video.parent / "toy.onnx"), "--save", "mask-video,json", "--backend", "onnxruntime",
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(
        [*command, "--out", "whole"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True
    )
    seconds = time.monotonic() - start
    whole = [_frames(tmp_path / f"whole/mask-video/{name}.mp4") for name in names]
    randomness, kills = random.Random(0), 0
    wanted = 1 + FACTOR // 4
    for attempt in range(5 * wanted):
        if kills == wanted:
            break
        out = tmp_path / f"killed-{attempt}"
        with subprocess.Popen(
            [*command, "--out", out], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(randomness.uniform(0.2, 0.9) * seconds)
            process.send_signal(signal.SIGKILL)
        if process.returncode != -signal.SIGKILL:
            continue
        kills += 1
        for path in out.rglob("[!.]*.mp4"):
            assert len(_frames(path)) == 60
        for path in out.rglob("[!.]*.json"):
            json.loads(path.read_text())
        done = run([*command[3:], "--out", out, "--resume"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert not leftovers(out)
        for name, expected in zip(names, whole, strict=True):
            np.testing.assert_array_equal(_frames(out / f"mask-video/{name}.mp4"), expected)
    assert kills == wanted


def _frames(path: Path) -> np.ndarray:
    return np.stack([rgb for _, rgb in toy.read_video(path)])


def test_frames_smaller_than_the_stride_of_the_network(video: Path, tmp_path: Path) -> None:
    import cv2

    for size in ((1, 1), (2, 3), (1, 500)):
        assert cv2.imwrite(
            str(tmp_path / f"{size[0]}x{size[1]}.png"), np.zeros((*size, 3), np.uint8)
        )
    done = run(
        ["infer", *sorted(tmp_path.glob("*.png")), "--model", video.parent / "toy.onnx", "--out",
         "out", "--save", "mask,overlay,npz,json"],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for size in ((1, 1), (2, 3), (1, 500)):
        mask = cv2.imread(str(tmp_path / f"out/mask/{size[0]}x{size[1]}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
