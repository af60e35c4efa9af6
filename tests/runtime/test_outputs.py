"""Where outputs are written: safe names, locks, failed writes, and continuing interrupted runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import lock, remove_partial
from fada_deploy.common.runs import FINISHED, MANIFEST
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import SourceEnd
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.videos import VideoSource
from fada_deploy.runtime.writers.finished import FinishedSources
from fada_deploy.runtime.writers.inference import run_inference
from fada_deploy.runtime.writers.output import output_names, safe_name
from fada_deploy.runtime.writers.save import SaveOptions, save_results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "toy.onnx")


def clip(path: Path, count: int = 4) -> Path:
    return toy.write_video(path, [toy.scene(i)[0] for i in range(count)])


def files(folder: Path) -> list[str]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != FINISHED)
    return sorted(str(p.relative_to(folder)) for p in found)


def test_names_that_differ_in_case_are_numbered(tmp_path: Path) -> None:
    """They are one file on Windows and macOS."""
    paths = [tmp_path / "x/Drive.mp4", tmp_path / "y/drive.mp4"]
    names = output_names([VideoSource(path) for path in paths])
    assert list(names.values()) == ["Drive", "drive-2"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("..", "source"),
        ("...", "source"),
        (".hidden", "hidden"),
        ("a/../../b", "a_.._.._b"),
        ("C:\\x", "C__x"),
        ("line\nbreak", "line_break"),
        ("", "source"),
        ("x" * 300, "x" * 200),
        ("Straße", "Straße"),
        ("con", "con_"),
        ("COM1.front", "COM1_.front"),
        ("console", "console"),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize("name", ["...mp4", "....mp4", ". .mp4", "a\nb.mp4"])
def test_no_name_of_a_video_leads_out_of_its_folder(
    fada: Run, model: Path, tmp_path: Path, name: str
) -> None:
    clip(tmp_path / "v.mp4").rename(tmp_path / name)
    code, _, err = fada(
        "infer", tmp_path / name, "--model", model, "--out", "out", "--save", "overlay,mask"
    )
    assert code == 0, err
    written = files(Path("out"))
    assert len(written) == 1 + 4 and all(w.startswith(("overlay/", "mask/")) for w in written)
    assert not list(Path("out").glob("*.png")) and not list(Path().glob("*.png"))


def test_an_output_that_cannot_be_written_does_not_end_the_others(
    model: Path, tmp_path: Path
) -> None:
    a, b, c = (clip(tmp_path / f"{name}.mp4") for name in "abc")
    out = tmp_path / "out"
    (out / "overlay" / "b.mp4").mkdir(parents=True)  # a folder where the video should be
    with Segmenter(model) as segmenter:
        items = list(save_results(segmenter, open_sources([a, b, c]), SaveOptions(out)))
        errors = [item for item in items if isinstance(item, DataError)]
        assert len(errors) == 1 and "b.mp4" in str(errors[0])
        ends = [Path(item.source.name).stem for item in items if isinstance(item, SourceEnd)]
        assert ends == ["a", "b", "c"] and files(out) == ["overlay/a.mp4", "overlay/c.mp4"]
        assert len(toy.read_video(out / "overlay" / "c.mp4")) == 4
        with pytest.raises(DataError, match=r"b\.mp4"):
            list(save_results(segmenter, open_sources([b]), SaveOptions(out)))
    assert files(out) == ["overlay/a.mp4", "overlay/c.mp4"]


def test_an_image_that_cannot_be_encoded_does_not_end_the_others(
    model: Path, tmp_path: Path
) -> None:
    """JPEG stores at most 65,500 columns."""
    for name in "ac":
        toy.write_image(tmp_path / "in" / f"{name}.png", toy.scene(0)[0])
    toy.write_image(tmp_path / "in" / "b.png", np.zeros((8, 66_000, 3), np.uint8))
    out = tmp_path / "out"
    with Segmenter(model) as segmenter:
        options = SaveOptions(out, kinds=("overlay", "mask"))
        items = list(save_results(segmenter, open_sources([tmp_path / "in"]), options))
    (error,) = (item for item in items if isinstance(item, DataError))
    assert "b.jpg" in str(error) and "cannot be encoded" in str(error)
    names = ["mask/in/a.png", "mask/in/b.png", "mask/in/c.png"]
    assert files(out) == [*names, "overlay/in/a.jpg", "overlay/in/c.jpg"]


def test_one_unreadable_path_does_not_end_the_others(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    clip(tmp_path / "a.mp4")
    code, _, err = fada("infer", "a.mp4", "x" * 300 + ".mp4", "--model", model, "--out", "out")
    assert code == 1 and "4 frames" in err and (tmp_path / "out/overlay/a.mp4").is_file()


def test_a_video_without_frames_is_an_error(fada: Run, model: Path, tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "zero.mp4"), "w", options={"movflags": "empty_moov"}) as container:
        container.add_stream("libx264", rate=25).pix_fmt = "yuv420p"
        container.start_encoding()
    code, stdout, _ = fada("infer", "zero.mp4", "a.mp4", "--model", model, "--out", "out", "--json")
    (error,) = json.loads(stdout)["failed"]
    assert code == 1 and error == "zero.mp4: contains no frame"


def test_hidden_files_are_no_input(tmp_path: Path) -> None:
    toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    (tmp_path / "._a.png").write_bytes(b"of macOS")
    (source,) = open_sources([tmp_path])
    assert [type(item).__name__ for item in source.frames()] == ["Frame"]


def test_removed_outputs_are_made_again(fada: Run, model: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "a.mp4")
    infer = ("infer", video, "--model", model, "--out", "out", "--save")
    assert fada(*infer, "overlay,json")[0] == 0
    code, _, err = fada(*infer, "json,overlay", "--resume")
    assert code == 0 and "1 of 1 sources were finished before" in err and "nothing was left" in err
    Path("out/overlay/a.mp4").unlink()
    assert fada(*infer, "json,overlay", "--resume")[0] == 0
    assert len(toy.read_video(Path("out/overlay/a.mp4"))) == 4


def test_resume_leaves_out_finished_sources(model: Path, tmp_path: Path) -> None:
    sources = [clip(tmp_path / f"{name}.mp4") for name in ("a", "b")]
    (tmp_path / "other").mkdir()
    sources.append(clip(tmp_path / "other" / "a.mp4", 6))
    options = SaveOptions(tmp_path / "out")
    with Segmenter(model) as segmenter:
        finished = FinishedSources(segmenter, options, open_sources(sources[:2]), resume=False)
        summary = run_inference(segmenter, open_sources(sources[:2]), options, finished=finished)
        assert (summary.frames, summary.finished_before) == (8, 0)
        times = {p: p.stat().st_mtime_ns for p in (options.out / "overlay").iterdir()}
        clip(sources[1], 5)  # this one has changed since
        opened = open_sources(sources)
        finished = FinishedSources(segmenter, options, opened, resume=True)
        summary = run_inference(segmenter, opened, options, finished=finished)
    # The name a-2 shows that the finished source kept its name.
    assert (summary.frames, summary.finished_before) == (5 + 6, 1)
    assert files(options.out) == ["overlay/a-2.mp4", "overlay/a.mp4", "overlay/b.mp4"]
    first = options.out / "overlay" / "a.mp4"
    assert first.stat().st_mtime_ns == times[first]
    assert len(toy.read_video(options.out / "overlay" / "b.mp4")) == 5
    document = json.loads((options.out / FINISHED).read_text())
    assert sorted(map(Path, document["sources"])) == sorted(s.resolve() for s in sources)


def test_resume_reads_a_link_to_a_finished_source(model: Path, tmp_path: Path) -> None:
    """A link has outputs of its own."""
    first, link = clip(tmp_path / "a.mp4"), tmp_path / "latest.mp4"
    link.symlink_to(first)
    options = SaveOptions(tmp_path / "out")
    with Segmenter(model) as segmenter:
        finished = FinishedSources(segmenter, options, open_sources([first]), resume=False)
        run_inference(segmenter, open_sources([first]), options, finished=finished)
        both = open_sources([first, link])
        finished = FinishedSources(segmenter, options, both, resume=True)
        assert run_inference(segmenter, both, options, finished=finished).finished_before == 1
    assert files(options.out) == ["overlay/a.mp4", "overlay/latest.mp4"]


def test_resume_refuses_the_folder_of_a_job_on_a_cluster(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text("{}")
    command = ("infer", clip(tmp_path / "a.mp4"), "--model", model, "--out", "out")
    code, _, err = fada(*command, "--resume")
    assert code == 2 and "add --ray" in err and manifest.is_file()
    assert fada(*command)[0] == 0 and not manifest.exists()


def test_resume_refuses_other_settings_and_damaged_documents(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    video = clip(tmp_path / "a.mp4")
    infer = ("infer", video, "--model", model, "--out", "out")
    assert fada(*infer)[0] == 0
    code, _, err = fada(*infer, "--resume")
    assert code == 0 and "1 of 1 sources were finished before" in err
    code, _, err = fada(*infer, "--resume", "--ids", "labelId")
    assert code == 2 and "another --ids" in err
    code, _, err = fada("infer", video, "--model", model, "--resume")
    assert code == 2 and "--out FOLDER" in err
    Path("out", FINISHED).write_text("{")
    code, _, err = fada(*infer, "--resume")
    assert code == 1 and FINISHED in err and "delete it" in err
    assert fada(*infer)[0] == 0


def test_two_processes_cannot_write_to_the_same_output(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    video = clip(tmp_path / "a.mp4")
    code = (
        "import sys, pathlib\nfrom fada_deploy.common.files import lock\n"
        "with lock(pathlib.Path('out')), lock(pathlib.Path('.'), '.x.mp4.lock'), "
        "lock(pathlib.Path('all/overlay'), '.x.mp4.lock'):\n"
        "    print('locked', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        # The last one has the folder of a single file.
        for out, name in (("out", "out"), ("x.mp4", "x.mp4"), ("all", "x.mp4")):
            status, _, err = fada("infer", video, "--model", model, "--out", out)
            assert status == 2 and name in err and "another process" in err
        assert fada("infer", video, "--model", model, "--out", "y.mp4")[0] == 0
        other.communicate(b"")
    assert fada("infer", video, "--model", model, "--out", "out")[0] == 0


def test_temporary_files_of_killed_processes_are_removed(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    video = clip(tmp_path / "a.mp4")
    leftovers = [Path("out/overlay/.a.123.partial.mp4"), Path(".b.123.partial.mp4")]
    kept = [Path(".other.123.partial.mp4"), Path("out/.mine.partial.txt")]
    kept.append(Path(".b.left.123.partial.mp4"))  # of another process that writes b.left.mp4
    for path in (*leftovers, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert fada("infer", video, "--model", model, "--out", "out")[0] == 0
    assert fada("infer", video, "--model", model, "--out", "b.mp4")[0] == 0
    assert not any(p.exists() for p in leftovers) and all(p.exists() for p in kept)


def test_locks_of_two_names_are_independent(tmp_path: Path) -> None:
    with lock(tmp_path, ".a.lock"), lock(tmp_path, ".b.lock"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.1.partial.mp4").touch()
    remove_partial(tmp_path, tmp_path / "b.mp4")
    assert list(tmp_path.iterdir())
    remove_partial(tmp_path, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_process_that_does_not_return(tmp_path: Path) -> None:
    """The decoder of this process never returns, as with some damaged files."""
    code = """
