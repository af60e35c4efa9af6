"""The perception app: geometry on exact labels, the budget on a fake clock, drift on videos."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app import App
from budget import Budget
from perception import GROUPS, Corridor, perceive
from toy import color_model, read_video, scene, write_image, write_video

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.synth.camera import Bend, Camera
from fada_deploy.synth.clip import Drive

SPACE = CITYSCAPES_19
APP = Path(sys.modules["app"].__file__ or "")
ROAD, SIDEWALK, SKY, PERSON, CAR, TRUCK = map(
    SPACE.index_of, ("road", "sidewalk", "sky", "person", "car", "truck")
)
SIZE = (96, 160)


# Geometry on exact label maps.


@pytest.fixture(scope="module")
def drives() -> list[np.ndarray]:
    """Return label maps of rendered drives through four towns."""
    return [
        labels
        for seed in range(1, 5)
        for i, (_, labels) in enumerate(
            Drive.start("target", seed, size_hw=SIZE, seconds=2).frames(50)
        )
        if i % 10 == 0
    ]


def regions(mask: np.ndarray, steps: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield the connected regions of a mask, by flood fill."""
    remaining = mask.copy()
    while remaining.any():
        start = tuple(int(v) for v in np.argwhere(remaining)[0])
        region, waiting = np.zeros_like(mask), deque([start])
        remaining[start] = False
        while waiting:
            row, column = waiting.popleft()
            region[row, column] = True
            for down, right in steps:
                at = row + down, column + right
                if 0 <= at[0] < mask.shape[0] and 0 <= at[1] < mask.shape[1] and remaining[at]:
                    remaining[at] = False
                    waiting.append(at)
        yield region


FOUR = [(0, 1), (1, 0), (0, -1), (-1, 0)]
EIGHT = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]


def test_drivable_area_is_the_road_connected_to_the_car(drives: list[np.ndarray]) -> None:
    checked = 0
    for labels in drives:
        foot = SIZE[0] - 1, SIZE[1] // 2
        if labels[foot] != ROAD:
            continue
        (expected,) = [r for r in regions(labels == ROAD, FOUR) if r[foot]]
        np.testing.assert_array_equal(perceive(labels, SPACE, Corridor()).drivable, expected)
        checked += 1
    assert checked >= 15


def test_obstacles_are_connected_regions_of_dynamic_classes(drives: list[np.ndarray]) -> None:
    kinds: Counter[str] = Counter()
    for labels in drives:
        expected = []
        for group in GROUPS:
            for region in regions(np.isin(labels, [SPACE.index_of(n) for n in group]), EIGHT):
                rows, columns = np.nonzero(region)
                if region.mean() < 0.0008:
                    continue
                name = Counter(labels[region].tolist()).most_common(1)[0][0]
                box = (
                    columns.min() / 160,
                    rows.min() / 96,
                    (columns.max() + 1) / 160,
                    (rows.max() + 1) / 96,
                )
                expected.append(
                    (SPACE.names[name], *(round(float(v), 4) for v in box), round(region.mean(), 5))
                )
        obstacles = perceive(labels, SPACE, Corridor()).obstacles
        assert sorted((o.name, *o.box, o.fraction) for o in obstacles) == sorted(expected)
        assert [o.box[3] for o in obstacles] == sorted((o.box[3] for o in obstacles), reverse=True)
        kinds.update(o.name for o in obstacles)
    assert len(kinds) >= 5 and kinds["car"] >= 20


def test_free_road_ends_at_the_first_blocked_row_or_obstacle(drives: list[np.ndarray]) -> None:
    """Nothing blocks a row of the free part, and something blocks the row behind it."""
    ends: Counter[str] = Counter()
    corridor = Corridor()
    for labels in drives:
        scene = perceive(labels, SPACE, corridor)
        inside = corridor.mask(SIZE)
        end = round((1 - scene.free_ahead) * SIZE[0])
        blocked = {
            r
            for r in range(SIZE[0])
            if inside[r].any() and scene.drivable[r, inside[r]].mean() < 0.5
        }
        occupied_rows = set()
        for group in GROUPS:
            for region in regions(np.isin(labels, [SPACE.index_of(n) for n in group]), EIGHT):
                for column in np.flatnonzero(region.any(0)) if region.mean() >= 0.0008 else ():
                    row = int(np.flatnonzero(region[:, column])[-1])
                    occupied_rows |= {row} if inside[row, column] else set()
        assert not any(row >= end for row in blocked | occupied_rows)
        assert scene.free_until == "" or end - 1 in blocked | occupied_rows
        ends[scene.free_until] += 1
    assert ends["car"] >= 3


