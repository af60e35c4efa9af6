"""`fada compare`: equal budgets, one source stage a seed, resuming, failures and the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fada_deploy.common.comparison_document import ComparisonDocument
from fada_deploy.common.documents import read_json
from fada_deploy.common.errors import UsageError
from fada_deploy.common.files import lock
from fada_deploy.training import run_queue
from fada_deploy.training.comparison import _check_settings
from fada_deploy.training.comparison_jobs import method_job, parse_methods, start_job
from fada_deploy.training.config import RunConfig
from fada_deploy.training.loop import STATE
from fada_deploy.training.run_files import load_config, save_config
from fada_deploy.training.run_queue import Job, train_jobs
from fada_deploy.training.settings import make_config

Run = Callable[..., tuple[int, str, str]]


def arguments(blocks: Path, out: Path, *more: object) -> list[object]:
    return [
        "compare", "--src", blocks / "source.toml", "--tgt", blocks / "target.toml", "--recipe",
        "small", "--size", "96x64", "--batch", 2, "--seeds", "1,2", "--out", out, *more,
    ]  # fmt: skip


def iterations(run: Path) -> list[int]:
    """Return the logged iterations of the last stage of a run."""
    (path,) = run.glob("*/metrics.jsonl")
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def compared(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the document of a comparison."""
    out = tmp_path_factory.mktemp("compare") / "it"
    options = ["--methods", "source,minent", "--budget", 5, "--json", "--jobs", 2]
    command = [sys.executable, "-m", "fada_deploy", *arguments(blocks, out, *options)]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.mark.slow
def test_methods_with_settings_of_their_own(fada: Run, blocks: Path, tmp_path: Path) -> None:
    """ProDA is self-training with prototypes; CyCADA trains on a translated source of its own."""
    out = tmp_path / "out"
    settings = ["iterations=2", "max_iterations=2", "width=4", "blocks=1"]
    command = [
        *arguments(blocks, out, "--methods", "proda,cycada", "--budget", 4, "--json"),
        *(word for setting in settings for word in ("--set", f"translation.{setting}")),
    ]
    command[command.index("1,2")] = "1"
    code, stdout, err = fada(*command)
    assert code == 0, err
    assert [m["miou_mean"] is not None for m in json.loads(stdout)["methods"]] == [True, True]
    proda, cycada = (load_config(out / "seed1" / name) for name in ("proda", "cycada"))
    assert proda.selftrain.prototypes and not proda.selftrain.align
    assert (cycada.style, cycada.start) == ("cyclegan", None)
    assert cycada.stages == ("source", "adversarial")
    for stage in cycada.stages:
        lines = (out / "seed1/cycada" / stage / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["iteration"] == 2
    assert (out / "seed1/cycada/translation/examples.jpg").is_file()


@pytest.mark.slow
def test_every_method_has_the_same_budget(compared: tuple[Path, dict[str, Any]]) -> None:
    out, document = compared
    assert (document["source_iterations"], document["method_iterations"]) == (3, 2)
    for seed in (1, 2):
        folder = out / f"seed{seed}"
        assert iterations(folder / "source-stage") == [1, 2, 3]
        assert iterations(folder / "source") == [1, 2, 3, 4, 5]
        assert iterations(folder / "minent") == [1, 2]
        config = load_config(folder / "minent")
        assert config.seed == seed and config.start == str(folder / "source-stage" / "source")
    scores = {
        (method["method"], run["seed"]): run["miou"]
        for method in document["methods"]
        for run in method["runs"]
    }
    assert len(scores) == 4
    for (method, seed), miou in scores.items():
        (path,) = (out / f"seed{seed}" / method).glob("*/scores.json")
        assert miou == json.loads(path.read_text())["miou"]
    (minent,) = [m for m in document["methods"] if m["method"] == "minent"]
    one, two = scores["minent", 1], scores["minent", 2]
    assert minent["miou_mean"] == pytest.approx((one + two) / 2)
    assert minent["miou_std"] == pytest.approx(abs(one - two) / 2**0.5)
    for method in document["methods"]:
        assert all(0 < each["unlabeled_score"] <= 1 for each in method["runs"])
    text = (out / "comparison.json").read_text()
    assert json.loads(text) == {k: v for k, v in document.items() if k != "page"}
    read = read_json(text, ComparisonDocument, where="comparison.json", remedy="")
    assert [each.method for each in read.methods] == ["source", "minent"]


@pytest.mark.slow
def test_the_page_shows_scores_and_pictures(compared: tuple[Path, dict[str, Any]]) -> None:
    out, document = compared
    page = (out / "comparison.html").read_text()
    for method in document["methods"]:
        assert f"{100 * method['miou_mean']:.1f} ± {100 * method['miou_std']:.1f}" in page
    # Three frames with the predictions of two methods and the truth.
    assert page.count("<figure>") == 3 * 4
    assert not re.search(r"(src|href)=.https?:", page), "the page opens offline"


@pytest.mark.slow
def test_a_finished_comparison_trains_only_what_is_new(
    compared: tuple[Path, dict[str, Any]], blocks: Path, fada: Run
) -> None:
    out, _ = compared
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}
    options = ["--methods", "minent,clan+selftrain", "--budget", 5]
    code, _, err = fada(*arguments(blocks, out, *options, "--seeds", "1"))
    assert code == 0, err
    assert (
        weights.items()
        <= {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}.items()
    )
    combined = out / "seed1/clan+selftrain"
    assert iterations(combined) == [1, 2] and load_config(combined).selftrain.align
    code, _, err = fada(*arguments(blocks, out, "--methods", "minent", "--budget", 9))
    assert code == 2 and "other settings (source.iterations)" in err and "another --out" in err


