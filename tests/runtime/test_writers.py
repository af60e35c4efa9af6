"""What lies on the disk afterwards: films that play with the source's clock, masks by id, whole files only."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import toy

from fada_deploy import Segmenter, runtime
from fada_deploy.common.errors import DataError, DeviceError, UsageError
from fada_deploy.common.images import read_indices, read_rgb
from fada_deploy.common.video import HARDWARE
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import OUTPUTS, SaveOptions, output_names, save_results
from fada_deploy.runtime.writers.video_writer import film


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return Segmenter(toy.color_model(tmp_path / "m.onnx"))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(segmenter: Segmenter, sources: list[Path], saving: SaveOptions) -> list[object]:
    return list(save_results(segmenter, open_sources(sources), saving))


@pytest.mark.parametrize("size", [(64, 128), (61, 97)])
@pytest.mark.parametrize("start", [0, 1500])
def test_a_film_keeps_count_size_and_clock(
    tmp_path: Path, segmenter: Segmenter, size: tuple[int, int], start: int
) -> None:
    pts = [start + p for p in (0, 33, 34, 100, 101, 250, 333, 500, 1000)]
    pictures = [toy.scene(i, size)[0] for i in range(9)]
    source = toy.write_video(
        tmp_path / "drive.mkv",
        pictures,
        pts=pts,
        time_base=Fraction(1, 1000),
        codec="ffv1",
        pix_fmt="bgr0",
    )
    run(segmenter, [source], SaveOptions(tmp_path / "out", look=OverlayStyle(0.0, legend="none")))
    written = toy.read_video(tmp_path / "out/overlay/drive.mp4")
    assert [t for t, _ in written] == [t for t, _ in toy.read_video(source)]
    height, width = size
    assert written[0][1].shape == (height + height % 2, width + width % 2, 3)
    for (_, found), picture in zip(written, pictures, strict=True):
        # At alpha 0 the film shows the frame itself: order and colors survive BT.709 and H.264.
        assert np.median(np.abs(found[:height, :width].astype(int) - picture)) < 6
    data = (tmp_path / "out/overlay/drive.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "out/overlay/drive.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_sound_is_copied(tmp_path: Path, segmenter: Segmenter) -> None:
    source = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(20)], audio=True)
    run(segmenter, [source], SaveOptions(tmp_path / "out"))

    def sound(path: Path) -> list[tuple[Fraction, bytes]]:
        with av.open(str(path)) as container:
            return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]

    assert sound(tmp_path / "out/overlay/v.mp4") == sound(source) and len(sound(source)) > 10
    assert len(toy.read_video(tmp_path / "out/overlay/v.mp4")) == 20


def test_a_film_with_sound_that_is_cut_midway(tmp_path: Path, segmenter: Segmenter) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (20, 64, 128, 3), dtype=np.uint8))
    source = toy.write_video(tmp_path / "v.ts", noise, audio=True)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    run(segmenter, [source], SaveOptions(tmp_path / "out"))
    assert 5 < len(toy.read_video(tmp_path / "out/overlay/v.mp4")) < 15


def test_sound_that_an_mp4_cannot_hold_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "v.mkv"
    with av.open(str(source), "w") as out:
        tone = out.add_stream("pcm_s16le", rate=16_000)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 1600), np.int16), format="s16", layout="mono"
        )
        samples.sample_rate = 16_000
        out.mux(tone.encode(samples))
    path = tmp_path / "o.mp4"
    with film(path, (64, 64), time_base=Fraction(1, 10), rate=None, audio=source) as add:
        add(np.zeros((64, 64, 3), np.uint8), 0)
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video"]


def test_a_clock_that_stands_still_and_a_size_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    with film(path, (64, 64), time_base=Fraction(1, 10), rate=Fraction(10), audio=None) as add:
        for pts, size in ((0, 64), (0, 64), (5, 32), (4, 64)):
            add(np.zeros((size, size, 3), np.uint8), pts)
    assert [t * 10 for t, _ in toy.read_video(path)] == [0, 1, 5, 6]


def test_recordings_that_were_joined_keep_their_length_and_sound(
    tmp_path: Path, segmenter: Segmenter
) -> None:
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
        # A tenth of a second each, and where the clock jumps back no more and no less.
        np.testing.assert_allclose(times, 0.1, atol=1e-3)
    assert packets(tmp_path / "out/overlay/joined.mp4") == packets(parts[0]) + packets(parts[1])


def test_a_stray_timestamp_and_frames_without_one_cost_no_more_than_themselves(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.mp4"
    with film(path, (64, 64), time_base=Fraction(1, 100), rate=Fraction(10), audio=None) as add:
        for pts in (0, 10, 20, 3000, 3010, 7, 3020, 3030):
            add(np.zeros((64, 64, 3), np.uint8), pts)
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


def test_pixels_that_are_not_square_stay_so(tmp_path: Path, segmenter: Segmenter) -> None:
    source = tmp_path / "wide.mp4"
    with film(
        source,
        (64, 96),
        time_base=Fraction(1, 10),
        rate=Fraction(10),
        audio=None,
        pixel_aspect=Fraction(4, 3),
    ) as add:
        for i in range(3):
            add(np.full((64, 96, 3), 40 * i, np.uint8), i)
    run(
        segmenter, [source], SaveOptions(tmp_path / "out", ("overlay", "color-video", "mask-video"))
    )
    for kind in ("overlay", "color-video", "mask-video"):
        with av.open(str(tmp_path / "out" / kind / "wide.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("codec", ["mp3", "libmp3lame"])
def test_mp3_sound_is_copied(tmp_path: Path, codec: str) -> None:
    source, path = tmp_path / "v.mp4", tmp_path / "o.mp4"
    with av.open(str(source), "w") as out:
        try:
            tone = out.add_stream(codec, rate=16_000)
        except (av.error.FFmpegError, ValueError):
            pytest.skip(f"no encoder {codec} here")
        for start in range(0, 16_000, 576):
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 576), np.float32), format="fltp", layout="mono"
            )
            samples.sample_rate, samples.pts, samples.time_base = 16_000, start, Fraction(1, 16_000)
            out.mux(tone.encode(samples))
        out.mux(tone.encode())
    with film(path, (64, 64), time_base=Fraction(1, 10), rate=None, audio=source) as add:
        for i in range(10):
            add(np.zeros((64, 64, 3), np.uint8), i)
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert sum(bool(p.size) for p in container.demux(audio=0)) > 20


def test_a_film_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "o.mp4"
    black = np.zeros((64, 64, 3), np.uint8)

    def make(error: BaseException | None) -> None:
        with film(path, (64, 64), time_base=Fraction(1, 10), rate=None, audio=None) as add:
            add(black, 0)
            if error:
                raise error

    with pytest.raises(RuntimeError, match="half way"):
        make(RuntimeError("half way"))
    monkeypatch.setattr(runtime.writers.video_writer, "_CRF", "no such")
    with pytest.raises(DataError, match=r"o\.mp4: cannot be written") as error:
        make(None)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("ids", ["trainId", "labelId"])
def test_everything_of_a_video(tmp_path: Path, segmenter: Segmenter, ids: str) -> None:
    scenes = [toy.scene(i) for i in range(3)]
    source = toy.write_video(tmp_path / "drive.mp4", [f for f, _ in scenes])
    run(segmenter, [source], SaveOptions(tmp_path / "out", tuple(OUTPUTS), ids=ids))
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
        films = [
            (float(f.pts * f.time_base), f.to_ndarray(format="gray"))
            for f in container.decode(video=0)
        ]
    for result, (time_s, ids_of), (_, colors) in zip(
        results, films, toy.read_video(tmp_path / "out/color-video/drive.mp4"), strict=True
    ):
        wanted = [c.train_id if ids == "trainId" else c.label_id for c in toy.SPACE.classes]
        np.testing.assert_array_equal(ids_of, np.array(wanted)[result.labels])
        assert time_s == pytest.approx(result.time_s or 0.0)
        assert np.abs(colors - toy.SPACE.palette[result.labels].astype(float)).mean() < 6
    for number, result, told in zip(numbers, results, document["frames"], strict=True):
        wanted = [c.train_id if ids == "trainId" else c.label_id for c in toy.SPACE.classes]
        mask = read_indices(tmp_path / f"out/mask/drive/{number}.png")
        np.testing.assert_array_equal(mask, np.array(wanted)[result.labels])
        color = read_rgb(tmp_path / f"out/color/drive/{number}.png")
        np.testing.assert_array_equal(color, toy.SPACE.palette[result.labels])
        arrays = np.load(tmp_path / f"out/npz/drive/{number}.npz")
        np.testing.assert_array_equal(arrays["labels"], result.labels)
        assert arrays["confidence"].dtype == np.float16 and list(arrays["classes"]) == list(
            toy.SPACE.names
        )
        assert (told["index"], told["item"]) == (result.index, number)
        assert told["time_s"] == pytest.approx(result.index / 10)
        assert sum(told["fractions"].values()) == pytest.approx(1, abs=1e-4)


def test_pictures_alone_and_in_a_folder(tmp_path: Path, segmenter: Segmenter) -> None:
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


def test_a_look(tmp_path: Path, segmenter: Segmenter) -> None:
    frame = toy.scene(0)[0]
    source = toy.write_video(tmp_path / "v.mp4", [frame] * 3)
    name = toy.SPACE.names[1]
    look = OverlayStyle(1.0, legend="none", side_by_side=True, classes=(name,))
    run(segmenter, [source], SaveOptions(tmp_path / "out", look=look, preset="veryfast"))
    (_, picture), *_ = toy.read_video(tmp_path / "out/overlay/v.mp4")
    labels = segmenter.predict(frame, color="rgb").labels
    assert picture.shape[1] == 2 * frame.shape[1]
    left, right = (
        picture[:, : frame.shape[1]].astype(float),
        picture[:, frame.shape[1] :].astype(float),
    )
    expected = np.where((labels == 1)[..., None], toy.SPACE.palette[1], frame)
    assert np.abs(left - frame).mean() < 6 and np.abs(right - expected).mean() < 6
    with pytest.raises(UsageError, match="the model has no class lorry; it has "):
        run(
            segmenter,
            [source],
            SaveOptions(tmp_path / "out", look=OverlayStyle(classes=("lorry",))),
        )
    with pytest.raises(UsageError, match="pictures make no film; save mask instead"):
        run(
            segmenter,
            [toy.write_image(tmp_path / "a.png", frame)],
            SaveOptions(tmp_path / "o", ("mask-video",)),
        )


def test_a_labels_head_has_no_confidence_to_save(tmp_path: Path) -> None:
    segmenter = Segmenter(toy.color_model(tmp_path / "m.onnx", head="labels"))
    picture = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    run(segmenter, [picture], SaveOptions(tmp_path / "out", ("npz",)))
    assert sorted(np.load(tmp_path / "out/npz/a.npz")) == ["classes", "labels"]


def test_stopping_midway_leaves_no_half_film(tmp_path: Path, segmenter: Segmenter) -> None:
    scenes = [toy.scene(i)[0] for i in range(30)]
    sources = [toy.write_video(tmp_path / f"{n}.mp4", scenes) for n in ("first", "second")]
    items = save_results(segmenter, open_sources(sources), SaveOptions(tmp_path / "out"))
    for _ in range(40):
        next(items)
    items.close()
    assert files(tmp_path / "out") == ["overlay/first.mp4"]
    assert len(toy.read_video(tmp_path / "out/overlay/first.mp4")) == 30


def test_names_that_meet_are_numbered(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        toy.write_image(tmp_path / folder / "a.png", toy.scene(0)[0])
    sources = open_sources([tmp_path / "x/a.png", tmp_path / "y/a.png", tmp_path / "x"])
    assert list(output_names(sources).values()) == ["a", "a-2", "x"]


def test_a_source_is_not_overwritten_by_its_product(tmp_path: Path, segmenter: Segmenter) -> None:
    source = toy.write_video(tmp_path / "v.mp4", [toy.scene(0)[0]] * 2)
    run(segmenter, [source], SaveOptions(tmp_path / "out"))
    with pytest.raises(UsageError, match="lies where its own overlay is written"):
        run(segmenter, [tmp_path / "out/overlay/v.mp4"], SaveOptions(tmp_path / "out"))


def test_savings_that_make_no_sense() -> None:
    with pytest.raises(
        UsageError,
        match="cannot save 'video'; there are overlay, mask, mask-video, color, color-video, npz, json",
    ):
        SaveOptions(Path("out"), ("video",))
    with pytest.raises(UsageError, match="there are trainId, labelId"):
        SaveOptions(Path("out"), ids="id")
    with pytest.raises(UsageError, match="0 to 1"):
        SaveOptions(Path("out"), look=OverlayStyle(2.0))
    with pytest.raises(UsageError, match="no preset 'best'; there are ultrafast"):
        SaveOptions(Path("out"), preset="best")


def test_hardware_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """No machine that runs these tests has it; where one does, this is what shows it."""
    clip = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(3)])
    try:
        frames = [
            frame
            for frame in open_sources([clip], hardware="cuda")[0].frames()
            if isinstance(frame, Frame)
        ]
        assert [f.index for f in frames] == [0, 1, 2]
    except DeviceError as error:
        assert str(error).startswith("cuda does not decode video here (") and "\n" not in str(error)
    path = tmp_path / "o.mp4"
    try:
        with film(
            path, (64, 256), time_base=Fraction(1, 10), rate=None, audio=None, hardware="cuda"
        ) as add:
            add(np.zeros((64, 256, 3), np.uint8), 0)
        assert len(toy.read_video(path)) == 1
    except DeviceError as error:
        assert str(error).startswith("cuda does not encode video here (") and not path.exists()


def test_films_are_written_by_the_hardware_s_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HARDWARE, "cuda", ("mpeg4", {"qscale": "2"}))
    source = toy.write_video(tmp_path / "v.mkv", [toy.scene(0)[0]] * 2)
    with Segmenter(toy.color_model(tmp_path / "m.onnx")) as segmenter:
        run(segmenter, [source], SaveOptions(tmp_path / "out", hardware="cuda"))
    with av.open(str(tmp_path / "out/overlay/v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