def street(
    x: float, z: float, half_width: float, height: float, label: int
) -> tuple[np.ndarray, Corridor, float]:
    """Return labels of a straight road with one upright obstacle, and what to expect.

    These are a corridor 2.4 m wide and the height at which the obstacle stands, as a fraction.
    """
    size, high = (384, 640), 1.5
    camera = Camera.place(size_hw=size, x=0, y=high, z=0, yaw=0, horizon=0.48, bend=Bend(0, 1, 0))
    corners = np.array([[x - half_width, 0, z], [x + half_width, height, z]])
    (left, foot), (right, top) = camera.project(camera.to_view(corners)) + 0.5
    labels = np.full(size, SKY, np.uint8)
    labels[math.ceil(0.48 * size[0]) :] = ROAD
    labels[max(0, round(top)) : round(foot), max(0, round(left)) : max(0, round(right))] = label
    # Depth of the lower edge of the image by the pinhole model.
    near = camera.focal * high / (size[0] - 0.48 * size[0])
    return labels, Corridor(0.5, 0.48, 2.4 * camera.focal / near / size[1]), 1 - foot / size[0]


@pytest.mark.parametrize("z", [5.0, 8.0, 15.0, 30.0])
def test_obstacle_ahead_is_where_the_pinhole_model_projects_it(z: float) -> None:
    labels, corridor, ahead = street(0, z, 0.9, 1.5, CAR)
    scene = perceive(labels, SPACE, corridor)
    (car,) = scene.obstacles
    assert (car.name, car.position) == ("car", "ego")
    assert (
        car.ahead
        == pytest.approx(ahead, abs=1 / 384)
        == pytest.approx(scene.free_ahead, abs=1 / 384)
    )
    assert scene.free_until == "car"
    for x, position in ((-3.25, "left"), (3.25, "right")):
        labels, corridor, _ = street(x, z, 0.9, 1.5, CAR)
        scene = perceive(labels, SPACE, corridor)
        # A part of a car in the next lane may be outside the image.
        assert all(o.position == position and o.ahead is None for o in scene.obstacles)
        assert z == 5.0 or len(scene.obstacles) == 1
        # The road is free up to the far end of the corridor.
        assert (scene.free_ahead, scene.free_until) == (pytest.approx(0.52 * 0.94, abs=1e-3), "")


def test_narrow_person_ends_the_free_road() -> None:
    labels, corridor, ahead = street(0.8, 10, 0.25, 1.8, PERSON)
    scene = perceive(labels, SPACE, corridor)
    assert scene.free_until == "person" and scene.free_ahead == pytest.approx(ahead, abs=1 / 384)
    labels, corridor, _ = street(1.8, 10, 0.25, 1.8, PERSON)
    assert perceive(labels, SPACE, corridor).free_until == ""


def test_row_is_free_if_at_least_half_of_it_is_road() -> None:
    labels, corridor, _ = street(50, 8, 0.9, 1.5, CAR)
    left, right = (float(edge[0]) * 640 for edge in corridor.span(np.array([300.5 / 384])))
    for fraction, free in ((0.4, True), (0.6, False)):
        curb = labels.copy()
        curb[300, round(right - fraction * (right - left)) :] = SIDEWALK
        scene = perceive(curb, SPACE, corridor)
        assert scene.free_until == ("" if free else "sidewalk")
        assert free or scene.free_ahead == pytest.approx(83 / 384, abs=1e-4)


def test_corridor_is_a_triangle_to_the_vanishing_point() -> None:
    corridor = Corridor(0.7, 0.4, 0.3, 0.9)
    inside = corridor.mask((60, 90))
    for row in range(60):
        for column in range(90):
            x, y = (column + 0.5) / 90, (row + 0.5) / 60
            # Cross products with the sides from the vanishing point to the lower edge.
            sides = [(end - 0.7) * (y - 0.4) - (1 - 0.4) * (x - 0.7) for end in (0.35, 0.65)]
            assert inside[row, column] == (
                sides[0] <= 0 <= sides[1] and 0.4 + 0.06 * 0.6 <= y <= 0.9
            )
    np.testing.assert_allclose(
        corridor.polygon(0.4),
        [[0.7, 0.4], [0.7, 0.4], [0.65 + 0.05 / 6, 0.9], [0.35 + 0.35 / 6, 0.9]],
    )


def test_obstacle_half_inside_has_a_side_and_is_ahead() -> None:
    labels, corridor, ahead = street(-1.8, 8, 0.9, 1.5, CAR)
    (car,) = perceive(labels, SPACE, corridor).obstacles
    assert car.position == "left" and car.ahead == pytest.approx(ahead, abs=1 / 384)