@pytest.mark.slow
def test_a_run_that_fails_does_not_end_the_others(blocks: Path, tmp_path: Path, fada: Run) -> None:
    out = tmp_path / "out"
    options = ["--methods", "source,fada", "--budget", 2, "--seeds", "1", "--json"]
    # A folder in the place of a file: the source stage of the methods cannot be saved.
    (out / "seed1/source-stage/source/weights.safetensors").mkdir(parents=True)
    code, stdout, err = fada(*arguments(blocks, out, *options))
    assert code == 1, err
    source, method = json.loads(stdout)["methods"]
    assert len(source["runs"]) == 1 and not source["errors"]
    assert not method["runs"] and "source-stage could not be trained" in method["errors"][0]
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(
    blocks: Path, tmp_path: Path, interruptible: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    options = ["--methods", "source", "--budget", 40, "--seeds", "1", "--set", "save_every=1000"]
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments(blocks, out, *options))]
    metrics = out / "seed1/source/source/metrics.jsonl"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        while not metrics.is_file() or metrics.read_text().count("\n") < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        # As a closed terminal does.
        os.kill(process.pid, signal.SIGHUP)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and f"--out {out} to continue" in err, err
    assert (out / "seed1/source/source/state.pt").is_file()
    stopped = iterations(out / "seed1/source")[-1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    logged = iterations(out / "seed1/source")
    assert logged[-1] == 40 > stopped and logged == sorted(set(logged))


def test_a_run_without_scores_is_completed(
    compared: tuple[Path, dict[str, Any]], blocks: Path, tmp_path: Path, fada: Run
) -> None:
    """As after Ctrl-C while a trained run was scored; the folder has another name, too."""
    out = tmp_path / "moved"
    shutil.copytree(compared[0], out, symlinks=True)
    (scores,) = (out / "seed2/minent").glob("*/scores.json")
    scores.unlink()
    (out / "seed2/minent/result.json").unlink()
    options = ["--methods", "source,minent", "--budget", 5, "--json"]
    code, stdout, err = fada(*arguments(blocks, out, *options))
    assert code == 0, err
    before = [m["miou_mean"] for m in compared[1]["methods"]]
    assert [m["miou_mean"] for m in json.loads(stdout)["methods"]] == before


def test_self_training_of_a_comparison_does_not_depend_on_the_recipe(tmp_path: Path) -> None:
    options = {"src": "gta5", "tgt": "cityscapes"}
    base = make_config(recipe="deploy", file=None, settings=[], options=options)
    start = start_job(base, tmp_path, 1)
    made = {
        name: method_job(base, tmp_path, name, start).config.selftrain
        for name in ("selftrain", "fada+selftrain", "cycada+selftrain", "cbst", "proda")
    }
    for name in ("selftrain", "fada+selftrain", "cycada+selftrain"):
        assert (made[name].rounds, made[name].mixed_weight, made[name].masked_weight) == (0, 1, 0)
        assert made[name].align == ("+" in name)
    assert made["cbst"].rounds == 4 and made["proda"].prototypes and not made["proda"].rounds


def test_a_run_without_weights_keeps_its_scores(
    compared: tuple[Path, dict[str, Any]], blocks: Path, tmp_path: Path, fada: Run
) -> None:
    """Weights may be deleted to free space; only the label-free score needs them."""
    out = tmp_path / "copy"
    shutil.copytree(compared[0], out, symlinks=True)
    (out / "seed1/source/source/weights.safetensors").unlink()
    (out / "seed1/source/selection.json").unlink()
    options = ["--methods", "source,minent", "--budget", 5, "--json"]
    code, stdout, err = fada(*arguments(blocks, out, *options))
    assert code == 0 and "seed1/source has no label-free score" in err, err
    assert len(json.loads(stdout)["methods"]) == 2


def test_names_of_methods() -> None:
    assert parse_methods("fada, clan+selftrain,fada", "resnet101") == ("fada", "clan+selftrain")
    names = parse_methods("all", "pidnet-s")
    assert {"source", "none", "siban", "cbst", "fada+selftrain"} <= set(names)
    assert "advent-multi" not in names and "advent-multi" in parse_methods("all", "resnet18")
    for text, words in (("fadda", "unknown method 'fadda'"), (",", "no method")):
        with pytest.raises(UsageError, match=words):
            parse_methods(text, "resnet101")
    with pytest.raises(UsageError, match="auxiliary"):
        parse_methods("advent-multi+selftrain", "vgg16")


def test_an_option_of_a_comparison_can_be_corrected(
    blocks: Path, tmp_path: Path, fada: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in which nothing was trained does not fix the settings."""
    out = tmp_path / "it"
    command = arguments(blocks, out, "--methods", "source", "--budget", 2)
    command[command.index("1,2")] = "1"
    code, _, err = fada(*command, "--init", tmp_path / "missing.pth")
    assert code == 1 and "missing.pth" in err

    def reached(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # The training itself is not of interest.
    monkeypatch.setattr("fada_deploy.training.comparison.train_jobs", reached)
    assert fada(*command)[0] == 130


def test_a_trained_translation_fixes_the_settings(tmp_path: Path) -> None:
    """CyCADA trains it before its stages."""
    job = Job(tmp_path / "cycada", RunConfig("gta5", "cityscapes", style="cyclegan"))
    save_config(job.config, job.folder)
    changed = replace(job, config=replace(job.config, seed=2))
    _check_settings([changed], tmp_path)
    (job.folder / "translation").mkdir()
    (job.folder / "translation" / STATE).write_bytes(b"x")
    with pytest.raises(UsageError, match="other settings"):
        _check_settings([changed], tmp_path)


def test_nothing_is_left_of_a_comparison_that_cannot_begin(
    blocks: Path, tmp_path: Path, fada: Run
) -> None:
    out = tmp_path / "it"
    command = arguments(blocks, out, "--methods", "source", "--budget", 2)
    command[command.index(blocks / "target.toml")] = tmp_path / "missing.toml"
    assert fada(*command)[0] == 1
    assert not out.exists()


def test_two_comparisons_cannot_share_a_folder(blocks: Path, tmp_path: Path, fada: Run) -> None:
    with lock(tmp_path):
        code, _, err = fada(*arguments(blocks, tmp_path, "--methods", "source", "--budget", 2))
    assert code == 2 and "another process" in err


@pytest.mark.parametrize(
    ("output", "code", "succeeded"),
    [('{"run": "x"}', 1, True), ('{"run": "x"}', 70, False), ("a line of a library", 0, False)],
)
def test_a_run_is_finished_by_its_document(
    output: str, code: int, succeeded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import sys; print({output!r}); sys.exit({code})"
    monkeypatch.setattr(run_queue, "_command", lambda *_: [sys.executable, "-c", program])
    job = Job(tmp_path / "run", RunConfig("gta5", "cityscapes"))
    errors = train_jobs([job], parallel=1, device="cpu")
    assert job.finished == succeeded == (not errors)


def test_every_run_keeps_its_frames_in_the_cache_folder(
    blocks: Path, tmp_path: Path, fada: Run
) -> None:
    command = arguments(blocks, tmp_path / "it", "--methods", "none", "--budget", 2)
    command[command.index("1,2")] = "1"
    folder = tmp_path / "frames"
    assert fada(*command, "--cache-folder", folder)[0] == 2
    assert fada(*command, "--cache", 0.1, "--cache-folder", folder)[0] == 0
    assert any(folder.iterdir())
