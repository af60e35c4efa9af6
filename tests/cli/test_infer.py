"""`fada infer`: output files, messages, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import toy

from fada_deploy.cli import infer_setup, main
from fada_deploy.cli.infer import command
from fada_deploy.common.images import read_indices, read_rgb
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.preference import fastest_backend
from fada_deploy.runtime.overlay.style import LEGEND_POSITIONS
from fada_deploy.runtime.sources.frame_slot import DROP_POLICIES
from fada_deploy.runtime.writers.save import KINDS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "model.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return toy.write_video(tmp_path / "drive.mp4", [toy.scene(i)[0] for i in range(10)])


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def infer(*args: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["infer", *map(str, args)])
    return int(exit_.value.code or 0)


def test_uses_the_newest_model_that_opens(
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
    output = capsys.readouterr()
    assert output.out == ""
    assert f"skipped {broken} is not an ONNX file" in output.err
    assert f"model {model}: 13 classes at 128x64, fp32, onnxruntime on cpu" in output.err
    assert "10 frames in" in output.err and "ms per frame: decode" in output.err
    assert f"saved {Path('runs/infer-002/overlay/drive.mp4')}\n" in output.err
    assert len(toy.read_video(Path("runs/infer-002/overlay/drive.mp4"))) == 10


def test_json_document_and_all_kinds_of_output(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = toy.write_image(tmp_path / "photo.png", toy.scene(0)[0])
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
        "--legend",
        "none",
        "--batch",
        "3",
        "--backend",
        "openvino",
        "--device",
        "cpu",
        "--json",
    ]
    assert infer(video, image, *args) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
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


def test_unreadable_image_does_not_stop_the_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for i in range(3):
        toy.write_image(folder / f"{i}.png", toy.scene(i)[0])
    (folder / "1.png").write_bytes(b"rubbish")
    assert infer(folder, "--model", model, "--out", "here", "--json") == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (
        summary["frames"] == 2 and len(summary["failed"]) == 1 and "1.png" in summary["failed"][0]
    )
    assert "failed: " in output.err and "1 error (listed above)" in output.err
    assert sorted(p.name for p in Path("here/overlay/in").iterdir()) == ["0.jpg", "2.jpg"]


def test_truncated_video_keeps_its_frames(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    video = toy.write_video(tmp_path / "cut.mkv", images)
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2])
    assert infer(video, "--model", model, "--out", "here") == 1
    messages = capsys.readouterr().err
    assert "cut.mkv: truncated or damaged" in messages
    assert 5 < len(toy.read_video(Path("here/overlay/cut.mp4"))) < 12


def test_all_sources_unreadable(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"rubbish")
    assert infer(tmp_path / "a.png", tmp_path / "b.png", "--model", model) == 1
    messages = capsys.readouterr().err
    assert "error: " in messages and "a.png" in messages and "b.png" in messages
    # No empty output folder remains.
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        ([], 2, "missing argument 'SOURCE"),
        (["nowhere.mp4"], 1, "nowhere.mp4: no such file or folder"),
        (["VIDEO", "--model", "nowhere.onnx"], 1, "nowhere.onnx: "),
        (["VIDEO", "--save", "movie"], 2, ", ".join(infer_setup.KINDS)),
        (["VIDEO", "--save", ","], 2, ", ".join(infer_setup.KINDS)),
        (["VIDEO", "--ids", "id"], 2, "'trainId', 'labelId'"),
        (["VIDEO", "--alpha", "2"], 2, "alpha"),
        (["VIDEO", "--batch", "0"], 2, "batch"),
        (["VIDEO", "--model", "MODEL", "--device", "tpu"], 2, "'tpu'"),
        (["VIDEO", "--model", "MODEL", "--backend", "jax"], 2, "'jax'"),
        (["VIDEO", "--out", "MODEL"], 2, "must be a folder, an .mp4 file or an image file"),
        (["VIDEO", "-o", "notes.md"], 2, "must be a folder, an .mp4 file or an image file"),
        (["VIDEO", "--model", "MODEL", "--classes", "lorry"], 2, "no class lorry"),
        (["VIDEO", "--x264-preset", "best"], 2, "'best'"),
        (["VIDEO", "--legend", "middle"], 2, "'bottom-right'"),
        (["VIDEO", "--drop-policy", "hope"], 2, "'drop-oldest'"),
        (["VIDEO", "--reconnect-timeout", "-1"], 2, "--reconnect-timeout"),
        (["VIDEO", "--deadline-ms", "0"], 2, "greater than 0"),
        (["VIDEO", "--save", "none"], 2, "--save none needs --show"),
        (["VIDEO", "--save", "overlay,none"], 2, "none cannot be combined"),
        (["VIDEO", "FOLDER", "--recursive"], 2, "exactly one folder, got 2 inputs"),
        (["VIDEO", "--model", "STAGE"], 1, "is a stage of a run; export it first: fada export"),
        (["VIDEO", "VIDEO", "--watch"], 2, "--watch takes exactly one folder"),
        (["VIDEO", "--watch"], 2, "drive.mp4 is a file; --watch needs a folder"),
        (["nowhere", "--watch"], 1, "no such folder"),
        (["VIDEO", "--save", "overlay,", "mask"], 2, "no space after the comma"),
        (["VIDEO", "--rebuild"], 2, "--model FILE.engine"),
        (["VIDEO", "0"], 2, "camera-0 is a live source"),
        (["VIDEO", "camera:0"], 2, "camera-0 is a live source"),
        (["VIDEO", "--show"], 2, "display"),
        (["*.webm", "--model", "MODEL"], 1, "*.webm: matches no file"),
        (["VIDEO", "--model", "MODEL", "--classes", "Road,cars"], 2, "no class cars; did you mean"),
        # Options are compared with the sources before the model is opened: none is given here.
        (["VIDEO", "-o", "o.avi"], 2, ".mp4"),
        (["VIDEO", "VIDEO", "IMAGE", "-o", "o.mp4"], 2, "got 2 sources and 1 kind;"),
        (["VIDEO", "-o", "o.mp4", "--save", "overlay,json"], 2, "got 1 source and 2 kinds;"),
        (["VIDEO", "-o", "o.mp4", "--save", "mask"], 2, "are images, not a video"),
        (["IMAGE", "-o", "o.mp4"], 2, "are images, not a video"),
        (["VIDEO", "-o", "VIDEO"], 2, "is the source itself"),
        (["IMAGE", "-o", "IMAGE"], 2, "is the source itself"),
        (["IMAGE", "IMAGE2", "-o", "o.png"], 2, "got 2 sources and 1 kind;"),
        (["FOLDER", "-o", "o.png"], 2, "several images"),
        (["VIDEO", "-o", "o.png"], 2, "is a video, not an image"),
        (["VIDEO", "-o", "o.png", "--save", "mask"], 2, "several images"),
        (["IMAGE", "-o", "o.jpg", "--save", "mask"], 2, "use a name ending in .png"),
        (["IMAGE", "-o", "o.png", "--save", "npz"], 2, "cannot hold npz"),
        (["IMAGE", "--save", "mask-video"], 2, "mask-video needs a video"),
    ],
)
def test_invalid_arguments(
    args: list[str],
    code: int,
    expected: str,
    model: Path,
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = toy.write_image(tmp_path / "photo.png", toy.scene(0)[0])
    second = toy.write_image(tmp_path / "photos/b.png", toy.scene(1)[0])
    paths = {"VIDEO": video, "MODEL": model, "IMAGE": image}
    (tmp_path / "selftrain").mkdir()
    (tmp_path / "selftrain/weights.safetensors").touch()
    paths |= {"IMAGE2": second, "FOLDER": second.parent, "STAGE": tmp_path / "selftrain"}
    assert infer(*(paths.get(a, a) for a in args)) == code
    output = capsys.readouterr()
    assert expected in output.err and "Traceback" not in output.err and output.out == ""


def test_no_backend_names_the_package(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", lambda name: None)
    assert infer(video) == 2
    assert "pip install" in capsys.readouterr().err


def test_imports_no_training_package(model: Path, video: Path) -> None:
    code = (
        "import sys\nfrom fada_deploy.cli import main\n"
        f"arguments = ['infer', {str(video)!r}, '--model', {str(model)!r}]\n"
        "try: main([*arguments, '--save', 'overlay,npz'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(*[m for m in ('torch', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # No progress bar, because stderr is not a terminal.
    assert done.stdout.strip() == "" and "\r" not in done.stderr


def test_second_interrupt_removes_unfinished_files(
    model: Path, tmp_path: Path, interruptible: Callable[[], None]
) -> None:
    """The slow encoder preset leaves time for the second signal."""
    clip = toy.write_video(tmp_path / "long.mp4", [toy.scene(0, (512, 1024))[0]] * 400)
    command = [sys.executable, "-c", "from fada_deploy.cli import main; main()", "infer", str(clip)]
    command += ["--model", str(model), "--out", "here", "--save", "overlay,mask"]
    command += ["--x264-preset", "veryslow"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=interruptible
    )
    toy.wait_until(Path("here/mask/long/000003.png").exists, process)
    assert process.stderr is not None
    os.kill(process.pid, signal.SIGINT)
    while "press Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in messages and "Traceback" not in messages
    assert not list(Path("here/overlay").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_watched_folder(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "incoming"
    toy.write_image(folder / "a.png", toy.scene(0)[0])
    command = [sys.executable, "-m", "fada_deploy", "infer", folder, "--watch", "--save", "mask"]
    command += ["--model", model, "--out", tmp_path / "out", "--json"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip

    toy.wait_until((tmp_path / "out/mask/incoming/a.png").exists, process)
    toy.write_image(folder / "b.png", toy.scene(1)[0])
    toy.wait_until((tmp_path / "out/mask/incoming/b.png").exists, process)
    process.send_signal(number)
    document, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    summary = json.loads(document)
    assert summary["frames"] == 2 and summary["failed"] == []


def test_unreadable_video_does_not_stop_the_others(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "a.mp4"
    bad.write_text("not a video")
    (tmp_path / "sub").mkdir()
    same = tmp_path / "sub" / video.name
    same.write_bytes(video.read_bytes())
    assert infer(bad, video, same, "--model", model, "--out", tmp_path / "out", "--json") == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (
        summary["frames"] > 0
        and len(summary["failed"]) == 1
        and "a.mp4: not a readable video" in summary["failed"][0]
    )
    # The second file of the same name is numbered.
    assert (
        summary["names"][str(same)] == f"{video.stem}-2"
        and f"{same} was saved as {video.stem}-2" in output.err
    )
    assert (tmp_path / "out/overlay" / f"{video.stem}-2.mp4").exists()
    assert infer(tmp_path, "--model", model, "--out", tmp_path / "out2") == 1
    assert "3 subfolders not searched" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_a_video_completes_its_files(
    model: Path, tmp_path: Path, interruptible: Callable[[], None], number: signal.Signals
) -> None:
    clip = toy.write_video(tmp_path / "long.mp4", [toy.scene(0, (512, 1024))[0]] * 400)
    other = toy.write_video(tmp_path / "other.mp4", [toy.scene(0)[0]] * 3)
    command = [sys.executable, "-m", "fada_deploy", "infer", str(clip), str(other)]
    command += ["--model", str(model), "--save", "overlay,json", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
        cwd=tmp_path,
    )
    toy.wait_until(lambda: bool(list(tmp_path.glob("runs/*/overlay/.*"))), process)
    process.send_signal(number)
    document, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    summary = json.loads(document)
    frames = summary["frames"]
    assert summary["interrupted"] == {"source": str(clip), "frames": frames, "unread_sources": 1}
    assert "Traceback" not in messages
    (line,) = [line for line in messages.splitlines() if line.startswith("interrupted")]
    assert f"{frames} frame" in line and str(clip) in line and "rest is missing" in line
    assert 0 < frames < 400
    files = [p for p in tmp_path.glob("runs/*/*/*")]
    assert sorted(p.name for p in files) == ["long.json", "long.mp4"]
    assert len(toy.read_video(tmp_path / "runs/infer-001/overlay/long.mp4")) == frames
    labeled = json.loads((tmp_path / "runs/infer-001/json/long.json").read_text())
    assert len(labeled["frames"]) == frames


def test_watched_folder_ended_before_the_first_image(model: Path, tmp_path: Path) -> None:
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
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("model ")
    line = process.stderr.readline()
    assert "incoming" in line and "Ctrl-C" in line
    process.send_signal(signal.SIGINT)
    document, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert json.loads(document)["frames"] == 0 and not (tmp_path / "runs/infer-001").exists()


def test_first_long_video_measures_the_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    verification = {"onnxruntime": {}, "openvino": {}}
    metadata = ModelMetadata(
        toy.SPACE, (64, 128), "logits", align_corners=False, verification=verification
    )
    model = toy.color_model(tmp_path / "verified.onnx", metadata=metadata.to_json())
    video = toy.write_video(tmp_path / "long.mp4", [toy.scene(i)[0] for i in range(120)])
    start = threading.Thread.start

    def start_and_wait(thread: threading.Thread) -> None:
        start(thread)
        # The toy model would finish the video before the other backend is open.
        if thread.name == "fada-autotune":
            thread.join()

    monkeypatch.setattr(threading.Thread, "start", start_and_wait)
    assert infer(video, "--model", model) == 0
    messages = capsys.readouterr().err
    assert "ms per batch: onnxruntime " in messages and "--backend auto will use" in messages
    assert infer(video, "--model", model, "--json") == 0
    output = capsys.readouterr()
    assert (
        json.loads(output.out)["backend"] == fastest_backend(metadata)
        and "measured" not in output.err
    )


def test_out_names_the_video_file(model: Path, video: Path) -> None:
    assert infer(video, "--model", model, "-o", "new/labeled.mp4") == 0
    assert [str(p) for p in Path().rglob("*") if p.is_file()] == ["new/labeled.mp4"]
    assert len(toy.read_video(Path("new/labeled.mp4"))) == 10


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "overlay"), ("a.jpg", "overlay"), ("a.png", "mask")]
)
def test_out_names_the_image_file(model: Path, tmp_path: Path, name: str, kind: str) -> None:
    image = toy.write_image(tmp_path / "photo.png", toy.scene(0)[0])
    assert infer(image, "--model", model, "-o", f"new/{name}", "--save", kind) == 0
    assert [str(p) for p in Path().rglob("*") if p.is_file()] == [f"new/{name}"]
    assert read_rgb(Path("new") / name).shape == (64, 128, 3)


def test_classes_ignore_case(model: Path, video: Path) -> None:
    assert infer(video, "--model", model, "--classes", "Road,SKY") == 0


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--deadline-ms", "5", "--drop-policy", "wait"], ["--drop-policy", "--deadline-ms"]),
        (["--reconnect-timeout", "30"], ["--reconnect-timeout"]),
        (["--ids", "trainId"], ["--ids"]),
        (["--ids", "trainId", "--save", "mask"], []),
        (["--ids", "labelId", "--save", "mask-video"], []),
        (["--alpha", "0.5", "--legend", "none", "--contours"], []),
        (
            [
                "--save",
                "mask",
                "--alpha",
                "0.5",
                "--legend",
                "none",
                "--contours",
                "--classes",
                "road",
                "--side-by-side",
            ],
            ["--alpha", "--legend", "--contours", "--side-by-side", "--classes"],
        ),
        (["--rebuild"], ["--rebuild"]),
        ([], []),
    ],
)
def test_warns_about_options_without_effect(
    model: Path,
    video: Path,
    args: list[str],
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert infer(video, "--model", model, *args) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert [line.split()[:2] for line in lines] == [["warning:", option] for option in options]


def test_missing_file_among_others_is_reported(
    model: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert infer("missing.mp4", video, "empty", "--model", model, "--out", "here", "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 10 and Path("here/overlay/drive.mp4").is_file()
    assert summary["failed"][0] == "missing.mp4: no such file or folder"
    assert summary["failed"][1].startswith("empty: ")


def test_standard_input_without_data_is_one_message(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fada_deploy", "infer", "-", "--model", str(model)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("standard input: no data, or not a video") == 1


def test_out_names_an_existing_folder_with_a_video_suffix(model: Path, video: Path) -> None:
    Path("labeled.mp4").mkdir()
    assert infer(video, "--model", model, "-o", "labeled.mp4") == 0
    assert Path("labeled.mp4/overlay/drive.mp4").is_file()


def test_empty_glob_among_others_is_reported(
    model: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", model, "--out", "here", "--save", "mask-video", "--json"]
    assert infer("*.webm", video, *arguments) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 10 and len(summary["failed"]) == 1
    assert "*.webm: matches no file" in summary["failed"][0]
    assert Path("here/mask-video/drive.mp4").is_file()


def test_folder_named_like_a_camera_is_a_folder(model: Path) -> None:
    toy.write_image(Path("2024/a.png"), toy.scene(0)[0])
    assert infer("2024", "--model", model, "--out", "here") == 0
    assert Path("here/overlay/2024/a.jpg").is_file()


def test_option_choices_are_those_of_the_library() -> None:
    assert infer_setup.KINDS == KINDS
    assert infer_setup.LEGEND_POSITIONS == LEGEND_POSITIONS
    assert infer_setup.DROP_POLICIES == DROP_POLICIES
    (save,) = [p for p in command.params if p.name == "save"]
    assert isinstance(save, click.Option) and save.help is not None
    assert all(f"{kind} (" in save.help for kind in infer_setup.KINDS)


class FakeViewer:
    """A viewer without a window; `closes_after` images the user closes it."""

    closes_after = 1000
    created: list[FakeViewer]

    def __init__(self, title: str, *, on_close: Callable[[], None]) -> None:
        self.closed, self.failure, self.is_ready = False, "", True
        self.shown: list[np.ndarray] = []
        self.waited = False
        self._on_close = on_close
        FakeViewer.created.append(self)

    def show(self, image: np.ndarray) -> bool:
        self.shown.append(image)
        if len(self.shown) == self.closes_after:
            self.closed = True
            self._on_close()
        return not self.closed

    def wait(self) -> None:
        self.waited = True

    def __enter__(self) -> FakeViewer:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


@pytest.fixture
def viewers(monkeypatch: pytest.MonkeyPatch) -> list[FakeViewer]:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("fada_deploy.runtime.viewer.require_display", lambda: None)
    monkeypatch.setattr("fada_deploy.runtime.viewer.Viewer", FakeViewer)
    FakeViewer.created = []
    return FakeViewer.created


def test_show_displays_a_video_and_closes(
    model: Path, video: Path, viewers: list[FakeViewer]
) -> None:
    assert infer(video, "--model", model, "--show", "--save", "none") == 0
    (viewer,) = viewers
    assert len(viewer.shown) == 10 and viewer.shown[0].shape == (64, 128, 3)
    assert not viewer.waited and not list(Path("runs").iterdir())


def test_show_keeps_the_last_image_open(
    model: Path, tmp_path: Path, viewers: list[FakeViewer]
) -> None:
    image = toy.write_image(tmp_path / "photo.png", toy.scene(0)[0])
    assert infer(image, "--model", model, "--show", "--side-by-side", "--out", "here") == 0
    (viewer,) = viewers
    assert viewer.waited and viewer.shown[-1].shape == (64, 256, 3)
    assert Path("here/overlay/photo.jpg").is_file()


def test_closing_the_window_stops_live_sources(
    model: Path, tmp_path: Path, viewers: list[FakeViewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeViewer, "closes_after", 2)
    folder = tmp_path / "incoming"
    for i in range(3):
        toy.write_image(folder / f"{i}.png", toy.scene(i)[0])
    assert infer(folder, "--watch", "--model", model, "--show", "--save", "none") == 0
    assert viewers[0].closed and not viewers[0].waited
