"""`fada infer` from its arguments to its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy

from fada_deploy.cli import main
from fada_deploy.common.images import read_indices
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.preference import fastest_backend


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "model.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return toy.write_video(tmp_path / "drive.mp4", [toy.scene(i)[0] for i in range(10)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def infer(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["infer", *map(str, args)])
    return int(stop.value.code or 0)


def test_a_video_by_the_newest_model(
    model: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exports = Path("runs/a-b-net-001/export")
    exports.mkdir(parents=True)
    model = model.rename(exports / "model.onnx")
    os.utime(model, (0, 0))
    broken = exports / "broken.onnx"
    broken.write_bytes(b"rubbish")
    assert infer(video) == 0
    assert infer(video) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"skipped {broken}: is no ONNX file" in said.err
    assert f"model {model}: 13 classes at 128x64, fp32, onnxruntime on cpu" in said.err
    assert "10 frames in" in said.err and "fps; ms a frame: decode" in said.err
    assert f"saved {Path('runs/infer-002/overlay')}" in said.err
    assert len(toy.read_video(Path("runs/infer-002/overlay/drive.mp4"))) == 10


def test_no_model(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer(video) == 1
    assert (
        "no model under runs/: type `fada export` first, or give --model PATH"
        in capsys.readouterr().err
    )
    assert not Path("runs").exists()


def test_json_is_one_document_and_everything_is_saved(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = toy.write_image(tmp_path / "photo.png", toy.scene(0)[0])
    args = [
        "--model",
        model,
        "--out",
        "here",
        "--save",
        "overlay, mask,color,npz,json",
        "--ids",
        "labelId",
    ]
    args += [
        "--alpha",
        "0.3",
        "--no-legend",
        "--batch",
        "3",
        "--backend",
        "openvino",
        "--device",
        "cpu",
        "--json",
    ]
    assert infer(video, picture, *args) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["frames"], summary["failed"], summary["backend"]) == (11, [], "openvino")
    assert summary["input_size"] == {"width": 128, "height": 64} and summary["fps"] > 0
    assert set(summary["ms_per_frame"]) == {
        "decode",
        "resize",
        "network",
        "upsample",
        "draw",
        "write",
    }
    assert list(summary["saved"]) == ["overlay", "mask", "color", "npz", "json"]
    assert all(any(Path(folder).iterdir()) for folder in summary["saved"].values())
    labels = read_indices(Path("here/mask/photo.png"))
    assert np.isin(labels, [c.label_id for c in toy.SPACE.classes]).all() and labels.max() > 6


def test_a_corrupt_picture_among_good_ones(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for i in range(3):
        toy.write_image(folder / f"{i}.png", toy.scene(i)[0])
    (folder / "1.png").write_bytes(b"rubbish")
    assert infer(folder, "--model", model, "--out", "here", "--json") == 1
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (
        summary["frames"] == 2 and len(summary["failed"]) == 1 and "1.png" in summary["failed"][0]
    )
    assert "failed: " in said.err and "1 failed, see above; the others are done" in said.err
    assert sorted(p.name for p in Path("here/overlay/in").iterdir()) == ["0.jpg", "2.jpg"]


def test_a_video_cut_midway(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    whole = toy.write_video(tmp_path / "cut.mkv", pictures)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    assert infer(whole, "--model", model, "--out", "here") == 1
    said = capsys.readouterr().err
    assert "cut.mkv: cut short or damaged" in said
    assert 5 < len(toy.read_video(Path("here/overlay/cut.mp4"))) < 12


def test_nothing_that_can_be_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"rubbish")
    assert infer(tmp_path / "a.png", tmp_path / "b.png", "--model", model) == 1
    said = capsys.readouterr().err
    assert "error: " in said and "a.png" in said and "b.png" in said
    # No empty folder is left behind.
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        ([], 2, "Missing argument"),
        (["nowhere.mp4"], 1, "nowhere.mp4: no such file or folder"),
        (["VIDEO", "--model", "nowhere.onnx"], 1, "nowhere.onnx: no such model file"),
        (
            ["VIDEO", "--save", "film"],
            2,
            "choose from overlay, mask, mask-video, color, color-video, npz, json, or none",
        ),
        (
            ["VIDEO", "--save", ","],
            2,
            "choose from overlay, mask, mask-video, color, color-video, npz, json, or none",
        ),
        (["VIDEO", "--ids", "id"], 2, "'trainId', 'labelId'"),
        (["VIDEO", "--alpha", "2"], 2, "alpha"),
        (["VIDEO", "--batch", "0"], 2, "batch"),
        (["VIDEO", "--model", "MODEL", "--device", "tpu"], 2, "there are auto, cpu and cuda[:N]"),
        (
            ["VIDEO", "--model", "MODEL", "--backend", "jax"],
            2,
            "there are auto, onnxruntime, openvino",
        ),
        (["VIDEO", "--model", "MODEL", "--out", "MODEL"], 1, "cannot be written"),
        (
            ["VIDEO", "--model", "MODEL", "--classes", "lorry"],
            2,
            "the model has no class lorry; it has road, ",
        ),
        (
            ["VIDEO", "--model", "MODEL", "--preset", "best"],
            2,
            "no preset 'best'; there are ultrafast, ",
        ),
        (["VIDEO", "--save", "none"], 2, "--save none without --show would leave nothing"),
        (["VIDEO", "VIDEO", "--watch"], 2, "--watch takes one folder"),
        (["VIDEO", "--watch"], 1, "no such folder to watch"),
        (["VIDEO", "--rebuild"], 2, "give --model FILE.engine"),
        (["VIDEO", "0"], 2, "camera-0 is live, and the others would wait for its end"),
        (["VIDEO", "--show"], 2, "no display to show a window on"),
    ],
)
def test_bad_calls(
    args: list[str],
    code: int,
    expected: str,
    model: Path,
    video: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"VIDEO": str(video), "MODEL": str(model)}
    assert infer(*(named.get(a, a) for a in args)) == code
    said = capsys.readouterr()
    assert expected in said.err and "Traceback" not in said.err and said.out == ""


def test_no_engine_says_what_to_type(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", lambda name: None)
    assert infer(video) == 2
    assert "type: pip install 'fada_deploy[cpu]'" in capsys.readouterr().err


def test_no_torch(model: Path, video: Path) -> None:
    code = (
        "import sys\nfrom fada_deploy.cli import main\n"
        f"try: main(['infer', {str(video)!r}, '--model', {str(model)!r}, '--save', 'overlay,npz'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(*[m for m in ('torch', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Not a terminal: no progress bar either.
    assert done.stdout.strip() == "" and "\r" not in done.stderr


def test_interrupted(model: Path, tmp_path: Path, interruptible: Callable[[], None]) -> None:
    picture = toy.scene(0, (512, 1024))[0]
    film = toy.write_video(tmp_path / "long.mp4", [picture] * 400)
    command = [sys.executable, "-c", "from fada_deploy.cli import main; main()", "infer", str(film)]
    command += ["--model", str(model), "--out", "here", "--save", "overlay,mask"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=interruptible
    )
    toy.until(Path("here/mask/long/000003.png").exists, process)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert not list(Path("here/overlay").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watched_folder_until_a_signal(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "incoming"
    toy.write_image(folder / "a.png", toy.scene(0)[0])
    command = [sys.executable, "-m", "fada_deploy", "infer", folder, "--watch", "--save", "mask"]
    command += ["--model", model, "--out", tmp_path / "out", "--json"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip

    toy.until((tmp_path / "out/mask/incoming/a.png").exists, process)
    toy.write_image(folder / "b.png", toy.scene(1)[0])
    toy.until((tmp_path / "out/mask/incoming/b.png").exists, process)
    process.send_signal(number)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    summary = json.loads(said)
    assert summary["frames"] == 2 and summary["failed"] == []


def test_a_broken_film_among_others_costs_these_nothing(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "a.mp4"
    bad.write_text("no film")
    (tmp_path / "sub").mkdir()
    same = tmp_path / "sub" / video.name
    same.write_bytes(video.read_bytes())
    assert infer(bad, video, same, "--model", model, "--out", tmp_path / "out", "--json") == 1
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (
        summary["frames"] > 0
        and len(summary["failed"]) == 1
        and "a.mp4: is no video" in summary["failed"][0]
    )
    # Which of two of a name is which.
    assert (
        summary["names"][str(same)] == f"{video.stem}-2"
        and f"{same} is {video.stem}-2 there" in said.err
    )
    assert (tmp_path / "out/overlay" / f"{video.stem}-2.mp4").exists()
    assert infer(tmp_path, "--model", model, "--out", tmp_path / "out2") == 1
    assert "in it not looked into" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_a_film_leaves_no_half_of_it(
    model: Path, tmp_path: Path, interruptible: Callable[[], None], number: signal.Signals
) -> None:
    film = toy.write_video(tmp_path / "long.mp4", [toy.scene(0, (512, 1024))[0]] * 400)
    command = [sys.executable, "-m", "fada_deploy", "infer", str(film), "--model", str(model)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
        cwd=tmp_path,
    )
    toy.until(lambda: bool(list(tmp_path.glob("runs/*/overlay/.*"))), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert not list(tmp_path.glob("runs/*"))


def test_a_watch_that_is_ended_before_a_picture_came(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "fada_deploy",
        "infer",
        folder,
        "--watch",
        "--model",
        model,
        "--json",
    ]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("model ")
    assert "incoming: until the end or Ctrl-C" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert json.loads(said)["frames"] == 0 and not (tmp_path / "runs/infer-001").exists()


def test_the_first_long_film_races_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    proven = {"onnxruntime": {}, "openvino": {}}
    metadata = ModelMetadata(
        toy.SPACE, (64, 128), "logits", align_corners=False, verification=proven
    )
    model = toy.color_model(tmp_path / "proven.onnx", metadata=metadata.to_json())
    video = toy.write_video(tmp_path / "long.mp4", [toy.scene(i)[0] for i in range(120)])
    start = threading.Thread.start

    def start_and_wait(thread: threading.Thread) -> None:
        start(thread)
        # A toy is through its film before the rival is there.
        if thread.name == "fada-race":
            thread.join()

    monkeypatch.setattr(threading.Thread, "start", start_and_wait)
    assert infer(video, "--model", model) == 0
    told = capsys.readouterr().err
    assert (
        "measured beside it, ms a batch: onnxruntime " in told
        and "from now on --backend auto takes" in told
    )
    assert infer(video, "--model", model, "--json") == 0
    said = capsys.readouterr()
    assert (
        json.loads(said.out)["backend"] == fastest_backend(metadata) and "measured" not in said.err
    )
