"""Output files: videos with the source's timestamps and audio, masks by id, no partial files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import toy

from fada_deploy import Segmenter
from fada_deploy.common.errors import DataError, DeviceError, UsageError
from fada_deploy.common.images import read_indices, read_rgb, write_png
from fada_deploy.common.video import HARDWARE_ENCODERS
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers import video_writer
from fada_deploy.runtime.writers.inference import run_inference
from fada_deploy.runtime.writers.output import Output
from fada_deploy.runtime.writers.save import KINDS, OUTPUTS, SaveOptions, output_names, save_results
from fada_deploy.runtime.writers.video_writer import VideoWriter


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return Segmenter(toy.color_model(tmp_path / "m.onnx"))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(segmenter: Segmenter, sources: list[Path], options: SaveOptions) -> list[object]:
    return list(save_results(segmenter, open_sources(sources), options))


def test_stop_completes_the_current_file_and_leaves_out_the_next(
    tmp_path: Path, segmenter: Segmenter
) -> None:
    """The audio ends with the last frame, and the summary names the interrupted source."""
    images = [toy.scene(i)[0] for i in range(60)]
    long = toy.write_video(tmp_path / "long.mp4", images, audio=True)
    other = toy.write_video(tmp_path / "other.mp4", images[:3])
    stop = threading.Event()
    options = SaveOptions(tmp_path / "out", kinds=("overlay", "json"))
    summary = run_inference(
        segmenter,
        open_sources([other, long, tmp_path / "missing.mp4"]),
        options,
        on_result=lambda result: stop.set() if result.source == str(long) else None,
        stop=stop,
    )
    frames = summary.frames - 3
    assert summary.interrupted == (str(long), frames) and summary.unread == 1
    assert 0 < frames < 60 and summary.errors == []
    assert len(json.loads((tmp_path / "out/json/long.json").read_text())["frames"]) == frames
    written = toy.read_video(tmp_path / "out/overlay/long.mp4")
    assert len(written) == frames
    with av.open(str(tmp_path / "out/overlay/long.mp4")) as container:
        ends = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
    assert ends and float(written[-1][0]) - 0.2 < ends[-1] <= written[-1][0]
    assert len(files(tmp_path / "out")) == 4


def test_stop_after_the_last_frame_interrupts_nothing(tmp_path: Path, segmenter: Segmenter) -> None:
    """The image is read to its end before its result is written."""
    image = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    stop = threading.Event()
    options = SaveOptions(tmp_path / "out")
    summary = run_inference(
        segmenter, open_sources([image]), options, on_result=lambda _: stop.set(), stop=stop
    )
    assert (summary.frames, summary.interrupted, summary.unread) == (1, None, 0)


@pytest.mark.parametrize("size", [(64, 128), (61, 97)])
@pytest.mark.parametrize("start", [0, 1500])
def test_video_keeps_frames_size_and_timestamps(
    tmp_path: Path, segmenter: Segmenter, size: tuple[int, int], start: int
) -> None:
    pts = [start + p for p in (0, 33, 34, 100, 101, 250, 333, 500, 1000)]
    images = [toy.scene(i, size)[0] for i in range(9)]
    source = toy.write_video(
        tmp_path / "drive.mkv",
        images,
        pts=pts,
        time_base=Fraction(1, 1000),
        codec="ffv1",
        pix_fmt="bgr0",
    )
    run(segmenter, [source], SaveOptions(tmp_path / "out", style=OverlayStyle(0.0, legend="none")))
    written = toy.read_video(tmp_path / "out/overlay/drive.mp4")
    assert [t for t, _ in written] == [t for t, _ in toy.read_video(source)]
    height, width = size
    assert written[0][1].shape == (height + height % 2, width + width % 2, 3)
    for (_, frame), image in zip(written, images, strict=True):
        # At alpha 0 the overlay is the frame itself: order and colors survive BT.709 and H.264.
        assert np.median(np.abs(frame[:height, :width].astype(int) - image)) < 6
    data = (tmp_path / "out/overlay/drive.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "out/overlay/drive.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_audio_is_copied(tmp_path: Path, segmenter: Segmenter) -> None:
    source = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(20)], audio=True)
    run(segmenter, [source], SaveOptions(tmp_path / "out"))

    def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
        with av.open(str(path)) as container:
            return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]

    assert audio_packets(tmp_path / "out/overlay/v.mp4") == audio_packets(source)
    assert len(audio_packets(source)) > 10
    assert len(toy.read_video(tmp_path / "out/overlay/v.mp4")) == 20


def test_truncated_video_with_audio(tmp_path: Path, segmenter: Segmenter) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    source = toy.write_video(tmp_path / "v.ts", noise, audio=True)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    run(segmenter, [source], SaveOptions(tmp_path / "out"))
    assert 5 < len(toy.read_video(tmp_path / "out/overlay/v.mp4")) < 15


def test_repeated_timestamps_and_changing_sizes(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    with VideoWriter(path, (64, 64), fps=10) as writer:
        for pts, size in ((0, 64), (0, 64), (5, 32), (4, 64)):
            writer.write(np.zeros((size, size, 3), np.uint8), pts)
    assert [t * 10 for t, _ in toy.read_video(path)] == [0, 1, 5, 6]


def test_joined_recordings_keep_length_and_audio(tmp_path: Path, segmenter: Segmenter) -> None:
    parts = [
        toy.write_video(
            tmp_path / f"{i}.ts", [toy.scene(k)[0] for k in range(20 * i, 20 * i + 20)], audio=True
        )
        for i in range(2)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    run(segmenter, [joined], SaveOptions(tmp_path / "out", ("overlay", "mask-video")))

    def packets(path: Path) -> int:
        with av.open(str(path)) as container:
            return sum(bool(p.size) for p in container.demux(audio=0))

    for kind in ("overlay", "mask-video"):
        times = np.diff(
            [float(t) for t, _ in toy.read_video(tmp_path / "out" / kind / "joined.mp4")]
        )
        assert len(times) == 39
        # 0.1 s each, also where the timestamps jump back.
        np.testing.assert_allclose(times, 0.1, atol=1e-3)
    assert packets(tmp_path / "out/overlay/joined.mp4") == packets(parts[0]) + packets(parts[1])


def test_single_wrong_timestamp_does_not_shift_later_frames(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.mp4"
    with VideoWriter(path, (64, 64), fps=10, time_base=Fraction(1, 100)) as writer:
        for pts in (0, 10, 20, 3000, 3010, 7, 3020, 3030):
            writer.write(np.zeros((64, 64, 3), np.uint8), pts)
    assert [round(100 * t) for t, _ in toy.read_video(path)] == [
        0,
        10,
        20,
        3000,
        3010,
        3020,
        3021,
        3030,
    ]


def test_keeps_pixel_aspect(tmp_path: Path, segmenter: Segmenter) -> None:
    source = tmp_path / "wide.mp4"
    with VideoWriter(source, (64, 96), fps=10, pixel_aspect=Fraction(4, 3)) as writer:
        for i in range(3):
            writer.write(np.full((64, 96, 3), 40 * i, np.uint8))
    run(
        segmenter, [source], SaveOptions(tmp_path / "out", ("overlay", "color-video", "mask-video"))
    )
    for kind in ("overlay", "color-video", "mask-video"):
        with av.open(str(tmp_path / "out" / kind / "wide.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("codec", ["mp3", "libmp3lame"])
def test_mp3_audio_is_copied(tmp_path: Path, codec: str) -> None:
    source, path = tmp_path / "v.mp4", tmp_path / "o.mp4"
    with av.open(str(source), "w") as out:
        try:
            tone = out.add_stream(codec, rate=16_000)
        except (av.error.FFmpegError, ValueError):
            pytest.skip(f"FFmpeg has no encoder {codec}")
        for start in range(0, 16_000, 576):
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 576), np.float32), format="fltp", layout="mono"
            )
            samples.sample_rate, samples.pts, samples.time_base = 16_000, start, Fraction(1, 16_000)
            out.mux(tone.encode(samples))
        out.mux(tone.encode())
    with VideoWriter(path, (64, 64), fps=10, audio=source) as writer:
        for _ in range(10):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert sum(bool(p.size) for p in container.demux(audio=0)) > 20


def test_failed_video_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "o.mp4"
    black = np.zeros((64, 64, 3), np.uint8)

    def write(error: BaseException | None) -> None:
        with VideoWriter(path, (64, 64), fps=10) as writer:
            writer.write(black)
            if error:
                raise error

    with pytest.raises(RuntimeError, match="midway"):
        write(RuntimeError("midway"))
    monkeypatch.setattr(video_writer, "X264_CRF", "invalid")
    with pytest.raises(DataError, match=r"o\.mp4: cannot be written") as error:
        write(None)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("ids", ["trainId", "labelId"])
def test_all_kinds_of_output_of_a_video(tmp_path: Path, segmenter: Segmenter, ids: str) -> None:
    scenes = [toy.scene(i) for i in range(3)]
    source = toy.write_video(tmp_path / "drive.mp4", [f for f, _ in scenes])
    run(segmenter, [source], SaveOptions(tmp_path / "out", KINDS, ids=ids))
    numbers = ["000000", "000001", "000002"]
    assert files(tmp_path / "out") == [
        "color-video/drive.mp4",
        *(f"color/drive/{n}.png" for n in numbers),
        "json/drive.json",
        "mask-video/drive.mp4",
        *(f"mask/drive/{n}.png" for n in numbers),
        *(f"npz/drive/{n}.npz" for n in numbers),
        "overlay/drive.mp4",
    ]
    document = json.loads((tmp_path / "out/json/drive.json").read_text())
    assert document["source"] == str(source) and document["classes"] == list(toy.SPACE.names)
    results = list(segmenter.stream(source))
    with av.open(str(tmp_path / "out/mask-video/drive.mp4")) as container:
        masks = [
            (float(f.pts * f.time_base), f.to_ndarray(format="gray"))
            for f in container.decode(video=0)
        ]
    for result, (time_s, mask), (_, colors) in zip(
        results, masks, toy.read_video(tmp_path / "out/color-video/drive.mp4"), strict=True
    ):
        ids_of_class = [c.train_id if ids == "trainId" else c.label_id for c in toy.SPACE.classes]
        np.testing.assert_array_equal(mask, np.array(ids_of_class)[result.labels])
        assert time_s == pytest.approx(result.time_s or 0.0)
        assert np.abs(colors - toy.SPACE.palette[result.labels].astype(float)).mean() < 6
    for number, result, entry in zip(numbers, results, document["frames"], strict=True):
        ids_of_class = [c.train_id if ids == "trainId" else c.label_id for c in toy.SPACE.classes]
        mask = read_indices(tmp_path / f"out/mask/drive/{number}.png")
        np.testing.assert_array_equal(mask, np.array(ids_of_class)[result.labels])
        color = read_rgb(tmp_path / f"out/color/drive/{number}.png")
        np.testing.assert_array_equal(color, toy.SPACE.palette[result.labels])
        arrays = np.load(tmp_path / f"out/npz/drive/{number}.npz")
        np.testing.assert_array_equal(arrays["labels"], result.labels)
        assert arrays["confidence"].dtype == np.float16 and list(arrays["classes"]) == list(
            toy.SPACE.names
        )
        assert (entry["index"], entry["item"]) == (result.index, number)
        assert entry["time_s"] == pytest.approx(result.index / 10)
        assert sum(entry["fractions"].values()) == pytest.approx(1, abs=1e-4)


def test_single_images_and_a_folder_of_images(tmp_path: Path, segmenter: Segmenter) -> None:
    for name in ("in/a.png", "in/b.jpg", "a.png"):
        toy.write_image(tmp_path / name, toy.scene(len(name), (50, 71))[0])
    run(
        segmenter,
        [tmp_path / "in", tmp_path / "a.png"],
        SaveOptions(tmp_path / "out", ("overlay", "mask", "json")),
    )
    assert files(tmp_path / "out") == [
        "json/a.json",
        "json/in.json",
        "mask/a.png",
        "mask/in/a.png",
        "mask/in/b.png",
        "overlay/a.jpg",
        "overlay/in/a.jpg",
        "overlay/in/b.jpg",
    ]
    assert read_rgb(tmp_path / "out/overlay/in/b.jpg").shape == (50, 71, 3)


def test_overlay_style(tmp_path: Path, segmenter: Segmenter) -> None:
    frame = toy.scene(0)[0]
    source = toy.write_video(tmp_path / "v.mp4", [frame] * 3)
    name = toy.SPACE.names[1]
    style = OverlayStyle(1.0, legend="none", side_by_side=True, classes=(name,))
    run(segmenter, [source], SaveOptions(tmp_path / "out", style=style, x264_preset="veryfast"))
    (_, image), *_ = toy.read_video(tmp_path / "out/overlay/v.mp4")
    labels = segmenter.predict(frame, color="rgb").labels
    assert image.shape[1] == 2 * frame.shape[1]
    left, right = (
        image[:, : frame.shape[1]].astype(float),
        image[:, frame.shape[1] :].astype(float),
    )
    expected = np.where((labels == 1)[..., None], toy.SPACE.palette[1], frame)
    assert np.abs(left - frame).mean() < 6 and np.abs(right - expected).mean() < 6
    with pytest.raises(UsageError, match=r"no class lorry.*road"):
        run(
            segmenter,
            [source],
            SaveOptions(tmp_path / "out", style=OverlayStyle(classes=("lorry",))),
        )
    with pytest.raises(UsageError, match=r"mask-video needs a video.*--save mask"):
        run(
            segmenter,
            [toy.write_image(tmp_path / "a.png", frame)],
            SaveOptions(tmp_path / "o", ("mask-video",)),
        )


def test_labels_head_saves_no_confidence(tmp_path: Path) -> None:
    segmenter = Segmenter(toy.color_model(tmp_path / "m.onnx", head="labels"))
    image = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    run(segmenter, [image], SaveOptions(tmp_path / "out", ("npz",)))
    assert sorted(np.load(tmp_path / "out/npz/a.npz")) == ["classes", "labels"]


def test_closing_early_leaves_only_finished_files(tmp_path: Path, segmenter: Segmenter) -> None:
    scenes = [toy.scene(i)[0] for i in range(30)]
    sources = [toy.write_video(tmp_path / f"{n}.mp4", scenes) for n in ("first", "second")]
    items = save_results(segmenter, open_sources(sources), SaveOptions(tmp_path / "out"))
    for _ in range(40):
        next(items)
    items.close()
    assert files(tmp_path / "out") == ["overlay/first.mp4"]
    assert len(toy.read_video(tmp_path / "out/overlay/first.mp4")) == 30


def test_repeated_output_names_are_numbered(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        toy.write_image(tmp_path / folder / "a.png", toy.scene(0)[0])
    sources = open_sources([tmp_path / "x/a.png", tmp_path / "y/a.png", tmp_path / "x"])
    assert list(output_names(sources).values()) == ["a", "a-2", "x"]


def test_source_is_never_overwritten(tmp_path: Path, segmenter: Segmenter) -> None:
    source = toy.write_video(tmp_path / "v.mp4", [toy.scene(0)[0]] * 2)
    run(segmenter, [source], SaveOptions(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"v\.mp4.*--out"):
        run(segmenter, [tmp_path / "out/overlay/v.mp4"], SaveOptions(tmp_path / "out"))


def test_invalid_options_raise() -> None:
    with pytest.raises(UsageError, match=f"'video'.*{', '.join(KINDS)}"):
        SaveOptions(Path("out"), ("video",))
    with pytest.raises(UsageError, match="trainId, labelId"):
        SaveOptions(Path("out"), ids="id")
    with pytest.raises(UsageError, match="between 0 and 1"):
        SaveOptions(Path("out"), style=OverlayStyle(2.0))
    with pytest.raises(UsageError, match=r"ultrafast.*'best'"):
        SaveOptions(Path("out"), x264_preset="best")
    with pytest.raises(UsageError, match=r"o\.avi.*\.mp4"):
        SaveOptions(Path("out"), file=Path("o.avi"))


def test_missing_video_hardware_is_one_line(tmp_path: Path) -> None:
    """Without the hardware this tests the error, with it decoding and encoding."""
    clip = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(3)])
    try:
        frames = [
            frame
            for frame in open_sources([clip], hardware="cuda")[0].frames()
            if isinstance(frame, Frame)
        ]
        assert [f.index for f in frames] == [0, 1, 2]
    except DeviceError as error:
        assert str(error).startswith("cuda cannot decode video") and "\n" not in str(error)
    path = tmp_path / "o.mp4"
    try:
        with VideoWriter(path, (64, 256), fps=10, hardware="cuda") as writer:
            writer.write(np.zeros((64, 256, 3), np.uint8))
        assert len(toy.read_video(path)) == 1
    except DeviceError as error:
        assert str(error).startswith("cuda cannot encode video") and not path.exists()


def test_hardware_option_selects_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HARDWARE_ENCODERS, "cuda", ("mpeg4", {"qscale": "2"}))
    source = toy.write_video(tmp_path / "v.mkv", [toy.scene(0)[0]] * 2)
    with Segmenter(toy.color_model(tmp_path / "m.onnx")) as segmenter:
        run(segmenter, [source], SaveOptions(tmp_path / "out", hardware="cuda"))
    with av.open(str(tmp_path / "out/overlay/v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_kinds_of_output_have_writers() -> None:
    assert tuple(OUTPUTS) == KINDS


@pytest.mark.parametrize("kind", ["overlay", "color-video", "mask-video"])
def test_single_output_file(tmp_path: Path, segmenter: Segmenter, kind: str) -> None:
    source = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(3)])
    file = tmp_path / "new" / "exact.mp4"
    run(segmenter, [source], SaveOptions(file.parent, (kind,), file=file))
    run(segmenter, [source], SaveOptions(tmp_path / "folder", (kind,)))
    assert files(tmp_path / "new") == ["exact.mp4"]
    assert file.read_bytes() == (tmp_path / "folder" / kind / "v.mp4").read_bytes()


def test_single_output_file_needs_one_video(tmp_path: Path, segmenter: Segmenter) -> None:
    video = toy.write_video(tmp_path / "v.mp4", [toy.scene(0)[0]] * 2)
    image = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    file = tmp_path / "o.mp4"
    before = video.read_bytes()
    for sources, kinds, out in (
        ([video, image], ("overlay",), file),
        ([video], ("overlay", "mask-video"), file),
        ([video], ("json",), file),
        ([image], ("overlay",), file),
        ([video], ("overlay",), video),
    ):
        with pytest.raises(UsageError, match=f"{out.name}: .*--out"):
            run(segmenter, sources, SaveOptions(tmp_path, kinds, file=out))
    assert not file.exists() and video.read_bytes() == before


def test_negative_timestamps_begin_at_zero(tmp_path: Path, segmenter: Segmenter) -> None:
    """As in a recording whose counter of timestamps has started anew; players hide what is before.

    Sound and picture stay together.
    """
    frames = [toy.scene(i)[0] for i in range(20)]
    video = toy.write_video(tmp_path / "a.mkv", frames, audio=True)
    shifted = tmp_path / "b.ts"
    with av.open(str(video)) as source, av.open(str(shifted), "w", format="mpegts") as out:
        streams = [out.add_stream_from_template(each) for each in source.streams]
        wrap = 2**33
        for packet in source.demux():
            if packet.dts is None:
                continue
            shift = round((wrap - 90_000) / 90_000 / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = streams[packet.stream_index]
            out.mux(packet)
    with av.open(str(shifted)) as container:
        assert next(container.decode(video=0)).time < 0
    run(segmenter, [shifted], SaveOptions(tmp_path / "out", kinds=("overlay", "mask-video")))
    for kind in ("overlay", "mask-video"):
        times = [float(t) for t, _ in toy.read_video(tmp_path / "out" / kind / "b.mp4")]
        np.testing.assert_allclose(times, np.arange(20) / 10, atol=1e-3)
    with av.open(str(tmp_path / "out/overlay/b.mp4")) as container:
        sound = [float(frame.time) for frame in container.decode(audio=0)]
    assert sound[0] == pytest.approx(0, abs=0.1) and sound[-1] == pytest.approx(1.9, abs=0.2)


def test_a_video_without_a_frame_is_an_error(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "o.mp4", (64, 64), fps=25)
    with pytest.raises(DataError, match="no frame was written"), writer:
        pass
    assert not list(tmp_path.iterdir())


def test_frames_of_an_earlier_recording_are_set_aside(tmp_path: Path) -> None:
    source: Any = SimpleNamespace(name="rtsp://192.168.1.10", is_live=True, is_video=True)
    name = output_names([source])[source.name]
    assert name == "192.168.1.10"
    label = np.zeros((4, 4), np.uint8)
    for count in (3, 2):
        output = Output(source, name, SimpleNamespace(), SaveOptions(tmp_path))  # type: ignore[arg-type]
        output.set_aside_frames("mask")
        for i in range(count):
            result: Any = SimpleNamespace(item=f"{i:06d}")
            write_png(output.frame_path("mask", ".png", result), label)
    counts = {each.name: len(list(each.iterdir())) for each in (tmp_path / "mask").iterdir()}
    assert counts == {"192.168.1.10": 2, "192.168.1.10-2": 3}


@pytest.mark.parametrize("fps", [10, 29.97, Fraction(24000, 1001)])
def test_frames_without_pts_are_spaced_by_fps(tmp_path: Path, fps: Fraction | float) -> None:
    path = tmp_path / "o.mp4"
    with VideoWriter(path, (64, 64), fps=fps) as writer:
        for i in range(5):
            writer.write(np.full((64, 64, 3), 50 * i, np.uint8))
    frames = toy.read_video(path)
    np.testing.assert_allclose([float(t) for t, _ in frames], np.arange(5) / float(fps), atol=1e-4)
    assert [round(float(rgb.mean()), -1) for _, rgb in frames] == [0, 50, 100, 150, 200]


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"a\.mp4: cannot be written"),
        VideoWriter(tmp_path / "file" / "sub" / "a.mp4", (48, 64), fps=25),
    ):
        pass


def test_an_error_of_the_caller_is_not_one_of_the_video(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        VideoWriter(tmp_path / "a.mp4", (48, 64), fps=25),
    ):
        (tmp_path / "missing.png").read_bytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the file size")
def test_an_error_at_the_end_of_a_video_names_it(tmp_path: Path) -> None:
    """The index is written when the video is closed."""
    code = """