def test_touching_vehicles_are_one_obstacle_but_people_are_not() -> None:
    labels = street(0, 8, 0.9, 1.5, CAR)[0]
    rows, columns = np.nonzero(labels == CAR)
    labels[rows.min() : rows.max() + 1, columns.max() + 1 : columns.max() + 10] = TRUCK
    labels[rows.min() : rows.max() + 1, columns.min() - 9 : columns.min()] = PERSON
    assert sorted(o.name for o in perceive(labels, SPACE, Corridor()).obstacles) == [
        "car",
        "person",
    ]


def test_hood_is_neither_road_nor_obstacle() -> None:
    labels, corridor, ahead = street(0, 10, 0.9, 1.5, CAR)
    labels[340:] = CAR
    scene = perceive(labels, SPACE, Corridor(0.5, 0.48, corridor.width, bottom=340 / 384))
    assert len(scene.obstacles) == 1
    assert scene.free_ahead == pytest.approx(ahead - 44 / 384, abs=1 / 384)
    without_hood = perceive(labels, SPACE, corridor)
    assert (without_hood.free_ahead, without_hood.free_until) == (0.0, "car")


def test_nothing_is_free_without_road() -> None:
    scene = perceive(np.full(SIZE, SIDEWALK, np.uint8), SPACE, Corridor())
    assert not scene.drivable.any() and (scene.free_ahead, scene.free_until) == (0.0, "sidewalk")
    assert scene.to_dict()["drivable"] == {"fraction": 0.0, "polygon": []}


def test_invalid_corridor_and_label_space_raise() -> None:
    for arguments in (
        (0.5, 0.95),
        (1.5, 0.4),
        (0.5, math.nan),
        (0.5, 0.4, 0.0),
        (0.5, 0.48, 0.5, 0.55),
    ):
        with pytest.raises(UsageError, match="corridor"):
            Corridor(*arguments)
    other = LabelSpace("animals", (SPACE.classes[CAR], SPACE.classes[SKY]))
    with pytest.raises(UsageError, match=r"'road'.*car, sky"):
        perceive(np.zeros(SIZE, np.uint8), other, Corridor())


# The budget, on a fake clock.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowSegmenter:
    """A segmenter that takes `seconds` by the fake clock and labels every pixel `label`."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds, self.label, self.calls = clock, 0.0, ROAD, 0
        self.space = SPACE
        self.metadata = ModelMetadata(SPACE, SIZE, "logits", align_corners=False)

    def predict(self, frame: np.ndarray, *, color: str, confidence: bool = False) -> Result:
        self.calls += 1
        self.clock.now += self.seconds
        return Result(np.full(SIZE, self.label, np.uint8), frame, SPACE, self.clock.now, 0.0)


@pytest.fixture
def slow() -> SlowSegmenter:
    return SlowSegmenter(Clock())


def steps(
    app: App, slow: SlowSegmenter, seconds: list[float], *, waited: float = 0.0
) -> list[dict[str, Any]]:
    """Process one frame per network time in `seconds`; each waits `waited` seconds before."""
    lines = []
    for index, spent in enumerate(seconds):
        slow.seconds = spent
        frame = Frame(np.zeros((*SIZE, 3), np.uint8), "video", index, "", slow.clock.now)
        slow.clock.now += waited
        lines.append(app.process(frame))
    return lines


def test_consecutive_late_frames_halve_the_rate_and_fast_ones_restore_it(
    slow: SlowSegmenter,
) -> None:
    app = App(slow, Corridor(), Budget(0.050), clock=slow.clock)  # type: ignore[arg-type]
    warm_up_calls = slow.calls
    lines = steps(app, slow, [0.01, 0.06, 0.06, 0.01, 0.06, 0.06, 0.06] + [0.06] * 6)
    assert [line["late"] for line in lines[:7]] == [False, True, True, False, True, True, True]
    # The third consecutive late frame starts the degraded mode, which skips every second frame.
    assert [line["degraded"] for line in lines] == [False] * 6 + [True] * 7
    assert [line["stale"] for line in lines] == [False] * 7 + [True, False] * 3
    assert (
        slow.calls - warm_up_calls == 10
        and app.budget.skipped_frames == 3
        and app.budget.degradations == 1
    )
    # Just below the budget is not fast enough to end it.
    lines = steps(app, slow, [0.045] * 40)
    assert all(line["degraded"] for line in lines)
    lines = steps(app, slow, [0.01] * 40)
    end = [line["degraded"] for line in lines].index(False)
    # Twelve consecutive segmented frames, which are every second frame.
    assert end in (22, 23) and not any(
        line["degraded"] or line["stale"] for line in lines[end + 1 :]
    )
    assert app.budget.degradations == 1


def test_reused_result_reports_its_age(slow: SlowSegmenter) -> None:
    app = App(slow, Corridor(), Budget(0.050), clock=slow.clock)  # type: ignore[arg-type]
    steps(app, slow, [0.1] * 3)
    slow.label = SIDEWALK
    reused, fresh = steps(app, slow, [0.1, 0.1], waited=0.02)
    assert reused["stale"] and not fresh["stale"]
    # 100 ms since the capture of the segmented frame, and 20 ms of waiting.
    assert (reused["latency_ms"], reused["age_ms"], reused["free_until"]) == (20.0, 120.0, "")
    assert (fresh["latency_ms"], fresh["age_ms"], fresh["free_until"]) == (120.0, 120.0, "sidewalk")
    assert fresh["late"] and not reused["late"]


def test_waiting_counts_as_latency_and_budget_is_optional(slow: SlowSegmenter) -> None:
    app = App(slow, Corridor(), Budget(0.050), clock=slow.clock)  # type: ignore[arg-type]
    assert [line["late"] for line in steps(app, slow, [0.03] * 2, waited=0.03)] == [True, True]
    app = App(slow, Corridor(), Budget(None), clock=slow.clock)  # type: ignore[arg-type]
    lines = steps(app, slow, [5.0] * 9)
    assert not any(line["late"] or line["degraded"] or line["stale"] for line in lines)


# The program, on videos.


def run(*arguments: object, stdin: Any = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, APP, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, stdin=stdin
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered drive of three seconds, `day.mp4`.

    Its folder also has `night.mp4`, `half.mp4` (day, then night) and `day/` with every fifth frame.
    """
    folder = tmp_path_factory.mktemp("drive")
    frames = [f for f, _ in Drive.start("source", 7, size_hw=(128, 192), seconds=3).frames(75)]
    for i, frame in enumerate(frames[::5]):
        write_image(folder / "day" / f"{i:03d}.png", frame)
    dark = [(f * np.array([0.2, 0.22, 0.3])).astype(np.uint8) for f in frames]
    write_video(folder / "night.mp4", dark, rate=25)
    write_video(folder / "half.mp4", frames + dark, rate=25)
    return write_video(folder / "day.mp4", frames, rate=25)


