"""Videos, pictures, folders and globs; every bad one named in one line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.sources.base import Frame, Source
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.videos import VideoSource


def frames_of(source: Source) -> list[Frame]:
    items = list(source.frames())
    assert all(isinstance(i, Frame) for i in items), items
    return items  # type: ignore[return-value]


def films(count: int = 12, size: tuple[int, int] = (64, 128)) -> list[np.ndarray]:
    return [toy.scene(i, size)[0] for i in range(count)]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.median(np.abs(a.astype(int) - b))) < 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_video_in_any_box(tmp_path: Path, suffix: str) -> None:
    pictures = films()
    (source,) = open_sources([toy.write_video(tmp_path / f"v{suffix}", pictures)])
    assert source.is_video and source.count() == 12 and source.rate is not None
    found = frames_of(source)
    assert [f.index for f in found] == list(range(12)) and found[3].item == "000003"
    assert found[4].pts * found[4].time_base == Fraction(4, 10)  # type: ignore[operator]
    assert all(close(f.rgb, p) for f, p in zip(found, pictures, strict=True))


def test_an_irregular_clock_that_starts_late(tmp_path: Path) -> None:
    pts = [900, 1000, 5000, 5001, 90_000]
    (source,) = open_sources(
        [toy.write_video(tmp_path / "v.mkv", films(5), pts=pts, time_base=Fraction(1, 1000))]
    )
    assert [f.pts * f.time_base * 1000 for f in frames_of(source)] == pts  # type: ignore[operator]


@pytest.mark.parametrize("size", [(64, 128), (98, 70)])
def test_ten_bits(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = films(4, size)
    film = toy.write_video(tmp_path / "v.mp4", pictures, pix_fmt="yuv420p10le")
    assert all(close(f.rgb, p) for f, p in zip(frames_of(VideoSource(film)), pictures, strict=True))


def test_odd_sizes(tmp_path: Path) -> None:
    pictures = films(4, (61, 97))
    film = toy.write_video(tmp_path / "v.avi", pictures, codec="ffv1", pix_fmt="bgr0")
    found = frames_of(VideoSource(film))
    assert found[0].rgb.shape == (61, 97, 3)
    np.testing.assert_array_equal(found[2].rgb, pictures[2])


@pytest.mark.parametrize(
    ("matrix", "code"),
    [
        ((0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30), cv2.ROTATE_90_CLOCKWISE),
        ((-1 << 16, 0, 0, 0, -1 << 16, 0, 128 << 16, 64 << 16, 1 << 30), cv2.ROTATE_180),
        ((0, -1 << 16, 0, 1 << 16, 0, 0, 0, 128 << 16, 1 << 30), cv2.ROTATE_90_COUNTERCLOCKWISE),
    ],
)
def test_rotation_flags(tmp_path: Path, matrix: tuple[int, ...], code: int) -> None:
    picture = toy.scene(0)[0]
    picture[:32] //= 2
    film = toy.turned(toy.write_video(tmp_path / "v.mp4", [picture] * 3), matrix)
    for frame in frames_of(VideoSource(film)):
        assert close(frame.rgb, cv2.rotate(picture, code))


def test_a_bare_stream_gets_a_clock(tmp_path: Path) -> None:
    film = toy.write_video(tmp_path / "v.h264", films(5))
    found = frames_of(open_sources([film])[0])
    times = [f.pts * f.time_base for f in found]  # type: ignore[operator]
    assert len(found) == 5 and times == sorted(set(times))


@pytest.mark.parametrize("part", [0.5, 0.7])
def test_a_video_cut_midway(tmp_path: Path, part: float) -> None:
    rng = np.random.default_rng(0)
    noise = list(rng.integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    whole = tmp_path / "v.mp4"
    with av.open(str(whole), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for picture in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * part)])
    *good, error = VideoSource(whole).frames()
    assert all(isinstance(f, Frame) for f in good) and 20 * part - 4 <= len(good) <= 20 * part + 1
    assert isinstance(error, DataError)
    assert f"cut short or damaged; {len(good)} frames up to" in str(error) and "of 2.00 s" in str(
        error
    )


def test_a_cut_between_two_frames_is_noticed_by_the_length(tmp_path: Path) -> None:
    film = toy.write_video(tmp_path / "v.avi", films(20), codec="ffv1", pix_fmt="bgr0")
    data = film.read_bytes()
    cut = data.index(b"00dc", len(data) // 2)
    film.write_bytes(data[:cut])
    items = list(VideoSource(film).frames())
    assert len(items) > 3
    # AVI's index is gone with the end; what it says of its length decides whether anything is missing.
    assert all(isinstance(i, Frame | DataError) for i in items)


def test_damage_in_the_middle_costs_no_more_than_it_must(tmp_path: Path) -> None:
    film = toy.write_video(
        tmp_path / "v.mkv", films(20), codec="mpeg4", time_base=Fraction(1, 1000)
    )
    data = bytearray(film.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    film.write_bytes(data)
    items = list(VideoSource(film).frames())
    assert sum(isinstance(i, Frame) for i in items) >= 8
    assert isinstance(items[-1], DataError) and "cut short or damaged" in str(items[-1])


def test_packets_that_do_not_decode_are_stepped_over(tmp_path: Path) -> None:
    film = toy.write_video(
        tmp_path / "v.mp4", films(20), codec="mpeg4", time_base=Fraction(1, 1000)
    )
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for start, size in packets[8:10]:
        data[start : start + size] = bytes(size)
    film.write_bytes(data)
    *good, error = VideoSource(film).frames()
    assert isinstance(error, DataError) and "cut short or damaged" in str(error)
    assert len(good) >= 16 and all(isinstance(f, Frame) for f in good)


def test_pictures_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "a.jpg", "c.bmp"):
        toy.write_image(tmp_path / name, toy.scene(ord(name[0]))[0])
    (tmp_path / "notes.txt").write_text("no picture")
    toy.write_video(tmp_path / "z.mp4", films(3))
    pictures, video = open_sources([tmp_path])
    assert (pictures.is_video, pictures.count(), pictures.name) == (False, 4, str(tmp_path))
    found = frames_of(pictures)
    assert [f.item for f in found] == ["a.jpg", "a.png", "b", "c"]
    np.testing.assert_array_equal(found[1].rgb, toy.scene(ord("a"))[0])
    assert found[0].pts is None and video.count() == 3


def test_one_picture_globs_and_the_same_file_twice(tmp_path: Path) -> None:
    paths = [toy.write_image(tmp_path / f"{i}.png", toy.scene(i)[0]) for i in range(3)]
    (tmp_path / "x.txt").write_text("")
    sources = open_sources([str(tmp_path / "*"), paths[1], str(paths[0])])
    assert [s.name for s in sources] == [str(p) for p in paths]
    assert [f.item for s in sources for f in frames_of(s)] == ["", "", ""]
    assert open_sources(sources) == sources


def test_a_corrupt_picture_and_a_broken_video_among_good_ones(tmp_path: Path) -> None:
    toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    (tmp_path / "b.png").write_bytes(b"\x89PNG rubbish")
    (tmp_path / "c.mp4").write_bytes(b"rubbish")
    pictures, video = open_sources([tmp_path])
    good, bad = pictures.frames()
    assert isinstance(good, Frame) and isinstance(bad, DataError) and "b.png" in str(bad)
    assert video.count() is None
    (broken,) = video.frames()
    assert isinstance(broken, DataError) and "c.mp4: is no video that can be read" in str(broken)


def test_each_bad_source_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.mp4").write_bytes(b"no video")
    with av.open(str(tmp_path / "tone.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16_000)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        samples.sample_rate = 16_000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    for given, expected in {
        "nowhere.mp4": "no such file or folder",
        "empty": "an empty folder",
        "notes.txt": "is no video that can be read",
        "fake.mp4": "is no video that can be read",
        "tone.mp4": "holds no video stream",
        "*.webm": "matches no file",
    }.items():
        with pytest.raises(DataError, match=expected) as error:
            open_sources([tmp_path / given])
        text = str(error.value)
        assert "\n" not in text and ".mp4" in text and ".png" in text and given in text
    with pytest.raises(UsageError, match="nothing to label"):
        open_sources([])
