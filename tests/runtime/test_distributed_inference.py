"""Jobs whose videos are divided write what a single process writes; here without Ray."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import chunk_videos
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.cluster.connection import ClusterOptions, worker_device
from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.cluster.pool import LostTask, WorkerInfo
from fada_deploy.common.errors import DataError, DeviceError, UsageError
from fada_deploy.common.runs import MANIFEST
from fada_deploy.runtime.distributed import job
from fada_deploy.runtime.distributed.job import ModelOptions, run_job
from fada_deploy.runtime.distributed.job_state import JobSummary
from fada_deploy.runtime.distributed.join import PartsDifferError, join_videos
from fada_deploy.runtime.distributed.tasks import JoinTask, PartTask
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.inference import InferenceSummary, run_inference
from fada_deploy.runtime.writers.save import KINDS, SaveOptions

Task = Any


class InlinePool:
    """Runs the tasks of a job in this process. `on_task` may change or lose one."""

    workers: list[WorkerInfo] = []  # noqa: RUF012
    on_task: Callable[[Task], Any] | None = None

    def __init__(self, factory: Callable[[], Callable[[Task], Any]], options: object) -> None:
        self._factory = factory

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def run(
        self,
        take: Callable[[], Task | None],
        stop: object = None,
        *,
        on_ready: Callable[[], None],
    ) -> Generator[tuple[Task, Any], None, None]:
        worker = self._factory()
        on_ready()
        while (task := take()) is not None:
            replaced = type(self).on_task and type(self).on_task(task)
            # As Ray may run a task of a lost worker twice.
            if isinstance(task, PartTask) and task.count > 1:
                worker(task)
            yield task, replaced or worker(task)


@pytest.fixture(autouse=True)
def inline_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[InlinePool]]:
    monkeypatch.setattr(job, "WorkerPool", InlinePool)
    yield InlinePool
    InlinePool.on_task = None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.color_model(tmp_path_factory.mktemp("model") / "model.onnx")


def segment(
    model: Path, sources: list[Path], out: Path, kinds: tuple[str, ...]
) -> InferenceSummary:
    with Segmenter(model, backend="onnxruntime") as segmenter:
        return run_inference(segmenter, open_sources(sources), SaveOptions(out, kinds))


def segment_in_chunks(
    model: Path, sources: list[Path], out: Path | str, kinds: tuple[str, ...], **options: Any
) -> JobSummary:
    return run_job(
        ModelOptions(path=model, backend="onnxruntime"),
        open_sources(sources),
        SaveOptions(Path("unused"), kinds),
        OutputFolder(out),
        ClusterOptions(),
        chunk_frames=options.pop("chunk_frames", 10),
        **options,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def tracks_of(path: Path) -> tuple[list[Any], list[Any], list[np.ndarray]]:
    """Return the times of the frames, the packets of the audio, and the frames."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        audio = [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in (container.demux(audio=0) if container.streams.audio else ())
            if packet.pts is not None
        ]
    format_ = "gray" if "mask-video" in str(path) else "rgb24"
    return (
        [frame.pts * frame.time_base for frame in frames],
        audio,
        [frame.to_ndarray(format=format_) for frame in frames],
    )


def assert_same_outputs(folder: Path, expected: Path) -> None:
    """Assert that outputs are equal; lossy videos may differ by what the encoder rounds."""
    files, expected_files = files_of(folder), files_of(expected)
    assert files.keys() == expected_files.keys()
    for name, data in sorted(files.items()):
        if not name.endswith(".mp4"):
            assert data == expected_files[name], name
            continue
        times, audio, frames = tracks_of(folder / name)
        expected_times, expected_audio, expected_frames = tracks_of(expected / name)
        assert times == expected_times
        assert audio == expected_audio
        for frame, other in zip(frames, expected_frames, strict=True):
            if name.startswith("mask-video"):
                np.testing.assert_array_equal(frame, other)
            else:
                assert np.abs(frame.astype(int) - other.astype(int)).mean() < 8, name


def manifest_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


