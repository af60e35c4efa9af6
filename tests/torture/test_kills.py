"""Commands that are killed at random moments: nothing half-made, and the next run completes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
from processes import FACTOR, killed_runs, leftovers, run


def frames_of(path: Path) -> np.ndarray:
    return np.stack([rgb for _, rgb in toy.read_video(path)])


def assert_complete(folder: Path) -> None:
    """Assert that each file under a final name is complete."""
    for path in folder.rglob("[!.]*"):
        if ".partial" in path.name:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name] is not None for name in arrays.files)
        elif path.suffix == ".mp4":
            assert len(frames_of(path)) == 60


@pytest.mark.slow
def test_killed_inference(noise_video: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(noise_video.read_bytes())

    def command(out: Path) -> list[object]:
        return [
            "infer", *(f"{name}.mp4" for name in names), "--model", noise_video.parent / "toy.onnx",
            "--save", "mask-video,json", "--backend", "onnxruntime", "--out", out,
        ]  # fmt: skip

    start = time.monotonic()
    assert run(command(tmp_path / "whole"), tmp_path).returncode == 0
    seconds = time.monotonic() - start
    whole = [frames_of(tmp_path / f"whole/mask-video/{name}.mp4") for name in names]
    for out in killed_runs(command, tmp_path, seconds=seconds, kills=1 + FACTOR // 4):
        assert_complete(out)
        done = run([*command(out), "--resume"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert not leftovers(out)
        for name, expected in zip(names, whole, strict=True):
            np.testing.assert_array_equal(frames_of(out / f"mask-video/{name}.mp4"), expected)


@pytest.mark.slow
@pytest.mark.skipif(FACTOR == 1, reason="takes minutes; run `make torture`")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--precision", "int8", "--calibration-frames", 8], id="int8"),
        pytest.param(["--trt", "--trt-flavor", "tensorrt_rtx"], id="engine"),
    ],
)
def test_killed_export(options: list[object], trained: Path, tmp_path: Path) -> None:
    """The files, the calibration and the engine build of an export are interrupted."""
    if "--trt" in options:
        pytest.importorskip("tensorrt_rtx")

    def command(out: Path) -> list[object]:
        return ["export", trained / "source", *options, "--out", out / "model.onnx"]

    start = time.monotonic()
    done = run(command(tmp_path / "whole"), tmp_path)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - start
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    for out in killed_runs(command, tmp_path, seconds=seconds, kills=1 + FACTOR // 10):
        assert_complete(out)
        done = run(command(out), tmp_path)
        assert done.returncode == 0, done.stderr
        assert not leftovers(out) and {path.name for path in out.iterdir()} == names
        for path in out.glob("*.onnx"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