@pytest.fixture(scope="module")
def models(trained: Path, video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return exports of a trained network, one per head, with statistics of the drive."""
    from fada_deploy.export.exporter import export_onnx

    folder, weights = tmp_path_factory.mktemp("models"), trained / "source" / "weights.safetensors"
    frames = video.parent / "day"
    return {
        head: export_onnx(weights, folder / f"{head}.onnx", head=head, frames=frames).model
        for head in ("logits", "labels")
    }


@pytest.mark.slow
def test_video_gives_json_lines_and_an_annotated_video(
    video: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    done = run(
        video, "--model", models["logits"], "--out", tmp_path / "out.mp4", "--budget-ms", 10_000
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(75))
    assert lines[50]["time_s"] == pytest.approx(2.0)
    assert not any(line["late"] or line["stale"] for line in lines)
    assert all(line["latency_ms"] == line["age_ms"] > 0 for line in lines)
    # The network recognizes the road.
    assert np.mean([line["drivable"]["fraction"] for line in lines]) > 0.2
    assert np.mean([line["free_ahead"] for line in lines]) > 0.15
    drawn = read_video(tmp_path / "out.mp4")
    assert [float(t) for t, _ in drawn] == pytest.approx([float(t) for t, _ in read_video(video)])
    assert drawn[0][1].shape[1] == 960 and drawn[0][1].shape[0] > 640


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_night_is_drift_and_the_exported_frames_are_not(
    video: Path, models: dict[str, Path], tmp_path: Path, head: str
) -> None:
    scores = {}
    for name in ("day", "night"):
        done = run(video.with_name(f"{name}.mp4"), "--model", models[head], "--drift-window", 30)
        assert done.returncode == 0, done.stderr
        scores[name] = json.loads(done.stdout.splitlines()[-1])["drift"]
        assert ("warning: " in done.stderr) == (name == "night"), done.stderr
    # 1 is the limit of the warning. The network is trained by this test, on any processor.
    assert scores["day"] < 1 and scores["night"] > 3 * max(scores["day"], 1)


@pytest.mark.slow
def test_drift_is_reported_once_when_it_begins(video: Path, models: dict[str, Path]) -> None:
    done = run(video.with_name("half.mp4"), "--model", models["logits"], "--drift-window", 30)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    first = [line["drifting"] for line in lines].index(True)
    assert f"frame {first}: drift" in warning and 75 <= first < 110
    assert all(line["drifting"] for line in lines[first:])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_playable_video(
    video: Path, models: dict[str, Path], tmp_path: Path, number: signal.Signals
) -> None:
    stream = write_video(tmp_path / "video.ts", [f for _, f in read_video(video)], rate=25)
    lines, out = tmp_path / "frames.jsonl", tmp_path / "out.mp4"
    command = [sys.executable, APP, "-", "--model", models["logits"], "--json", lines, "--out", out]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stderr is not None
        # Like a camera, the pipe stays open.
        process.stdin.write(stream.read_bytes())
        process.stdin.flush()
        while process.poll() is None and (
            not lines.exists() or lines.read_text("utf-8").count("\n") < 5
        ):
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0, process.stderr.read()
    assert len(read_video(out)) == lines.read_text("utf-8").count("\n") >= 5


def test_damaged_image_is_reported_and_the_others_are_processed(tmp_path: Path) -> None:
    model = color_model(tmp_path / "model.onnx")
    labels = street(0, 8, 0.9, 1.5, CAR)[0]
    for i in range(2):
        write_image(tmp_path / "frames" / f"{i}.png", SPACE.palette[labels])
    (tmp_path / "frames" / "2.png").write_bytes(b"rubbish")
    done = run(
        tmp_path / "frames",
        "--model",
        model,
        "--json",
        tmp_path / "x.jsonl",
        "--out",
        tmp_path / "x.mp4",
    )
    assert done.returncode == 1
    messages = done.stderr.splitlines()
    assert "drift" in messages[0] and messages[1].startswith("failed: ") and "2.png" in messages[1]
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [line["free_until"] for line in lines] == ["car", "car"]
    assert lines[0]["drift"] is None and lines[0]["time_s"] is None
    assert len(read_video(tmp_path / "x.mp4")) == 2


def test_error_is_one_line_with_its_exit_code(tmp_path: Path) -> None:
    model = color_model(tmp_path / "model.onnx")
    video = write_video(tmp_path / "a.mp4", [SPACE.palette[street(0, 8, 0.9, 1.5, CAR)[0]]] * 3)
    before = video.read_bytes()
    for arguments, code, fact in (
        ((tmp_path / "none.mp4", "--model", model), 1, "no such file"),
        ((tmp_path / "none.mp4", "--model", tmp_path / "none.onnx"), 1, "none.onnx"),
        ((tmp_path / "none.mp4", "--model", model, "--hood", "0.6"), 2, "corridor"),
        (
            (tmp_path / "a.mp4", "--model", model, "--out", tmp_path / "a.mp4"),
            2,
            "is the source itself",
        ),
        ((tmp_path / "a.mp4", "--model", model, "--out", tmp_path / "b.txt"), 2, ".mp4"),
    ):
        done = run(*arguments)
        assert done.returncode == code and fact in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1
    assert video.read_bytes() == before


def test_reader_of_the_lines_may_close_the_pipe(tmp_path: Path) -> None:
    model = color_model(tmp_path / "model.onnx")
    video = write_video(tmp_path / "a.mp4", [SPACE.palette[street(0, 8, 0.9, 1.5, CAR)[0]]] * 60)
    out = tmp_path / "out.mp4"
    command = f"{sys.executable} {APP} {video} --model {model} --out {out} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["index"] == 0
    assert "Traceback" not in done.stderr and "Broken pipe" not in done.stderr
    # The video is completed with the frames up to there.
    assert len(read_video(out)) >= 1


@pytest.mark.parametrize("frames", [3, 60])
def test_drift_is_not_decided_on_few_frames(
    tmp_path: Path, models: dict[str, Path], frames: int
) -> None:
    video = write_video(tmp_path / "gray.mp4", [np.full((*SIZE, 3), 128, np.uint8)] * frames)
    done = run(video, "--model", models["logits"], "--drift-window", 30)
    last = done.stderr.splitlines()[-1]
    assert ("too few frames" in last) == (frames == 3) and ("like the frames" in last) == (
        frames == 60
    )


def test_no_output_replaces_the_source_or_the_other_one(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.mp4", [scene(i)[0] for i in range(2)])
    before = path.read_bytes()
    for more in (("--json", path), ("--out", path), ("--json", "x.mp4", "--out", "x.mp4")):
        finished = run(path, "--model", "builtin", *more)
        assert finished.returncode == 2 and "choose another name" in finished.stderr
        assert path.read_bytes() == before