@pytest.mark.parametrize("name", chunk_videos.KINDS)
def test_outputs_equal_those_of_one_process(model: Path, name: str, tmp_path: Path) -> None:
    video = chunk_videos.write(tmp_path / name, *chunk_videos.KINDS[name])
    whole = segment(model, [video], tmp_path / "whole", KINDS)
    chunks = segment_in_chunks(model, [video], tmp_path / "chunks", KINDS)
    assert chunks.frames == whole.frames == chunk_videos.FRAMES
    assert chunks.errors == whole.errors == []
    assert_same_outputs(tmp_path / "chunks", tmp_path / "whole")
    assert sum(line["line"] == "part" for line in manifest_lines(tmp_path / "chunks")) > 3
    assert not (tmp_path / "chunks" / PARTS).exists()


def test_damage_is_reported_as_by_one_process(model: Path, tmp_path: Path) -> None:
    """The frames behind the damage have the numbers that a single process gives them."""
    paths = [
        chunk_videos.truncate(
            chunk_videos.write(tmp_path / "cut.mkv", *chunk_videos.KINDS["variable-rate.mkv"])
        ),
        chunk_videos.damage(
            chunk_videos.write(tmp_path / "bad.ts", *chunk_videos.KINDS["open-gop.ts"])
        ),
        tmp_path / "no video.mp4",
        tmp_path / "missing.mp4",
    ]
    paths[2].write_bytes(b"no video")
    kinds = ("mask", "json", "mask-video", "overlay")
    whole = segment(model, paths, tmp_path / "whole", kinds)
    chunks = segment_in_chunks(model, paths, tmp_path / "chunks", kinds)
    assert sorted(chunks.errors) == sorted(whole.errors)
    assert len(chunks.errors) == 4
    assert chunks.frames == whole.frames
    assert_same_outputs(tmp_path / "chunks", tmp_path / "whole")
    failed = [
        line["source"] for line in manifest_lines(tmp_path / "chunks") if line["line"] == "failed"
    ]
    assert sorted(failed) == sorted(str(path) for path in paths[2:])


