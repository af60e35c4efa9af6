"""Recordings of killed processes can be played, and are not removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import toy

from fada_deploy.runtime.writers.json_document import json_document
from fada_deploy.runtime.writers.options import SaveOptions
from fada_deploy.runtime.writers.output import Output
from fada_deploy.runtime.writers.recovery import recover_recordings
from fada_deploy.runtime.writers.video_writer import VideoWriter

# Writes 20 seconds of video, and is killed before the end of the file.
PROGRAM = """
import os, signal, sys
import numpy as np
from pathlib import Path
from fada_deploy.runtime.writers.label_video import label_video
from fada_deploy.runtime.writers.video_writer import VideoWriter

path, kind, faststart = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
rng = np.random.default_rng(0)
if kind == "mask":
    from fractions import Fraction
    with label_video(
        Path(path), (48, 64), time_base=Fraction(1, 25), fps=25, faststart=faststart
    ) as write:
        for number in range(500):
            write(rng.integers(0, 19, (48, 64), dtype=np.uint8), number)
        os.kill(os.getpid(), signal.SIGKILL)
with VideoWriter(path, (48, 64), fps=25, faststart=faststart) as writer:
    for _ in range(500):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, kind: str, *, faststart: bool) -> Path:
    """Return the temporary file of a process that was killed while it wrote a video."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), kind, str(faststart)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    (temporary,) = path.parent.glob(".*.partial.*")
    return temporary


def frames(path: Path) -> int:
    """Return how many frames a player shows, which stops at the truncated end."""
    count = 0
    with av.open(str(path)) as container:
        try:
            for _ in container.decode(video=0):
                count += 1
        except av.error.InvalidDataError:
            pass
    return count


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("kind", ["overlay", "mask"])
def test_a_recording_is_kept_up_to_its_last_seconds(kind: str, tmp_path: Path) -> None:
    killed(tmp_path / "front.mp4", kind, faststart=False)
    (tmp_path / "front-recovered.mp4").write_bytes(b"an earlier one")
    (tmp_path / ".front.12.partial.json").write_bytes(b"{")
    (recovered,) = recover_recordings(tmp_path)
    assert recovered.name == "front-recovered-2.mp4"
    # The encoder holds back frames too.
    assert frames(recovered) >= 500 - 5 * 25
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "front-recovered-2.mp4",
        "front-recovered.mp4",
    ]


def record(path: Path, count: int, *, fail: bool = False, faststart: bool = False) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    with VideoWriter(path, (48, 64), fps=25, faststart=faststart) as writer:
        for _ in range(count):
            writer.write(image)
        if fail:
            raise RuntimeError("inference failed")


def test_a_recording_is_kept_after_an_error(tmp_path: Path) -> None:
    """A live source cannot be read again; a file can."""
    long = "rtsp-192.168.178.20-554-cam-realmonitor-channel-1" * 4
    for name, faststart in (("front", False), ("file", True), (long, False)):
        with pytest.raises(RuntimeError, match="inference"):
            record(tmp_path / f"{name}.mp4", 100, fail=True, faststart=faststart)
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == ["front-recovered.mp4", f"{long}-recovered.mp4"]
    assert all(frames(path) > 0 for path in kept)


def test_an_earlier_recording_is_not_replaced(tmp_path: Path) -> None:
    for count in (3, 5, 7):
        record(tmp_path / "front.mp4", count)
    found = {path.name: frames(path) for path in tmp_path.iterdir()}
    assert found == {"front-2.mp4": 3, "front-3.mp4": 5, "front.mp4": 7}


def test_a_path_with_a_colon_is_no_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("2026-01-01T10:30/front.mp4")
    record(path, 3, faststart=True)
    assert path.is_file()
    killed_path = path.with_name(".rear.12.partial.mp4")
    path.rename(killed_path)
    assert recover_recordings(path.parent) == [path.with_name("rear-recovered.mp4")]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("name", ["REC.MP4", f"{'front-' * 30}.mp4"])
def test_any_name_of_a_recording_is_recovered(name: str, tmp_path: Path) -> None:
    """Long names are shortened while a file is written."""
    killed(tmp_path / name, "overlay", faststart=False)
    (recovered,) = recover_recordings(tmp_path, tmp_path / name)
    assert recovered.stem.endswith("-recovered") and recovered.suffix == Path(name).suffix
    assert frames(recovered) > 0


@pytest.mark.parametrize("preset", ["ultrafast", "medium"])
@pytest.mark.parametrize("first", [0, 75])
def test_timestamps_of_a_recording(preset: str, first: int, tmp_path: Path) -> None:
    """They are those of the frames, also with B-frames and if the first frames were dropped."""
    path = tmp_path / "front.mp4"
    image = np.zeros((48, 64, 3), np.uint8)
    with VideoWriter(path, (48, 64), fps=25, x264_preset=preset, faststart=False) as writer:
        for number in range(first, first + 200):
            writer.write(image, number)
    with av.open(str(path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert times == pytest.approx([number / 25 for number in range(first, first + 200)])


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_video_made_from_a_file_is_removed(tmp_path: Path) -> None:
    temporary = killed(tmp_path / "front.mp4", "overlay", faststart=True)
    assert recover_recordings(tmp_path) == []
    assert not temporary.exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_only_the_recording_of_a_named_file_is_recovered(tmp_path: Path) -> None:
    other = killed(tmp_path / "rear.mp4", "overlay", faststart=False)
    assert recover_recordings(tmp_path, tmp_path / "front.mp4") == []
    assert other.exists()
    (recovered,) = recover_recordings(tmp_path, tmp_path / "rear.mp4")
    assert recovered.name == "rear-recovered.mp4"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_the_document_of_a_killed_process_gets_its_end(tmp_path: Path, cut: int, end: str) -> None:
    """Also if the process was killed while it wrote a frame."""
    lines = ['{"source": "rtsp://nvr/front", "classes": ["road"], "frames": [']
    lines += [json.dumps({"index": i, "fractions": {"road": 1.0}}) + "," for i in range(3)]
    text = end.join(lines).rstrip(",")
    path = tmp_path / ".front.4711-0a1b2c.partial.json"
    path.write_bytes(text[: len(text) - cut].encode())
    other = tmp_path / ".drive.4711-0a1b2c.partial.json"
    other.write_text(text.replace("rtsp://nvr/front", str(tmp_path)))  # can be made again
    assert recover_recordings(tmp_path) == [tmp_path / "front-recovered.json"]
    document = json.loads((tmp_path / "front-recovered.json").read_text())
    assert [frame["index"] for frame in document["frames"]] == list(range(3 if cut == 0 else 2))
    assert [path.name for path in tmp_path.iterdir()] == ["front-recovered.json"]


@pytest.mark.parametrize("is_live", [True, False])
def test_the_document_of_a_live_source_is_kept_after_an_error(
    is_live: bool, tmp_path: Path
) -> None:
    source: Any = SimpleNamespace(name="rtsp://nvr/front", is_live=is_live)
    first: Any = SimpleNamespace(result=SimpleNamespace(space=toy.SPACE))
    output = Output(source, "front", first, SaveOptions(tmp_path))
    drawn: Any = SimpleNamespace(
        result=SimpleNamespace(fractions={"road": 1.0}, index=0, item="0", time_s=0.0)
    )
    with pytest.raises(RuntimeError, match="inference"), json_document(output) as write:
        write(drawn)
        raise RuntimeError("inference failed")
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "json").iterdir()}
    assert list(kept) == (["front-recovered.json"] if is_live else [])
    assert [len(document["frames"]) for document in kept.values()] == [1] * is_live
