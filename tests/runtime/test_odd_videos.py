"""Videos as cameras, phones and damaged cards write them: each is made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.decoding import decode_packet, timed_frames
from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_rgb
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data.recordings import open_recordings
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.videos import VideoSource
from fada_deploy.runtime.writers.video_writer import VideoWriter

Run = Callable[..., tuple[int, str, str]]
FIXED = 1 << 16


def shades(count: int) -> list[np.ndarray]:
    """Return images (64, 96, 3) whose gray value is ten times their number."""
    return [np.full((64, 96, 3), 10 * i, np.uint8) for i in range(count)]


def items_of(path: Path) -> tuple[list[Frame], list[DataError]]:
    items = list(VideoSource(path).frames())
    frames = [item for item in items if isinstance(item, Frame)]
    return frames, [item for item in items if isinstance(item, DataError)]


def gray(frames: list[Frame]) -> list[int]:
    return [round(float(f.rgb.mean()) / 10) for f in frames]


def write(path: Path, images: list[np.ndarray], rate: int = 10, **options: str) -> Path:
    """Write an H.264 video with x264 options."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_mirrored_video_is_shown_as_players_show_it(
    tmp_path: Path, matrix: tuple[int, ...], expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:20, :30] = 200
    image[40:, :10] = 100
    a, b, c, d = (FIXED * v for v in matrix)
    video = toy.write_video(tmp_path / "v.mp4", [image] * 2)
    toy.set_display_matrix(video, (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frames, errors = items_of(video)
    assert not errors and all(frame.decoded is None for frame in frames)
    difference = np.abs(frames[0].rgb.astype(int) - expected(image))
    assert np.median(difference) < 3 and difference.mean() < 6


def test_best_stream_is_used_and_not_the_cover_picture(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        cover.width, cover.height, cover.pix_fmt = 32, 16, "yuvj420p"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        small = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 250, np.uint8), format="rgb24")
        container.mux(cover.encode(small))
        for image in shades(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(stream.encode(None))
    frames, errors = items_of(path)
    assert not errors and gray(frames) == [*range(8)]
    train, _ = open_recordings(path, cache=tmp_path / "cache", space=CITYSCAPES_19)
    assert train.image(0).shape == (64, 96, 3)


def test_avi_with_b_frames_has_the_timestamps_of_display(tmp_path: Path) -> None:
    """AVI stores decode times only; the first frame is shown at 0, each a tenth later."""
    frames, errors = items_of(write(tmp_path / "v.avi", shades(20), bf="3"))
    assert not errors and gray(frames) == [*range(20)]
    times = [float(f.pts * f.time_base) for f in frames]  # type: ignore[operator]
    np.testing.assert_allclose(times, np.arange(20) / 10)


def test_one_frame_per_second_in_matroska_is_complete(tmp_path: Path) -> None:
    """FFmpeg guesses a late start of such a file, which would make it look cut short."""
    video = write(tmp_path / "v.mkv", shades(12), rate=1, bf="0")
    frames, errors = items_of(video)
    assert len(frames) == 12 and not errors


def with_tag(path: Path, title: bytes) -> Path:
    """Replace the placeholder title of an MP4 by other bytes of the same length."""
    content = path.read_bytes()
    placeholder = b"x" * len(title)
    assert content.count(placeholder) == 1
    path.write_bytes(content.replace(placeholder, title))
    return path


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path: Path) -> None:
    title = "Straße nach Zürich".encode("latin-1")
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "x" * len(title)
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for image in shades(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        for each in (stream, sound):
            container.mux(each.encode(None))
    with_tag(path, title)
    frames, errors = items_of(path)
    assert len(frames) == 5 and not errors
    with VideoWriter(tmp_path / "out.mp4", (64, 96), fps=10, audio=path) as writer:
        for image in shades(5):
            writer.write(image)


class FailingPacket:
    """A packet of a decoder that fails each time it is flushed."""

    is_corrupt = False
    size = 0

    def __init__(self) -> None:
        self.calls = 0

    def decode(self) -> list[av.VideoFrame]:
        self.calls += 1
        raise av.error.InvalidDataError(1094995529, "Invalid data found")


def damaged_video(path: Path, count: int, distance: int, damaged: Sequence[int]) -> Path:
    """Write frames of noise with keyframes at a distance; the packets of some are zeros."""
    rng = np.random.default_rng(0)
    options = {"g": str(distance), "bf": "0", "sc_threshold": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in damaged:
        position, size = packets[number]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("count", "distance", "damaged"),
    [
        (60, 30, ()), (60, 30, (50,)), (60, 30, (57,)), (60, 30, (20, 50, 58)), (60, 1, (20, 52)),
        (150, 70, (65, 148)), (150, 70, (69, 149)), (470, 250, (460,)),
    ],
)  # fmt: skip
def test_damage_near_the_end_loses_the_same_frames_with_any_number_of_threads(
    count: int, distance: int, damaged: tuple[int, ...], tmp_path: Path
) -> None:
    """The decoder holds back as many frames as it has threads."""
    path = damaged_video(tmp_path / "cut.mp4", count, distance, damaged)
    found = []
    for threads in (1, 4, 16):
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            decoded = list(timed_frames(container, stream))
        times = [frame.time_s for frame in decoded if frame is not None]
        pixels = [frame.decoded.to_ndarray() for frame in decoded if frame is not None]
        assert times == sorted(times)
        found.append((times, decoded.count(None), np.stack(pixels)))
    times, damages, pixels = found[0]
    # The loss of a keyframe may lose a frame behind it, too.
    assert damages == len(damaged) and count - 4 <= len(times) <= count - len(damaged)
    for other in found[1:]:
        assert other[:2] == (times, damages)
        np.testing.assert_array_equal(other[2], pixels)


def test_a_decoder_that_fails_for_ever_ends() -> None:
    packet = FailingPacket()
    assert set(decode_packet(packet)) == {None} and packet.calls <= 1000


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mp4"])
def test_playlists_cannot_open_other_files(tmp_path: Path, name: str) -> None:
    toy.write_video(tmp_path / "secret.mp4", shades(3))
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    text = "ffconcat version 1.0\nfile secret.mp4\n" if "concat" in name else hls
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="playlist"):
        open_sources([tmp_path / name])


def test_a_file_name_with_a_colon_is_no_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_video(Path("v.mp4"), shades(3)).rename("2024-05-01T12:30:00.mp4")
    frames, errors = items_of(Path("2024-05-01T12:30:00.mp4"))
    assert len(frames) == 3 and not errors


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_mulaw", "adpcm_ima_wav", "mp2"])
def test_sound_that_mp4_cannot_hold_becomes_aac(tmp_path: Path, codec: str) -> None:
    source, rate = tmp_path / "v.avi", 16000
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        sound = container.add_stream(codec, rate=rate, layout="mono")
        for image in shades(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        tone = (9000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        while block := fifo.read(sound.codec_context.frame_size or 1024, partial=True):
            container.mux(sound.encode(block))
        for each in (stream, sound):
            container.mux(each.encode(None))
    with VideoWriter(tmp_path / "out.mp4", (64, 96), fps=10, audio=source) as writer:
        for image in shades(20):
            writer.write(image)
    with av.open(str(tmp_path / "out.mp4")) as result:
        (track,) = result.streams.audio
        assert track.codec_context.name == "aac"
        samples = np.concatenate([f.to_ndarray()[0] for f in result.decode(track)])
    assert abs(len(samples) / rate - 2) < 0.2
    spectrum = np.abs(np.fft.rfft(samples[rate // 2 : rate // 2 + rate]))
    assert abs(int(spectrum.argmax()) - 440) <= 2


def test_animated_pictures_and_camera_formats_are_videos(tmp_path: Path) -> None:
    for name, codec, pix_fmt in (("a.gif", "gif", "rgb8"), ("b.3gp", "h263", "yuv420p")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
            for image in shades(6):
                image = np.ascontiguousarray(np.broadcast_to(image[0, 0], (96, 128, 3)))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame.reformat(format=pix_fmt)))
            container.mux(stream.encode(None))
    names = {Path(source.name).name for source in open_sources([tmp_path])}
    assert names == {"a.gif", "b.3gp"}
    for name in names:
        assert len(items_of(tmp_path / name)[0]) == 6


def test_animated_webp_is_one_line(tmp_path: Path) -> None:
    animation = cv2.Animation()
    animation.frames = shades(4)
    animation.durations = [100] * 4
    assert cv2.imwriteanimation(str(tmp_path / "moving.webp"), animation)
    assert cv2.imwrite(str(tmp_path / "still.webp"), shades(2)[1])
    assert read_rgb(tmp_path / "still.webp").shape == (64, 96, 3)
    with pytest.raises(DataError, match="animated WebP") as caught:
        read_rgb(tmp_path / "moving.webp")
    assert "GIF" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_video_is_converted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: str, name: str
) -> None:
    caplog.set_level("INFO", logger="fada_deploy")
    video = write(tmp_path / "v.mp4", shades(4), **{"x264-params": f"transfer={transfer}"})
    frames, errors = items_of(video)
    assert len(frames) == 4 and not errors
    (message,) = caplog.messages
    assert name in message and "SDR" in message
    # Gray 30 of 255 read as a signal is far darker in SDR under PQ, and brighter under HLG.
    last = frames[-1].rgb.mean()
    assert last < 25 if name == "PQ" else last > 30
