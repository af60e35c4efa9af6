"""The command line: commands that build on each other, errors, help, versions and completion."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from markdown_pages import all_commands

from fada_deploy._version import __version__
from fada_deploy.cli import COMMANDS, cli, demo
from fada_deploy.runtime.parity import TOLERANCES
from fada_deploy.runtime.writers.video_writer import VideoWriter

Run = Callable[..., tuple[int, str, str]]


def small(*stages: str) -> list[str]:
    settings = [f"--set={s}.{k}" for s in stages for k in ("iterations=3", "batch=2")]
    return [
        *settings,
        "--recipe",
        "paper",
        "--size",
        "96x64",
        "--backbone",
        "ddrnet23-slim",
        "--init",
        "none",
        "--stages",
        ",".join(stages),
    ]


def error_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    return lines[-1]


@pytest.mark.slow
def test_commands_continue_from_the_previous_one(fada: Run, blocks: Path, tmp_path: Path) -> None:
    code, _, err = fada(
        "train",
        "--src",
        blocks / "source.toml",
        "--tgt",
        blocks / "target.toml",
        *small("source", "adversarial"),
    )
    assert code == 0 and "next: fada export" in err
    code, _, err = fada("export")
    assert code == 0 and "next: fada infer" in err
    assert "using run runs/source-target-ddrnet23-slim-001 (the newest)" in err
    assert (tmp_path / "runs/source-target-ddrnet23-slim-001/export/model.onnx").is_file()
    code, _, err = fada("infer", blocks / "target/val/images", "--save", "mask,overlay")
    assert code == 0
    assert len(list((tmp_path / "runs/infer-001/mask").rglob("*.png"))) == 6


@pytest.mark.slow
def test_scores_of_a_run_and_its_export_agree(fada: Run, trained: Path, streets: Path) -> None:
    fada("export", trained, "--out", "model.onnx")
    documents = []
    for model in (trained, Path("model.onnx")):
        code, out, _ = fada(
            "eval", model, "--data", "cityscapes", "--data-root", streets / "cityscapes", "--json"
        )
        assert code == 0
        documents.append(json.loads(out))
    assert documents[0]["input"] == documents[1]["input"] == "192x128"
    assert documents[0]["miou"] == pytest.approx(documents[1]["miou"], abs=1e-4)
    code, out, _ = fada(
        "eval", trained, "--data", "cityscapes", "--data-root", streets / "cityscapes"
    )
    assert "input 192x128" in out and "mIoU" in out and "road" in out


def test_export_reports_its_verification(fada: Run, trained: Path) -> None:
    code, out, err = fada(
        "export", trained / "source", "--out", "m.onnx", "--head", "labels", "--batch", 2, "--json"
    )
    document = json.loads(out)
    assert code == 0 and document["verification"]["openvino"]["equal_labels"] > 0.999
    assert "onnxruntime:" in err


def test_resumed_run_refuses_other_settings(fada: Run, trained: Path) -> None:
    code, _, err = fada("train", "--resume", trained, "--seed", 3)
    assert code == 2 and "leave out --seed" in error_line(err)
    code, _, err = fada("train", "--resume", trained)
    assert code == 0 and "source: already trained" in err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train", 2, "--src and --tgt missing"),
        ("train PAIR --backbone vgg", 2, "unknown backbone 'vgg'; choose from resnet101"),
        (
            "train --src kitti --tgt cityscapes --recipe small",
            2,
            "no data set 'kitti'; choose one of gta5",
        ),
        (
            "train PAIR --init none",
            1,
            "folder datasets/gta5 does not exist; expected images/00001.png",
        ),
        ("train PAIR --size 100", 2, "size must be WIDTHxHEIGHT, for example 1024x512, got '100'"),
        ("train PAIR --device tpu", 2, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("train PAIR --device cuda:99", 1, "this machine has 0 CUDA devices; use --device cpu"),
        (
            "train PAIR --size 100 --config no.toml",
            2,
            "size must be WIDTHxHEIGHT",
        ),
        # A missing file or folder is 1, an unknown name is 2.
        ("train --resume nowhere", 1, "nowhere: no such folder"),
        ("report nowhere", 1, "nowhere: no such folder"),
        ("import nowhere.pth", 1, "nowhere.pth: no such file"),
        ("train PAIR --config no.toml", 1, "no.toml: cannot be read (No such file"),
        ("train PAIR", 1, "use --init FILE with a copy of the file, or --init none"),
        ("train PAIR --backbone ddrnet23-slim", 2, "or --backbone efficientnet-lite0"),
        ("train PAIR --init no.pth", 1, "no.pth: no such file"),
        ("train PAIR --label-space no.toml", 1, "no.toml: no such file"),
        ("train PAIR --start nowhere --stages adversarial", 1, "nowhere: no such run"),
        ("export", 1, "no run in runs/; train one with `fada train`"),
        ("export nowhere", 1, "nowhere: no such run"),
        ("export --batch many", 2, "--batch must be dynamic or a number, got 'many'"),
        ("eval --data cityscapes", 1, "no run in runs/"),
        ("eval no.onnx --data cityscapes", 1, "no.onnx: no such file"),
        ("infer video.mp4", 1, "video.mp4"),
        ("fly", 2, "no command 'fly'; choose one of demo, data, train"),
        ("exprot", 2, "no command 'exprot'; did you mean 'export'?"),
        ("data chek", 2, "no command 'chek'; did you mean 'check'?"),
        ("help exprot", 2, "no command 'exprot'; did you mean 'export'?"),
        ("help train x", 2, "fada train has no commands, got 'x'"),
        ("train --sed 3", 2, "no option '--sed'; did you mean '--seed'?"),
        ("train --seed x", 2, "invalid value for '--seed'"),
        ("data check", 2, "missing argument 'NAME'; see `fada data check --help`"),
        ("data check gta5 --data-root", 2, "option '--data-root' requires an argument"),
    ],
)
def test_error_is_one_line_with_its_exit_code(
    fada: Run, line: str, code: int, message: str
) -> None:
    exit_code, out, err = fada(*line.replace("PAIR", "--src gta5 --tgt cityscapes").split())
    assert exit_code == code and message in error_line(err) and not out
    assert error_line(err).startswith("error: ")
    assert not list(Path().glob("runs/*"))


def test_unusable_models_are_refused_in_one_line(fada: Run, trained: Path) -> None:
    import onnx

    fada("export", trained, "--out", "good.onnx")
    document = onnx.load("good.onnx")
    del document.metadata_props[:]
    onnx.save(document, "no-metadata.onnx")
    Path("cut.onnx").write_bytes(Path("good.onnx").read_bytes()[:1000])
    Path("text.safetensors").write_text("words")
    assert cv2.imwrite("frame.png", np.zeros((64, 96, 3), np.uint8))
    for name, message in (
        ("no-metadata.onnx", "has no `fada` metadata"),
        ("cut.onnx", "truncated"),
    ):
        code, _, err = fada("infer", "frame.png", "--model", name)
        assert code == 1 and message in error_line(err)
    code, _, err = fada("export", "text.safetensors", "--out", "x.onnx")
    assert code == 1 and "text.safetensors is not a safetensors file" in error_line(err)
    code, _, err = fada("export", trained, "--out", "good.onnx/below.onnx")
    assert code == 1 and "good.onnx" in error_line(err)
    code, _, err = fada("export", trained, "--size", "100x100")
    assert code == 2 and "100x100" in error_line(err) and "nearest size is 96x96" in err


def test_unusable_labels_are_reported_and_the_rest_scored(
    fada: Run, trained: Path, streets: Path
) -> None:
    import shutil

    shutil.copytree(streets / "cityscapes", "set")
    first, second = sorted(Path("set/gtFine/val").glob("*/*_labelIds.png"))[:2]
    assert cv2.imwrite(str(first), np.zeros((10, 10), np.uint8))
    second.write_bytes(b"not an image")
    code, out, err = fada("eval", trained, "--data", "cityscapes", "--data-root", "set", "--json")
    assert code == 1 and json.loads(out)["frames"] == 4
    assert "its labels are 10x10" in err and second.name in err


@pytest.mark.slow
def test_demo_adapts_the_built_in_model(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A short demo writes a contact sheet and two playable videos, and the next commands."""
    excerpt = tmp_path / "excerpt" / "street.mp4"
    with av.open(str(demo.VIDEO)) as video, VideoWriter(excerpt, (270, 480), fps=25) as writer:
        for frame in itertools.islice(video.decode(video=0), 75):
            writer.write(frame.to_ndarray(format="rgb24"))
    monkeypatch.setattr(demo, "VIDEO", excerpt)
    monkeypatch.setattr(demo, "ITERATIONS", 2)
    monkeypatch.setattr(demo, "RENDERED_SCENES", 8)
    code, _, err = fada("demo")
    assert code == 0, err
    for words in ("$ fada infer", "$ fada adapt builtin", "$ fada export", "--tgt drive.mp4"):
        assert words in err
    sheet = cv2.imread("demo-001/contact-sheet.png")
    assert sheet is not None and sheet.shape == (28 + 3 * 270, 3 * 480, 3)
    for name in ("before", "after"):
        with av.open(f"demo-001/{name}/overlay/street.mp4") as video:
            assert len(list(video.decode(video=0))) == 75
    code, _, err = fada("demo", "--out", "demo-001")
    assert code == 2 and "demo-001 is not empty" in error_line(err)


