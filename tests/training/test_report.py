"""The HTML report: self-contained, with the values of the run, escaped, and drawn by a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.errors import ModelError
from fada_deploy.plots import curves_svg
from fada_deploy.training.reporting.run_summary import RunSummary, discriminator_health

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
Fada = Callable[..., tuple[int, str, str]]


class Page(HTMLParser):
    """The links, table cells, text and element structure of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href")
        ]
        if tag == "tr":
            self.cells.append([])
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, "elements must be closed in reverse order"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1].append(data)


def read_page(path: Path) -> Page:
    page = Page(path.read_text("utf-8"))
    assert page.open == [], "every element must be closed"
    return page


@pytest.fixture(scope="module")
def two_stages(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a source and an adversarial stage, on a labeled target."""
    from fada_deploy.cli import main

    run = tmp_path_factory.mktemp("two_stages") / "run"
    settings = [
        f"--set={s}.{k}" for s in ("source", "adversarial") for k in ("iterations=20", "lr=2e-3")
    ]
    settings += ["--size", "96x64", "--batch", "2", "--set=source.optimizer=adamw"]
    data = ("--src", blocks / "source.toml", "--tgt", blocks / "target.toml")
    stages = (
        "--stages",
        "source,adversarial",
        "--backbone",
        "tiny",
        "--init",
        "none",
        "--recipe",
        "paper",
    )
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in ("train", *data, *stages, *settings, "--out", run)])
    assert not caught.value.code
    return run


def test_page_is_self_contained_and_shows_scores_and_frames(
    fada: Fada, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    assert fada("report", trained, "--out", path, "--frames", 2)[0] == 0
    page = read_page(path)
    # Images are embedded, and an SVG refers only to its own elements.
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    images = [link for link in page.links if link.startswith("data:")]
    # Two rows of frame, prediction of the source stage, and ground truth.
    assert len(images) == 6
    first = cv2.imdecode(
        np.frombuffer(b64decode(images[0].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR
    )
    assert first.shape == (213, 320, 3)
    scores = json.loads((trained / "source" / "scores.json").read_text())
    table = {row[0]: row[1:] for row in page.cells}
    assert table["mIoU"] == [f"{100 * scores['miou']:.1f}"]
    assert table["road"] == [f"{100 * scores['iou']['road']:.1f}"]
    assert table["train"] == (
        [] if scores["iou"]["train"] is None else [f"{100 * scores['iou']['train']:.1f}"]
    )


def test_page_shows_distances_speed_and_discriminator_health(
    fada: Fada, two_stages: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    arguments = ("--out", path, "--frames", 1, "--ccd-frames", 4)
    assert fada("report", two_stages, *arguments)[0] == 0
    page = read_page(path)
    # SVG text is drawn as paths, with the text in a comment before them.
    drawn = path.read_text("utf-8")
    assert "<!-- 4 labeled source frames and 4 labeled target frames -->" in drawn
    assert "<!-- discriminator source -->" in drawn and "discriminator_source -->" not in drawn
    # One curve needs no legend.
    assert "<!-- source: segmentation -->" in drawn and "<!-- segmentation -->" not in drawn
    assert "Means: source only " in page.text and "discriminator accuracy" in page.text
    # Plots: segmentation of two stages, alignment, discriminator accuracy, distances.
    assert page.tags.count("svg") == 5
    rows = {row[0]: row[1:] for row in page.cells}
    lines = [
        json.loads(x) for x in (two_stages / "adversarial/metrics.jsonl").read_text().splitlines()
    ]
    assert rows["adversarial"][0] == str(len(lines))
    wait = sum(line["loader_wait"] for line in lines) / len(lines)
    rates = [line["images_per_second"] / (1 - line["loader_wait"]) for line in lines]
    assert rows["adversarial"][2] == f"{np.median(rates):.1f}"
    assert rows["adversarial"][3] == f"{100 * wait:.0f} %"
    assert rows["adversarial"][4] == f"{max(x['memory_mib'] for x in lines) / 1024:.1f}"


def test_names_are_escaped(fada: Fada, two_stages: Path, streets: Path, tmp_path: Path) -> None:
    """A folder, a setting and a class name that contain HTML appear as text."""
    name = "<script>alert(1)<&script>"
    for folder in (name, "other"):
        shutil.copytree(two_stages, tmp_path / folder)
    run = tmp_path / name
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"tgt": "a&b<script>"}))
    scores = json.loads((run / "source/scores.json").read_text())
    scores["iou"] = {"<script>car & van": 0.5, **scores["iou"]}
    (run / "source/scores.json").write_text(json.dumps(scores))
    path = tmp_path / "report.html"
    code, _, err = fada("report", run, tmp_path / "other", "--out", path, "--frames", 1)
    assert code == 0, err
    page = read_page(path)
    assert "script" not in page.tags and "alert(1)<" not in path.read_text("utf-8")
    assert "[1] adapted" in page.cells[0] and f"[1] {run}: " in page.text
    assert page.cells[1][0] == "<script>car & van"
    assert '"tgt": "a&b<script>"' in page.text


def test_recordings_have_no_distances_and_the_page_says_why(
    fada: Fada, trained: Path, streets: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps(config | {"tgt": str(streets / "clip"), "tgt_root": None})
    )
    assert fada("report", run, "--frames", 1)[0] == 0
    assert "recordings without labels" in read_page(run / "report.html").text


@pytest.mark.parametrize(
    ("accuracy", "text"), [(0.505, "50 %.*aligned"), (0.8, "80 %"), (0.995, "100 %.*saturated")]
)
def test_discriminator_health_is_the_mean_of_the_last_tenth(accuracy: float, text: str) -> None:
    lines = [{"discriminator_accuracy": 0.7}] * 18 + [{"discriminator_accuracy": accuracy}] * 2
    assert np.char.count(discriminator_health(lines), "\n") == 0
    for part in text.split(".*"):
        assert part in discriminator_health(lines)


def test_discriminator_health_is_empty_without_accuracy() -> None:
    assert discriminator_health([{"segmentation": 1.0}]) == ""


def test_runs_side_by_side_have_one_column_each(fada: Fada, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    path = tmp_path / "both.html"
    assert fada("report", trained, other, "--out", path, "--frames", 0)[0] == 0
    page = read_page(path)
    assert page.cells[0] == ["class", "[1] source only", "[2] source only"]
    assert f"[1] {trained}: " in page.text and f"[2] {other}: " in page.text
    assert "Comparison of 2 runs" in page.text
    assert not [link for link in page.links if link.startswith("data:")]


def test_runs_of_the_same_folder_name_keep_their_own_columns(
    fada: Fada, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "copy" / trained.name
    shutil.copytree(trained, other)
    path = tmp_path / "both.html"
    arguments = ("--out", path, "--frames", 1, "--ccd-frames", 0)
    assert fada("report", trained, other, *arguments)[0] == 0
    page = read_page(path)
    assert page.cells[0] == ["class", "[1] source only", "[2] source only"]
    assert f"[1] {trained}: " in page.text and f"[2] {other}: " in page.text
    # Frame, two predictions, ground truth.
    assert len([link for link in page.links if link.startswith("data:")]) == 4


def test_folder_that_is_not_a_run_is_a_one_line_error(fada: Fada, tmp_path: Path) -> None:
    code, _, err = fada("report", tmp_path / "gone")
    assert code != 0 and err.count("\n") == 1 and "gone" in err


def test_damaged_file_of_a_run_is_named(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "source/scores.json").write_text("{")
    with pytest.raises(ModelError, match=r"source/scores\.json: not valid JSON"):
        RunSummary.read(run)
    (run / "config.json").unlink()
    with pytest.raises(ModelError, match=r"run is not a run.*fada train"):
        RunSummary.read(run)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_browser_draws_the_page(fada: Fada, trained: Path, tmp_path: Path) -> None:
    page, screenshot = tmp_path / "report.html", tmp_path / "screenshot.png"
    assert fada("report", trained, "--out", page, "--frames", 1)[0] == 0
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1600",
        f"--screenshot={screenshot}",
    ]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = cv2.imread(str(screenshot))
    # Only the embedded images have strong colors.
    spread = image.max(axis=2).astype(int) - image.min(axis=2)
    assert image.shape[:2] == (1600, 1200) and (spread > 60).mean() > 0.005


def test_counts_in_the_distance_plot_are_those_of_the_frames(
    fada: Fada, two_stages: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    arguments = ("--out", path, "--frames", 0, "--ccd-frames", 500)
    assert fada("report", two_stages, *arguments)[0] == 0
    drawn = path.read_text("utf-8")
    assert (
        "6 labeled source frames and 6 labeled target frames" in drawn
        and "500 labeled" not in drawn
    )


def test_unlabeled_run_of_a_comparison_is_named_and_source_only_is_titled(
    fada: Fada, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / "source/scores.json").unlink()
    path = tmp_path / "both.html"
    arguments = ("--out", path, "--frames", 0, "--ccd-frames", 0)
    assert fada("report", trained, other, *arguments)[0] == 0
    page = read_page(path)
    assert "the target has no labels or no stage is finished: [2]." in page.text
    assert "ddrnet23-slim, source only" in page.text and "ddrnet23-slim, fada" not in page.text


def test_iteration_ticks_are_integers() -> None:
    drawn = curves_svg({"a": ([1, 2, 3], [0.5, 0.25, 0.125])}, title="t")
    ticks = drawn[drawn.index('id="matplotlib.axis_1"') : drawn.index('id="matplotlib.axis_2"')]
    assert "<!-- 2 -->" in ticks and "." not in "".join(re.findall("<!-- (.*?) -->", ticks))