import sys, threading, time
from fada_deploy.cli import infer_live
infer_live._GRACE_S = 0.5
stop = infer_live.StopRequest([])
with infer_live.stop_on_signals(stop):
    print("ready", flush=True)
    try:
        while True:
            time.sleep(0.05)
    finally:
        threading.Event().wait(60)  # what joins the blocked thread
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        start = time.monotonic()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130 and time.monotonic() - start < 15
        assert b"Ctrl-C again" in err


def test_resume_needs_the_model_and_keeps_finished_outputs(tmp_path: Path) -> None:
    options = SaveOptions(tmp_path / "out")
    model = toy.color_model(tmp_path / "a.onnx")
    (source,) = open_sources([clip(tmp_path / "v.mp4")])
    (tmp_path / "n").mkdir()
    (other,) = open_sources([clip(tmp_path / "n" / "v.mp4")])
    with Segmenter(model) as segmenter:
        FinishedSources(segmenter, options, [source], resume=False).add(source)
        FinishedSources(segmenter, options, [source, other], resume=True)
        # The new source would get the name of the finished one.
        with pytest.raises(UsageError, match=r"would overwrite the outputs of .*v\.mp4"):
            FinishedSources(segmenter, options, [other, source], resume=True)
        document = json.loads((options.out / FINISHED).read_text())
        document["settings"]["model"] = "0" * 64
        (options.out / FINISHED).write_text(json.dumps(document))
        with pytest.raises(UsageError, match="another model"):
            FinishedSources(segmenter, options, [source], resume=True)