import resource, signal, sys
import numpy as np
from fada_deploy import DataError, VideoWriter
noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with VideoWriter(sys.argv[1], (96, 96), fps=25) as video:
        for _ in range(3):
            video.write(noise)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "a.mp4: cannot be written" in done.stdout and "partial" not in done.stdout, done
    assert list(tmp_path.iterdir()) == []


def test_a_writer_writes_one_video(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", (64, 64), fps=25)
    with writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UsageError, match="one video"), writer:
        pass


def test_video_writer_rejects_invalid_arguments(tmp_path: Path) -> None:
    path, black = tmp_path / "o.mp4", np.zeros((64, 64, 3), np.uint8)
    for arguments, expected in (
        ({"path": tmp_path / "o.avi"}, r"o\.avi.*\.mp4"),
        ({"size_hw": (0, 64)}, r"at least.*\(0, 64\)"),
        ({"fps": 0}, "greater than 0"),
        ({"fps": float("nan")}, "greater than 0"),
        ({"x264_preset": "best"}, r"ultrafast.*'best'"),
        ({"hardware": "abacus"}, r"cuda.*'abacus'"),
    ):
        with pytest.raises(UsageError, match=expected):
            VideoWriter(**({"path": path, "size_hw": (64, 64)} | arguments))
    with pytest.raises(UsageError, match="not open"):
        VideoWriter(path, (64, 64), fps=10).write(black)
    with pytest.raises(UsageError, match="fps"), VideoWriter(path, (64, 64)) as writer:
        writer.write(black)
    with (
        pytest.raises(DataError, match=r"no\.mp3: not a readable audio file"),
        VideoWriter(path, (64, 64), fps=10, audio=tmp_path / "no.mp3"),
    ):
        pass
    for image in (black[..., 0], black.astype(np.float32), black[:0]):
        with (
            pytest.raises(UsageError, match=r"\(H, W, 3\)"),
            VideoWriter(path, (64, 64), fps=1) as w,
        ):
            w.write(image)
    assert files(tmp_path) == []


@pytest.mark.parametrize("faststart", [True, False])
def test_index_of_a_recording_is_written_once(tmp_path: Path, faststart: bool) -> None:
    """With faststart the box `moov` precedes the frames in `mdat`."""
    path = tmp_path / "v.mp4"
    with VideoWriter(path, (48, 64), fps=25, faststart=faststart) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    data = path.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == faststart
    assert len(toy.read_video(path)) == 3
