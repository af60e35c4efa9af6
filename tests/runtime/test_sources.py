"""Videos, images, folders and globs as sources, and the errors of unreadable ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.sources.addresses import camera_number, display_name, is_live_address
from fada_deploy.runtime.sources.base import Frame, Source, live_sources
from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.sources.videos import VideoSource


def frames_of(source: Source) -> list[Frame]:
    items = list(source.frames())
    assert all(isinstance(i, Frame) for i in items), items
    return items  # type: ignore[return-value]


def images_of(count: int = 12, size: tuple[int, int] = (64, 128)) -> list[np.ndarray]:
    return [toy.scene(i, size)[0] for i in range(count)]


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.median(np.abs(a.astype(int) - b))) < 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_video_containers_yield_all_frames(tmp_path: Path, suffix: str) -> None:
    images = images_of()
    (source,) = open_sources([toy.write_video(tmp_path / f"v{suffix}", images)])
    assert source.is_video and source.count() == 12 and source.rate is not None
    frames = frames_of(source)
    assert [f.index for f in frames] == list(range(12)) and frames[3].item == "000003"
    assert frames[4].pts * frames[4].time_base == Fraction(4, 10)  # type: ignore[operator]
    assert all(is_close(f.rgb, p) for f, p in zip(frames, images, strict=True))


def test_keeps_irregular_timestamps(tmp_path: Path) -> None:
    pts = [900, 1000, 5000, 5001, 90_000]
    (source,) = open_sources(
        [toy.write_video(tmp_path / "v.mkv", images_of(5), pts=pts, time_base=Fraction(1, 1000))]
    )
    assert [f.pts * f.time_base * 1000 for f in frames_of(source)] == pts  # type: ignore[operator]


@pytest.mark.parametrize("size", [(64, 128), (98, 70)])
def test_reads_ten_bit_video(tmp_path: Path, size: tuple[int, int]) -> None:
    images = images_of(4, size)
    video = toy.write_video(tmp_path / "v.mp4", images, pix_fmt="yuv420p10le")
    assert all(
        is_close(f.rgb, p) for f, p in zip(frames_of(VideoSource(video)), images, strict=True)
    )


def test_reads_odd_frame_size(tmp_path: Path) -> None:
    images = images_of(4, (61, 97))
    video = toy.write_video(tmp_path / "v.avi", images, codec="ffv1", pix_fmt="bgr0")
    frames = frames_of(VideoSource(video))
    assert frames[0].rgb.shape == (61, 97, 3)
    np.testing.assert_array_equal(frames[2].rgb, images[2])


@pytest.mark.parametrize(
    ("matrix", "code"),
    [
        ((0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30), cv2.ROTATE_90_CLOCKWISE),
        ((-1 << 16, 0, 0, 0, -1 << 16, 0, 128 << 16, 64 << 16, 1 << 30), cv2.ROTATE_180),
        ((0, -1 << 16, 0, 1 << 16, 0, 0, 0, 128 << 16, 1 << 30), cv2.ROTATE_90_COUNTERCLOCKWISE),
    ],
)
def test_applies_rotation_flag(tmp_path: Path, matrix: tuple[int, ...], code: int) -> None:
    image = toy.scene(0)[0]
    image[:32] //= 2
    video = toy.set_display_matrix(toy.write_video(tmp_path / "v.mp4", [image] * 3), matrix)
    for frame in frames_of(VideoSource(video)):
        assert is_close(frame.rgb, cv2.rotate(image, code))


def test_raw_stream_gets_increasing_timestamps(tmp_path: Path) -> None:
    video = toy.write_video(tmp_path / "v.h264", images_of(5))
    frames = frames_of(open_sources([video])[0])
    times = [f.pts * f.time_base for f in frames]  # type: ignore[operator]
    assert len(frames) == 5 and times == sorted(set(times))


@pytest.mark.parametrize("part", [0.5, 0.7])
def test_truncated_video_yields_its_frames_and_an_error(tmp_path: Path, part: float) -> None:
    rng = np.random.default_rng(0)
    noise = list(rng.integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for image in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    *good, error = VideoSource(path).frames()
    assert all(isinstance(f, Frame) for f in good) and 20 * part - 4 <= len(good) <= 20 * part + 1
    assert isinstance(error, DataError)
    assert f"{len(good)} frames up to" in str(error) and "of 2.00 s" in str(error)


def test_truncation_between_frames_keeps_earlier_frames(tmp_path: Path) -> None:
    video = toy.write_video(tmp_path / "v.avi", images_of(20), codec="ffv1", pix_fmt="bgr0")
    data = video.read_bytes()
    cut = data.index(b"00dc", len(data) // 2)
    video.write_bytes(data[:cut])
    items = list(VideoSource(video).frames())
    assert len(items) > 3
    # The index at the end of an AVI file is lost, so only its header can reveal the truncation.
    assert all(isinstance(i, Frame | DataError) for i in items)


def test_damaged_bytes_cost_few_frames(tmp_path: Path) -> None:
    video = toy.write_video(
        tmp_path / "v.mkv", images_of(20), codec="mpeg4", time_base=Fraction(1, 1000)
    )
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    video.write_bytes(data)
    items = list(VideoSource(video).frames())
    assert sum(isinstance(i, Frame) for i in items) >= 8
    assert isinstance(items[-1], DataError) and "truncated or damaged" in str(items[-1])


def test_skips_damaged_packets(tmp_path: Path) -> None:
    video = toy.write_video(
        tmp_path / "v.mp4", images_of(20), codec="mpeg4", time_base=Fraction(1, 1000)
    )
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for start, size in packets[8:10]:
        data[start : start + size] = bytes(size)
    video.write_bytes(data)
    *good, error = VideoSource(video).frames()
    assert isinstance(error, DataError) and "truncated or damaged" in str(error)
    assert len(good) >= 16 and all(isinstance(f, Frame) for f in good)


def test_truncated_video_counts_one_frame_in_the_singular(tmp_path: Path) -> None:
    video = toy.write_video(tmp_path / "v.mp4", images_of(20), codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for start, size in packets[1:]:
        data[start : start + size] = bytes(size)
    video.write_bytes(data)
    *good, error = VideoSource(video).frames()
    assert len(good) == 1 and "decoded 1 frame up to" in str(error)


def test_folder_yields_images_in_order_and_videos(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "a.jpg", "c.bmp"):
        toy.write_image(tmp_path / name, toy.scene(ord(name[0]))[0])
    (tmp_path / "notes.txt").write_text("not an image")
    toy.write_video(tmp_path / "z.mp4", images_of(3))
    images, video = open_sources([tmp_path])
    assert (images.is_video, images.count(), images.name) == (False, 4, str(tmp_path))
    frames = frames_of(images)
    assert [f.item for f in frames] == ["a.jpg", "a.png", "b", "c"]
    np.testing.assert_array_equal(frames[1].rgb, toy.scene(ord("a"))[0])
    assert frames[0].pts is None and video.count() == 3


def test_glob_and_repeated_file_open_each_file_once(tmp_path: Path) -> None:
    paths = [toy.write_image(tmp_path / f"{i}.png", toy.scene(i)[0]) for i in range(3)]
    (tmp_path / "x.txt").write_text("")
    sources = open_sources([str(tmp_path / "*"), paths[1], str(paths[0])])
    assert [s.name for s in sources] == [str(p) for p in paths]
    assert [f.item for s in sources for f in frames_of(s)] == ["", "", ""]
    assert open_sources(sources) == sources


def test_a_single_source_need_not_be_in_a_list(tmp_path: Path) -> None:
    path = toy.write_image(tmp_path / "drive4.png", toy.scene(0)[0])
    for spec in (path, str(path)):
        assert [source.name for source in open_sources(spec)] == [str(path)]
    camera = LiveSource("camera:1")
    assert open_sources(camera) == [camera] and open_sources(1)[0].name == "camera-1"


def test_open_sources_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    addresses = ("rtsp://front:1@recorder/stream", "rtsp://rear:2@recorder/stream")
    cameras = [LiveSource(address) for address in (*addresses, addresses[0])]
    assert [source.name for source in open_sources(cameras)] == [
        "rtsp://recorder/stream", "rtsp://recorder/stream#2",
    ]  # fmt: skip
    path = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    images = [ImageSource("mine", {"": path}) for _ in range(2)]
    with pytest.raises(UsageError, match="'mine'"):
        open_sources(images)
    assert open_sources([images[0], images[0]]) == images[:1]


def test_unreadable_files_do_not_stop_the_others(tmp_path: Path) -> None:
    toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    (tmp_path / "b.png").write_bytes(b"\x89PNG rubbish")
    (tmp_path / "c.mp4").write_bytes(b"rubbish")
    images, video = open_sources([tmp_path])
    good, bad = images.frames()
    assert isinstance(good, Frame) and isinstance(bad, DataError) and "b.png" in str(bad)
    assert video.count() is None
    (broken,) = video.frames()
    assert isinstance(broken, DataError) and "c.mp4: not a readable video" in str(broken)


def test_unreadable_source_raises_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.mp4").write_bytes(b"not a video")
    with av.open(str(tmp_path / "tone.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16_000)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        samples.sample_rate = 16_000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    for name, expected in {
        "nowhere.mp4": "no such file or folder",
        "empty": "contains no file",
        "notes.txt": "not a readable video",
        "fake.mp4": "not a readable video",
        "tone.mp4": "no video stream",
        "*.webm": "matches no file",
    }.items():
        with pytest.raises(DataError, match=expected) as error:
            open_sources([tmp_path / name])
        text = str(error.value)
        assert "\n" not in text and name in text
        # A missing path, and a damaged file, say nothing about file types.
        assert all(s in text for s in (".mp4", ".png")) == (name not in ("nowhere.mp4", "fake.mp4"))
    with pytest.raises(UsageError, match="no source given"):
        open_sources([])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("*.webm", "*.webm: matches no file"),
        ("missing.mp4", "missing.mp4: no such file or folder"),
        ("empty", "empty: the folder contains no file"),
    ],
)
def test_empty_source_among_others_yields_its_error(
    tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    image = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    good, empty = open_sources([image, str(tmp_path / name)])
    assert isinstance(next(iter(good.frames())), Frame)
    (error,) = empty.frames()
    assert isinstance(error, DataError) and expected in str(error)
    assert empty.count() == 0 and not empty.is_live


def test_number_is_a_camera_unless_a_path_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_image(Path("2024/a.png"), toy.scene(0)[0])
    toy.write_image(Path("7.png"), toy.scene(0)[0]).rename("7")
    assert [is_live_address(a) for a in ("2024", "7", "8", "camera:7", "camera:x")] == [
        False, False, True, True, False,
    ]  # fmt: skip
    (folder,) = open_sources(["2024"])
    assert folder.count() == 1 and not folder.is_live
    cameras = open_sources([2024, "8", "camera:7"])
    assert [c.name for c in cameras] == ["camera-2024", "camera-8", "camera-7"]
    assert all(isinstance(c, LiveSource) for c in cameras)


def test_names_of_live_addresses_contain_no_password() -> None:
    addresses = ("-", "2", "camera:2", "rtsp://user:secret@host/stream")
    assert [display_name(a) for a in addresses] == [
        "pipe", "camera-2", "camera-2", "rtsp://host/stream",
    ]  # fmt: skip
    assert [camera_number(a) for a in addresses] == [None, 2, 2, None]


def test_live_sources_are_selected_and_can_be_stopped(tmp_path: Path) -> None:
    watcher = FolderWatcher(tmp_path)
    image = open_sources([toy.write_image(tmp_path / "a.png", toy.scene(0)[0])])[0]
    (live,) = live_sources([image, watcher])
    live.stop()
    assert list(watcher.frames()) == []