def test_a_damaged_source_and_one_that_changes_meanwhile_are_not_finished(
    model: Path, tmp_path: Path
) -> None:
    damaged, growing = tmp_path / "photos", clip(tmp_path / "b.mp4")
    damaged.mkdir()
    toy.write_image(damaged / "good.png", toy.scene(0)[0])
    (damaged / "bad.png").write_bytes(b"not an image")
    options = SaveOptions(tmp_path / "out")
    with Segmenter(model) as segmenter:
        sources = open_sources([damaged, growing])
        finished = FinishedSources(segmenter, options, sources, resume=False)
        clip(growing, 6)
        summary = run_inference(segmenter, sources, options, finished=finished)
        assert summary.frames == 1 + 6
        assert len(summary.errors) == 1 and "bad.png" in summary.errors[0]
        again = FinishedSources(segmenter, options, open_sources([damaged, growing]), resume=True)
        assert again.names(sources) == set()


def test_frames_of_a_mask_are_inside_their_folder(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    import cv2

    cv2.imwrite(str(folder / "x.png"), np.zeros((64, 128, 3), np.uint8))
    os.rename(folder / "x.png", folder / "....png")
    with Segmenter(model) as segmenter:
        options = SaveOptions(tmp_path / "out", kinds=("mask",))
        list(save_results(segmenter, open_sources([folder / "....png"]), options))
    assert len(files(tmp_path / "out" / "mask")) == 1


def test_recursive_mirrors_the_tree_and_follows_links_once(
    fada: Run, model: Path, tmp_path: Path
) -> None:
    drives = tmp_path / "drives"
    for name in ("a/x.mp4", "b/x.mp4", "top.mp4"):
        (drives / name).parent.mkdir(parents=True, exist_ok=True)
        clip(drives / name, 2)
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    clip(tmp_path / "elsewhere" / "c" / "y.mp4", 2)
    (drives / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (drives / "a" / "loop").symlink_to(drives, target_is_directory=True)
    expected = ["a/x.mp4", "b/x.mp4", "linked/c/y.mp4", "top.mp4"]
    infer = ("infer", drives, "--recursive", "--model", model, "--out", drives / "results")
    for _ in range(2):  # the outputs of the first run are no inputs of the second
        code, _, err = fada(*infer)
        assert code == 0, err
        assert files(drives / "results") == [f"overlay/{name}" for name in expected]
    code, _, err = fada("infer", drives, "--model", model)
    assert "--recursive" in err
    code, _, err = fada("infer", drives / "top.mp4", "--recursive", "--model", model)
    assert code == 2 and "one folder" in err