def imported_by(*arguments: object) -> set[str]:
    """Run `fada` in a new process and return the top-level modules that it imported."""
    check = (
        "import sys, json\nfrom fada_deploy.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_demo_checks_for_packages_before_it_starts(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "fada_deploy.common.system.find_spec", lambda name: None if name == "onnxscript" else name
    )
    code, _, err = fada("demo")
    assert code == 2 and "onnxscript is not installed; run: pip install" in error_line(err)
    assert "[demo]" in error_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_package(command: str) -> None:
    words = [w for w in (command, "--help") if w]
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "numpy", "av", "tqdm"}
    assert not heavy & imported_by(*words)


@pytest.mark.slow
def test_running_an_export_imports_no_torch(
    fada: Run, trained: Path, streets: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    assert fada("export", trained, "--out", model)[0] == 0
    assert "torch" in imported_by("train", "--resume", trained), (
        "the check must be able to detect torch"
    )
    unwanted = {"torch", "onnx", "matplotlib"}
    assert not unwanted & imported_by(
        "eval", model, "--data", "cityscapes", "--data-root", streets / "cityscapes"
    )
    clip = streets / "clip/clip.mp4"
    assert not unwanted & imported_by("infer", clip, "--model", model, "--out", tmp_path / "out")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def test_runtime_import_loads_no_backend() -> None:
    unwanted = "{'torch', 'onnx', 'onnxruntime', 'openvino'}"
    code = f"import sys, fada_deploy.runtime\nassert not {unwanted} & set(sys.modules)"
    assert run_python(code).returncode == 0


def test_package_import_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, fada_deploy\nassert not {'torch', 'cv2', 'numpy'} & set(sys.modules)"
    assert run_python(code).returncode == 0


def test_help_command_shows_the_help_of_commands_and_subcommands(fada: Run) -> None:
    _, top, _ = fada("--help")
    assert "Exit codes: 0 done" in top and "_FADA_COMPLETE=bash_source" in top
    assert fada("help") == (0, top, "")
    code, out, _ = fada("help", "data", "check")
    assert code == 0 and out.startswith("Usage: fada data check") and "--data-root" in out


@pytest.mark.parametrize("command", ["export", "verify"])
def test_help_states_the_default_tolerances(fada: Run, command: str) -> None:
    text = " ".join(fada(command, "--help")[1].split())
    labels = [f"{100 * t.equal_labels:g} for {name}" for name, t in TOLERANCES.items()]
    errors = [f"{t.logit_error:g} for {name}" for name, t in TOLERANCES.items()]
    assert f"[default: {', '.join(labels)}]" in text
    assert f"[default: {', '.join(errors)}]" in text


def test_defaults_in_help_texts_are_marked() -> None:
    for command in all_commands(cli):
        texts = [command.help, *(getattr(p, "help", None) for p in command.params)]
        for text in filter(None, texts):
            for bracket in re.findall(r"\[(?![A-Z]+\])([^\]]*)\]", text):
                assert bracket.startswith("default: "), f"fada {command.name}: [{bracket}]"


@pytest.mark.parametrize("arguments", [("--version",), ("version",)])
def test_version_lists_installed_packages(fada: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = fada(*arguments)
    versions = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert code == 0 and not err
    assert versions["fada"] == __version__ and versions["python"] == platform.python_version()
    assert versions["numpy"] == np.__version__ and versions["av"] == av.__version__
    assert {"platform", "opencv", "torch", "onnxruntime", "openvino"} <= set(versions)


def test_version_imports_no_package() -> None:
    assert not {"torch", "numpy", "cv2", "onnxruntime", "openvino"} & imported_by("--version")


def complete(*words: str) -> list[str]:
    """Return what bash completion offers for `fada WORDS`, and check that nothing heavy loads."""
    code = (
        "import sys\nfrom fada_deploy.cli import main\ntry:\n    main([])\nfinally:\n"
        "    loaded = {n for n in sys.modules if n.startswith('fada_deploy.cli.')}\n"
        "    print(' '.join(sorted(loaded)), file=sys.stderr)"
    )
    line = " ".join(("fada", *words))
    done = run_python(
        code, _FADA_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words))
    )
    loaded = done.stderr.split()
    assert "fada_deploy.cli.train" not in loaded or words[0] == "train"
    return [item.split(",")[1] for item in done.stdout.split()]


