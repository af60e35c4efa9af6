"""Limits of the machine: one line, no half-written file, no traceback."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import toy
from processes import error_line, leftovers, run


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


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
    command: str, limit: int, noise_video: Path, blocks: Path, tmp_path: Path
) -> None:
    """A limit of the file size fails like a full disk, in the middle of a write."""
    names = {
        "VIDEO": noise_video, "MODEL": noise_video.parent / "toy.onnx",
        "SOURCE": blocks / "source.toml", "TARGET": blocks / "target.toml",
    }  # fmt: skip
    arguments = [names.get(word, word) for word in command.split()]
    done = run(arguments, tmp_path, limited(resource.RLIMIT_FSIZE, limit))
    line = error_line(done.stderr)
    assert done.returncode == 1 and "unexpected" not in line, done.stderr
    assert not leftovers(tmp_path)
    finals = [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".mp4", ".safetensors")]
    assert not finals


def test_results_to_a_full_device_are_one_line(noise_video: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(["inspect", noise_video.parent / "toy.onnx", "--json"], tmp_path, stdout=full)
    assert done.returncode == 1 and "No space left" in error_line(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("files", [12, 20, 40])
def test_few_file_descriptors(files: int, noise_video: Path, tmp_path: Path) -> None:
    done = run(
        ["infer", noise_video, "--model", noise_video.parent / "toy.onnx", "--out", "out",
         "--device", "cpu", "--backend", "onnxruntime"],
        tmp_path, limited(resource.RLIMIT_NOFILE, files),
    )  # fmt: skip
    assert "Traceback" not in done.stderr and not leftovers(tmp_path)
    if done.returncode:
        assert done.returncode == 1, done.stderr
    else:
        assert len(toy.read_video(tmp_path / "out/overlay/noise.mp4")) == 60


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which nobody can write, not even the superuser."""
    if os.geteuid() == 0:
        yield Path("/sys/kernel")
        return
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "infer VIDEO --model MODEL --out OUT",
        "train --src SOURCE --tgt TARGET --recipe small --size 96x64 --stages source --out OUT",
        "export TRAINED --out OUT/model.onnx",
        "data render --source-scenes 1 --size 96x64 --out OUT",
        "bench MODEL --plot OUT/speed.png",
    ],
)
def test_a_read_only_folder_is_one_line(
    command: str, noise_video: Path, blocks: Path, trained: Path, read_only: Path, tmp_path: Path
) -> None:
    names = {
        "VIDEO": noise_video, "MODEL": noise_video.parent / "toy.onnx", "TRAINED": trained,
        "SOURCE": blocks / "source.toml", "TARGET": blocks / "target.toml",
    }  # fmt: skip
    words = [names.get(word, word) for word in command.split()]
    words = [str(word).replace("OUT", str(read_only / "out")) for word in words]
    done = run(words, tmp_path)
    line = error_line(done.stderr)
    assert done.returncode == 1 and str(read_only) in line, done.stderr
    assert "unexpected" not in line


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [300, 1000])
def test_little_memory(mebibytes: int, noise_video: Path, tmp_path: Path) -> None:
    """A limit of the address space lets allocations fail at another place each time."""
    done = run(
        ["infer", noise_video, "--model", noise_video.parent / "toy.onnx", "--out", "out",
         "--device", "cpu", "--backend", "onnxruntime"],
        tmp_path, limited(resource.RLIMIT_AS, mebibytes * 2**20),
    )  # fmt: skip
    assert not leftovers(tmp_path)
    if done.returncode:
        error_line(done.stderr)
        assert done.returncode == 1, done.stderr
        assert not (tmp_path / "out/overlay/noise.mp4").exists()
    else:
        assert len(toy.read_video(tmp_path / "out/overlay/noise.mp4")) == 60


def test_frames_smaller_than_the_stride_of_the_network(noise_video: Path, tmp_path: Path) -> None:
    import cv2

    for size in ((1, 1), (2, 3), (1, 500)):
        assert cv2.imwrite(
            str(tmp_path / f"{size[0]}x{size[1]}.png"), np.zeros((*size, 3), np.uint8)
        )
    done = run(
        ["infer", *sorted(tmp_path.glob("*.png")), "--model", noise_video.parent / "toy.onnx",
         "--out", "out", "--save", "mask,overlay,npz,json"],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for size in ((1, 1), (2, 3), (1, 500)):
        mask = cv2.imread(str(tmp_path / f"out/mask/{size[0]}x{size[1]}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