def test_videos_that_cannot_be_divided_are_done_again(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = chunk_videos.write(tmp_path / "a.mp4", *chunk_videos.INTRA_REFRESH, frames=144)
    segment(model, [video], tmp_path / "whole", ("mask-video", "json"))
    with caplog.at_level("INFO", "fada_deploy"):
        summary = segment_in_chunks(model, [video], tmp_path / "chunks", ("mask-video", "json"))
    assert summary.frames == 144
    assert_same_outputs(tmp_path / "chunks", tmp_path / "whole")
    assert "without dividing it" in caplog.text


def test_folders_of_images(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for index in range(5):
        toy.write_image(folder / f"{index}.png", toy.scene(index)[0])
    (folder / "broken.png").write_bytes(b"no image")
    single = toy.write_image(tmp_path / "single.png", toy.scene(7)[0])
    kinds = ("overlay", "mask", "npz", "json")
    whole = segment(model, [folder, single], tmp_path / "whole", kinds)
    parts = segment_in_chunks(model, [folder, single], tmp_path / "parts", kinds, chunk_frames=2)
    assert parts.frames == whole.frames == 6
    assert parts.errors == whole.errors
    assert_same_outputs(tmp_path / "parts", tmp_path / "whole")


def test_hashes_of_the_manifest(model: Path, tmp_path: Path) -> None:
    video = chunk_videos.write(tmp_path / "a.mp4", *chunk_videos.KINDS["b-frames.mp4"])
    image = toy.write_image(tmp_path / "b.png", toy.scene(1)[0])
    segment_in_chunks(model, [video, image], tmp_path / "out", ("mask", "overlay"))
    done = {
        line["source"]: line["files"]
        for line in manifest_lines(tmp_path / "out")
        if line["line"] == "done"
    }
    overlay = (tmp_path / "out/overlay/a.mp4").read_bytes()
    assert done[str(video)]["overlay/a.mp4"] == hashlib.sha256(overlay).hexdigest()
    mask = (tmp_path / "out/mask/b.png").read_bytes()
    assert done[str(image)]["mask/b.png"] == hashlib.sha256(mask).hexdigest()
    listing = subprocess.run(
        "sha256sum *", shell=True, cwd=tmp_path / "out/mask/a", check=True, capture_output=True
    ).stdout
    assert done[str(video)]["mask/a/"] == hashlib.sha256(listing).hexdigest()


def test_an_interrupted_job_is_continued(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> None:
    """Finished sources are left out, and so are the finished chunks of the one in progress."""
    names = ["b-frames.mp4", "mpeg4.mp4", "variable-rate.mkv"]
    videos = [chunk_videos.write(tmp_path / n, *chunk_videos.KINDS[n]) for n in names]
    kinds = ("mask-video", "json")
    segment(model, videos, tmp_path / "whole", kinds)
    stop, seen = threading.Event(), list[Task]()

    def stop_in_the_second_video(task: Task) -> None:
        seen.append(task)
        if isinstance(task, PartTask) and "mpeg4" in task.source.name and task.index == 2:
            stop.set()

    inline_pool.on_task = staticmethod(stop_in_the_second_video)
    first = segment_in_chunks(model, videos, tmp_path / "out", kinds, stop=stop)
    assert first.unread == 2
    assert {path.parts[0] for path in map(Path, files_of(tmp_path / "out"))} == {*kinds, PARTS}
    # The driver was killed in the middle of a line.
    with (tmp_path / "out" / MANIFEST).open("ab") as file:
        file.write(b'{"line": "part", "id"')
    seen.clear()
    stop.clear()
    inline_pool.on_task = staticmethod(seen.append)
    second = segment_in_chunks(model, videos, tmp_path / "out", kinds, resume=True)
    assert second.finished_before == 1
    assert second.unread == 0
    assert "b-frames" not in " ".join(task.source.name for task in seen)
    assert_same_outputs(tmp_path / "out", tmp_path / "whole")
    third = segment_in_chunks(model, videos, tmp_path / "out", kinds, resume=True)
    assert third.finished_before == 3


def test_an_earlier_job_can_be_continued_after_one_that_could_not_start(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, video = (
        tmp_path / "out",
        chunk_videos.write(tmp_path / "b-frames.mp4", *chunk_videos.KINDS["b-frames.mp4"]),
    )
    stop = threading.Event()

    def stop_in_the_video(task: Task) -> None:
        if isinstance(task, PartTask) and task.index == 1:
            stop.set()

    def refuse(*arguments: object) -> Any:
        raise DeviceError("there is no cluster, or no worker can start")

    inline_pool.on_task = staticmethod(stop_in_the_video)
    segment_in_chunks(model, [video], out, ("json",), stop=stop)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for owner, name in ((inline_pool, "__enter__"), (job, "InferenceWorker")):
        with monkeypatch.context() as patch, pytest.raises(DeviceError):
            patch.setattr(owner, name, refuse)
            segment_in_chunks(model, [video], out, ("json",))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    inline_pool.on_task = None
    assert segment_in_chunks(model, [video], out, ("json",), resume=True).unread == 0


def test_resuming_with_other_settings(model: Path, tmp_path: Path) -> None:
    image = toy.write_image(tmp_path / "a.png", toy.scene(1)[0])
    segment_in_chunks(model, [image], tmp_path / "out", ("mask",))
    other = toy.write_image(tmp_path / "other/a.png", toy.scene(2)[0])
    with pytest.raises(UsageError, match="overwrite"):
        segment_in_chunks(model, [other], tmp_path / "out", ("mask",), resume=True)
    with pytest.raises(UsageError, match="--chunk-frames"):
        segment_in_chunks(model, [image], tmp_path / "out", ("mask",), resume=True, chunk_frames=11)
    with pytest.raises(UsageError, match="--save"):
        segment_in_chunks(model, [image], tmp_path / "out", ("color",), resume=True)
    (tmp_path / "out" / MANIFEST).write_text('{"line": "nothing"}\n')
    with pytest.raises(DataError, match="delete it"):
        segment_in_chunks(model, [image], tmp_path / "out", ("mask",), resume=True)


def test_a_source_whose_worker_is_lost(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> None:
    """It is reported, its other chunks are left out, and the other sources are processed."""
    videos = [
        chunk_videos.write(tmp_path / name, *chunk_videos.KINDS["b-frames.mp4"])
        for name in ("a.mp4", "b.mp4")
    ]

    def lose_the_second_chunk(task: Task) -> LostTask | None:
        if isinstance(task, PartTask) and "a.mp4" in task.source.name and task.index > 0:
            return LostTask("its worker was lost 3 times")
        assert not isinstance(task, JoinTask) or "b.mp4" in task.source.name
        return None

    inline_pool.on_task = staticmethod(lose_the_second_chunk)
    summary = segment_in_chunks(model, videos, tmp_path / "out", ("mask-video",))
    assert summary.errors == [f"{videos[0]}: its worker was lost 3 times"]
    assert summary.unread == 0
    files = set(files_of(tmp_path / "out"))
    assert {name for name in files if not name.startswith(PARTS)} == {"mask-video/b.mp4"}
    # Its first chunk is not segmented again.
    assert any(name.endswith("result.json") for name in files)
    InlinePool.on_task = None
    segment_in_chunks(model, videos, tmp_path / "out", ("mask-video",), resume=True)
    assert set(files_of(tmp_path / "out")) == {"mask-video/a.mp4", "mask-video/b.mp4"}
    inline_pool.on_task = staticmethod(lose_the_second_chunk)
    with pytest.raises(DataError, match="was lost"):
        segment_in_chunks(model, videos[:1], tmp_path / "other", ("mask-video",))


def test_an_interrupted_join_is_repeated(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was lost when a part of the frames had their final names."""
    video = chunk_videos.write(tmp_path / "a.mp4", *chunk_videos.KINDS["b-frames.mp4"])
    segment(model, [video], tmp_path / "whole", ("mask", "json"))
    move, moved = OutputFolder.move, list[str]()

    class KilledError(Exception):
        pass

    def move_and_die(self: OutputFolder, name: str, new_name: str) -> None:
        move(self, name, new_name)
        moved.append(new_name)
        if len(moved) == 30:
            raise KilledError

    monkeypatch.setattr(OutputFolder, "move", move_and_die)
    with pytest.raises(KilledError):
        segment_in_chunks(model, [video], tmp_path / "out", ("mask", "json"))
    segment_in_chunks(model, [video], tmp_path / "out", ("mask", "json"), resume=True)
    assert_same_outputs(tmp_path / "out", tmp_path / "whole")


def test_an_output_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    images = [toy.write_image(tmp_path / f"{n}.png", toy.scene(1)[0]) for n in "ab"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mask").write_text("a file")
    summary = segment_in_chunks(model, images, tmp_path / "out", ("mask",))
    assert len(summary.errors) == 2
    assert "cannot be written" in summary.errors[0]


def test_the_legend_keeps_its_corner(model: Path, tmp_path: Path) -> None:
    """The first frame of the video decides, although a chunk would choose another corner."""
    road, sky = (
        np.broadcast_to(np.uint8(toy.SPACE.classes[i].color), (270, 480, 3))
        for i in (toy.SPACE.names.index("road"), toy.SPACE.names.index("sky"))
    )
    left, right = sky.copy(), sky.copy()
    left[:, :240], right[:, 240:] = road[:, :240], road[:, 240:]
    video = toy.write_video(tmp_path / "a.mp4", [left] * 13 + [right] * 13)
    cv2.setNumThreads(1)
    segment(model, [video], tmp_path / "whole", ("overlay",))
    segment_in_chunks(model, [video], tmp_path / "chunks", ("overlay",), chunk_frames=10)
    _, _, frames = tracks_of(tmp_path / "chunks/overlay/a.mp4")
    _, _, expected = tracks_of(tmp_path / "whole/overlay/a.mp4")
    for frame, other in zip(frames, expected, strict=True):
        assert np.abs(frame.astype(int) - other.astype(int)).mean() < 2


def test_output_videos_with_reordered_frames(model: Path, tmp_path: Path) -> None:
    """The slower presets of x264 make B-frames, whose packets are not in the order of display."""
    parts = [
        chunk_videos.write(tmp_path / f"{n}.nut", "libx264", {"bf": "3"}, True, False, frames=n)
        for n in (3, 40)
    ]
    joined, expected = tmp_path / "joined.mp4", list[Any]()
    shifted = tmp_path / "shifted.nut"
    with av.open(str(parts[1])) as source, av.open(str(shifted), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts += 10_000
                packet.dts = None
                packet.stream = stream
                out.mux(packet)
    for part in (parts[0], shifted):
        times, _, frames = tracks_of(part)
        expected += zip(times, frames, strict=True)
    join_videos(iter([parts[0], shifted]), joined, None)
    times, _, frames = tracks_of(joined)
    assert times == [time for time, _ in expected]
    for frame, (_, other) in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame, other)
    with pytest.raises(PartsDifferError, match="timestamps repeat"):
        join_videos(iter([parts[1], parts[0]]), tmp_path / "other.mp4", None)
    assert not (tmp_path / "other.mp4").exists()
    small = toy.write_video(tmp_path / "small.nut", [toy.scene(1, (32, 64))[0]] * 2)
    with pytest.raises(PartsDifferError, match="size"):
        join_videos(iter([parts[0], small]), tmp_path / "other.mp4", None)


def test_two_lost_parts_of_a_source_are_one_failure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers may hold parts of the source when it fails; nothing counts as interrupted."""
    videos = [
        chunk_videos.write(tmp_path / name, *chunk_videos.KINDS["b-frames.mp4"])
        for name in ("a.mp4", "b.mp4")
    ]

    class PairsPool(InlinePool):
        def run(
            self,
            take: Callable[[], Task | None],
            stop: object = None,
            *,
            on_ready: Callable[[], None],
        ) -> Generator[tuple[Task, Any], None, None]:
            worker = self._factory()
            on_ready()
            while tasks := [task for task in (take(), take()) if task is not None]:
                for task in tasks:
                    is_lost = isinstance(task, PartTask) and "a.mp4" in task.source.name
                    yield task, LostTask("lost") if is_lost else worker(task)

    monkeypatch.setattr(job, "WorkerPool", PairsPool)
    summary = segment_in_chunks(model, videos, tmp_path / "out", ("mask-video",))
    assert summary.errors == [f"{videos[0]}: lost"]
    assert summary.unread == 0


def test_a_video_that_could_not_be_read_is_processed_when_the_job_is_continued(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> None:
    """It disappeared when it was planned, for example with the network drive that it is on."""
    videos = [
        chunk_videos.write(tmp_path / name, *chunk_videos.KINDS["b-frames.mp4"])
        for name in ("a.mp4", "b.mp4")
    ]
    segment(model, videos, tmp_path / "whole", ("mask", "json"))
    away = tmp_path / "away.mp4"

    def lose_the_drive(task: Task) -> None:
        if isinstance(task, PartTask) and "a.mp4" in task.source.name and videos[0].exists():
            videos[0].rename(away)

    inline_pool.on_task = staticmethod(lose_the_drive)
    summary = segment_in_chunks(model, videos, tmp_path / "out", ("mask", "json"))
    assert summary.errors and str(videos[0]) in summary.errors[0]
    away.rename(videos[0])
    inline_pool.on_task = None
    again = segment_in_chunks(model, videos, tmp_path / "out", ("mask", "json"), resume=True)
    assert again.errors == []
    assert again.finished_before == 1
    assert_same_outputs(tmp_path / "out", tmp_path / "whole")


def interrupted_after_two_images(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> Path:
    """Interrupt a job in `out` after two of four images, a part each; return their folder."""
    folder, stop = tmp_path / "images", threading.Event()
    for index in range(4):
        toy.write_image(folder / f"{index}.png", toy.scene(index)[0])
    inline_pool.on_task = staticmethod(
        lambda task: stop.set() if isinstance(task, PartTask) and task.index == 1 else None
    )
    segment_in_chunks(model, [folder], tmp_path / "out", ("mask",), stop=stop, chunk_frames=1)
    inline_pool.on_task = None
    return folder


def test_parts_of_another_model_are_not_used(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> None:
    """A run without a cluster has replaced the outputs of an interrupted job."""
    folder = interrupted_after_two_images(model, tmp_path, inline_pool)
    segment(model, [folder], tmp_path / "whole", ("mask",))
    assert (tmp_path / "out" / PARTS).exists()
    for mask in (tmp_path / "out").glob("mask/images/*.png"):
        toy.write_image(mask, np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "out" / MANIFEST).unlink()
    segment_in_chunks(model, [folder], tmp_path / "out", ("mask",), resume=True, chunk_frames=1)
    assert_same_outputs(tmp_path / "out", tmp_path / "whole")


def test_frames_of_an_earlier_run_are_not_counted_again(
    model: Path, tmp_path: Path, inline_pool: type[InlinePool]
) -> None:
    folder = interrupted_after_two_images(model, tmp_path, inline_pool)
    summary = segment_in_chunks(
        model, [folder], tmp_path / "out", ("mask",), resume=True, chunk_frames=1
    )
    assert (summary.frames, summary.frames_before) == (2, 2)
    done = [line for line in manifest_lines(tmp_path / "out") if line["line"] == "done"]
    assert [line["frames"] for line in done] == [4]


def test_a_job_is_continued_from_another_working_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_image(tmp_path / "drive/a.png", toy.scene(1)[0])
    monkeypatch.chdir(tmp_path)
    segment_in_chunks(model, [Path("drive")], tmp_path / "out", ("mask",))
    monkeypatch.chdir(tmp_path / "drive")
    summary = segment_in_chunks(model, [Path("../drive")], tmp_path / "out", ("mask",), resume=True)
    assert summary.finished_before == 1


def test_hashes_of_videos_in_subfolders(model: Path, tmp_path: Path) -> None:
    """They are hashed one by one, although a folder of images has a single hash."""
    (tmp_path / "drives/day").mkdir(parents=True)
    videos = [
        chunk_videos.write(tmp_path / f"drives/day/{name}.mp4", *chunk_videos.KINDS["mpeg4.mp4"])
        for name in "ab"
    ]
    out = tmp_path / "out"
    run_job(
        ModelOptions(path=model, backend="onnxruntime"), open_sources(videos),
        SaveOptions(Path("unused"), ("overlay", "mask"), tree=tmp_path / "drives"),
        OutputFolder(out), ClusterOptions(), chunk_frames=10,
    )  # fmt: skip
    done = [line for line in manifest_lines(out) if line["line"] == "done"]
    for name, line in zip("ab", sorted(done, key=lambda line: line["source"]), strict=True):
        assert line["files"].keys() == {f"overlay/day/{name}.mp4", f"mask/day/{name}/"}
        data = (out / f"overlay/day/{name}.mp4").read_bytes()
        assert line["files"][f"overlay/day/{name}.mp4"] == hashlib.sha256(data).hexdigest()


def test_only_the_files_of_the_model_are_sent(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "model.onnx"
    shutil.copy(model, own)
    for name in ("model.reference.npz", "model.fp16.onnx", "model.engine", "model.onnx.data"):
        (tmp_path / name).write_bytes(b"content")
    sent = job._model_files(own)
    assert sent.keys() == {"model.onnx", "model.reference.npz", "model.onnx.data"}


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("auto", 1, "auto"), ("cuda", 0.5, "cuda"),
        ("cpu", 1, "cpu"), ("cuda:0", 1, "cuda:0"), ("cuda:1", 2, "cuda:1"), ("gpu", 0, "gpu"),
    ],
)  # fmt: skip
def test_workers_use_the_gpus_that_they_have_reserved(
    device: str, gpus: float, expected: str
) -> None:
    assert worker_device(device, ClusterOptions(gpus=gpus)) == expected


def test_a_gpu_that_workers_do_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="--ray-gpus 1"):
        worker_device("cuda", ClusterOptions())
    with pytest.raises(UsageError, match="from 0"):
        worker_device("cuda:2", ClusterOptions(gpus=1))