def test_completion_lists_commands_without_importing_them() -> None:
    assert complete("ex") == ["export"]
    assert complete("i") == ["import", "inspect", "infer"]
    assert complete("data", "c") == ["check"]
    assert "--seed" in complete("train", "--se")


def test_completion_script_is_printed() -> None:
    done = run_python("from fada_deploy.cli import main; main()", _FADA_COMPLETE="bash_source")
    assert done.returncode == 0 and "complete -o nosort" in done.stdout and "fada" in done.stdout


def test_group_without_command_prints_its_help(fada: Run) -> None:
    code, out, err = fada("data")
    assert code == 2 and "Usage: fada data" in out + err and "render" in out + err


def test_system_error_names_the_file(fada: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = fada("data", "render", "--out", "file/below", "--source-scenes", 1)
    assert code == 1 and "file/below" in error_line(err)


def test_report_refuses_a_name_that_does_not_end_in_html(fada: Run, tmp_path: Path) -> None:
    code, _, err = fada("report", "runs/x", "-o", "cmp.pdf")
    assert code == 2 and ".html" in err and "cmp.pdf" in err
    assert not (tmp_path / "cmp.pdf").exists()


def test_interrupted_render_says_how_to_continue(
    fada: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_source(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fada_deploy.synth.dataset.write_source", write_source)
    code, _, err = fada("data", "render", "--out", "d")
    assert code == 130 and "interrupted" in err and "--force" in err


def test_render_suggests_the_stages_of_the_quick_start(fada: Run) -> None:
    arguments = ("--source-scenes", 1, "--target-scenes", 1, "--val-scenes", 0, "--size", "96x64")
    code, _, err = fada("data", "render", "--out", "d", *arguments, "--video-seconds", 0)
    assert code == 0 and "--recipe small --stages source,adversarial" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --seed -1", "--seed must be at least 0, got -1"),
        ("train --batch 0", "--batch must be at least 1, got 0"),
        ("train --src-weight 0", "--src-weight must be greater than 0, got 0"),
        ("infer x.mp4 --alpha 1.5", "--alpha must be at least 0 and at most 1, got 1.5"),
        ("data render --video-seconds -2", "--video-seconds must be at least 0, got -2"),
    ],
)
def test_number_out_of_range_is_explained_in_words(fada: Run, line: str, message: str) -> None:
    code, _, err = fada(*line.split())
    assert code == 2 and message in error_line(err) and "x>=" not in err


@pytest.mark.parametrize("command", ["train", "infer", "eval", "data check", "data render"])
def test_help_names_values_not_types(fada: Run, command: str) -> None:
    text = fada(*command.split(), "--help")[1]
    assert not re.findall(r"\b(RANGE|INTEGER|FLOAT|TEXT)\b", text)


def test_messages_show_paths_as_typed(fada: Run, tmp_path: Path) -> None:
    (tmp_path / "d" / "drives").mkdir(parents=True)
    (tmp_path / "space.toml").write_text("name = 3")
    arguments = ("train", "--src", "rendered", "--recipe", "small", "--device", "cpu", "--tgt")
    rendered = ("--rendered-scenes", 1)
    for target in ("d/drives", "./d/../d/drives/"):
        code, _, err = fada(*arguments, target, *rendered, "--size", "128x64")
        typed = target.rstrip("/")
        assert code == 1 and typed in error_line(err) and str(tmp_path) not in error_line(err)
    code, _, err = fada(*arguments, "d/drives", "--label-space", "space.toml", *rendered)
    assert code == 2 and "error: space.toml: " in err and str(tmp_path) not in error_line(err)
    absolute = tmp_path / "d" / "drives"
    assert str(absolute) in error_line(fada(*arguments, absolute, *rendered, "--size", "128x64")[2])


def test_train_help_says_where_messages_and_results_go(fada: Run) -> None:
    text = " ".join(fada("train", "--help")[1].split())
    assert "Messages go to stderr" in text and "--json prints the result on stdout" in text
