"""The report: everything in one file, its figures the run's own, drawn by a real browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.cli import main
from fada_deploy.training.reporting.run_summary import discriminator_health

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The tags, table cells and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href")
        ]
        if tag == "tr":
            self.cells.append([])
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, "every element is closed where it was opened"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1].append(data)


@pytest.fixture(scope="module")
def whole_run(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a source and an adversarial stage, on a labeled target."""
    run = tmp_path_factory.mktemp("whole") / "run"
    settings = [
        f"--set={s}.{k}" for s in ("source", "adversarial") for k in ("iterations=20", "lr=2e-3")
    ]
    settings += ["--size", "96x64", "--batch", "2", "--set=source.optimizer=adamw"]
    paths = ("--src", blocks / "source.toml", "--tgt", blocks / "target.toml")
    stages = ("--stages", "source,adversarial", "--backbone", "ddrnet23-slim", "--out", run)
    assert fada("train", *paths, *stages, *settings) == 0
    return run


def fada(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_a_page_holds_all_it_shows(trained: Path, streets: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert fada("report", trained, "--out", page, "--frames", 2) == 0
    parsed = Page(page.read_text("utf-8"))
    assert parsed.open == []
    # Pictures are inside, and an SVG refers to its own parts alone.
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in parsed.links)
    pictures = [link for link in parsed.links if link.startswith("data:")]
    # Two frames: the frame, the source stage's answer, the truth.
    assert len(pictures) == 6
    first = cv2.imdecode(
        np.frombuffer(b64decode(pictures[0].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR
    )
    assert first.shape == (213, 320, 3)
    scores = json.loads((trained / "source" / "scores.json").read_text())
    table = {row[0]: row[1:] for row in parsed.cells}
    assert table["mean"] == [f"{100 * scores['miou']:.1f}"]
    assert table["road"] == [f"{100 * scores['iou']['road']:.1f}"]
    assert table["train"] == (
        [] if scores["iou"]["train"] is None else [f"{100 * scores['iou']['train']:.1f}"]
    )


def test_the_page_tells_distances_speed_and_the_discriminators_health(
    whole_run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert fada("report", whole_run, "--out", page, "--frames", 1, "--ccd-frames", 4) == 0
    text = page.read_text("utf-8")
    assert "CCD (lower is better)" in text and "Means: source only " in text
    rows = {row[0]: row[1:] for row in Page(text).cells}
    lines = [
        json.loads(x) for x in (whole_run / "adversarial/metrics.jsonl").read_text().splitlines()
    ]
    assert rows["adversarial"][0] == str(len(lines))
    assert rows["adversarial"][2] == f"{max(x['memory_mib'] for x in lines) / 1024:.1f}"
    assert "of the pixels into the right domain" in text


def test_recordings_have_no_distances_and_the_page_says_why(
    trained: Path, streets: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps(config | {"tgt": str(streets / "clip"), "tgt_root": None})
    )
    assert fada("report", run, "--frames", 1) == 0
    assert "recordings without labels" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("share", "said"), [(0.505, "no more than chance"), (0.8, "80 %"), (0.995, "it is saturated")]
)
def test_the_discriminators_health(share: float, said: str) -> None:
    lines = [{"discriminator_accuracy": 0.7}] * 18 + [{"discriminator_accuracy": share}] * 2
    assert said in discriminator_health(lines)
    assert discriminator_health([{"segmentation": 1.0}]) == ""


def test_runs_side_by_side_name_their_columns(trained: Path, streets: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    page = tmp_path / "both.html"
    assert fada("report", trained, other, "--out", page, "--frames", 0) == 0
    parsed = Page(page.read_text("utf-8"))
    assert parsed.cells[0] == ["class", f"{trained.name}: source only", "other: source only"]
    assert not [link for link in parsed.links if link.startswith("data:")]


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fada("report", tmp_path / "gone") != 0
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; the page's structure is tested above"
)
def test_a_browser_draws_it(trained: Path, streets: Path, tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    assert fada("report", trained, "--out", page, "--frames", 1) == 0
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1600",
        f"--screenshot={shot}",
    ]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    drawn = cv2.imread(str(shot))
    # Colors that only the pictures have: somewhere the page is strongly colored.
    spread = drawn.max(axis=2).astype(int) - drawn.min(axis=2)
    assert drawn.shape[:2] == (1600, 1200) and (spread > 60).mean() > 0.005
