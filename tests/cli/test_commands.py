"""The commands as a user types them: the chain without arguments, exit codes, one line for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from fada_deploy.cli import COMMANDS

Run = Callable[..., tuple[int, str, str]]


def small(*stages: str) -> list[str]:
    settings = [f"--set={s}.{k}" for s in stages for k in ("iterations=3", "batch=2")]
    return [
        *settings,
        "--size",
        "96x64",
        "--backbone",
        "ddrnet23-slim",
        "--stages",
        ",".join(stages),
    ]


def error_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    return lines[-1]


@pytest.mark.slow
def test_the_three_commands_chain_without_arguments(
    fada: Run, blocks: Path, tmp_path: Path
) -> None:
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
    assert (
        code == 0
        and "source-target-ddrnet23-slim-001, the newest" in err
        and "next: fada infer" in err
    )
    assert (tmp_path / "runs/source-target-ddrnet23-slim-001/export/model.onnx").is_file()
    code, _, err = fada("infer", blocks / "target/val/images", "--save", "mask,overlay")
    assert code == 0
    assert len(list((tmp_path / "runs/infer-001/mask").rglob("*.png"))) == 12


@pytest.mark.slow
def test_scores_of_a_run_and_of_its_file_agree(fada: Run, trained: Path, streets: Path) -> None:
    fada("export", trained, "--out", "model.onnx")
    documents = []
    for model in (trained, Path("model.onnx")):
        code, out, _ = fada(
            "eval", model, "--data", "cityscapes", "--root", streets / "cityscapes", "--json"
        )
        assert code == 0
        documents.append(json.loads(out))
    assert documents[0]["input"] == documents[1]["input"] == "192x128"
    assert documents[0]["miou"] == pytest.approx(documents[1]["miou"], abs=1e-4)
    code, out, _ = fada("eval", trained, "--data", "cityscapes", "--root", streets / "cityscapes")
    assert "input 192x128" in out and "mIoU" in out and "road" in out


def test_an_export_says_what_it_proved(fada: Run, trained: Path) -> None:
    code, out, err = fada(
        "export", trained / "source", "--out", "m.onnx", "--head", "labels", "--batch", 2, "--json"
    )
    document = json.loads(out)
    assert code == 0 and document["verification"]["openvino"]["equal_labels"] > 0.999
    assert "onnxruntime:" in err


def test_a_resumed_run_takes_no_other_settings(fada: Run, trained: Path) -> None:
    code, _, err = fada("train", "--resume", trained, "--seed", 3)
    assert code == 2 and "leave out --seed" in error_line(err)
    code, _, err = fada("train", "--resume", trained)
    assert code == 0 and "source: already trained" in err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train", 2, "say what to train on: --src and --tgt"),
        ("train PAIR --backbone vgg", 2, "unknown backbone 'vgg'; choose from resnet101"),
        (
            "train --src kitti --tgt cityscapes --preset small",
            2,
            "no data set 'kitti'; there are gta5",
        ),
        ("train PAIR", 1, "datasets/gta5 does not exist. It must look like this"),
        ("train PAIR --size 100", 2, "'100' is no size; write WIDTHxHEIGHT"),
        ("train PAIR --device tpu", 2, "no device 'tpu'; there are auto, cpu"),
        ("train PAIR --device cuda:99", 1, "shows 0 CUDA devices; try --device cpu"),
        ("train --resume nowhere", 2, "nowhere: is no run (No such file or directory)"),
        ("export", 1, "no run in runs/; train one with `fada train`"),
        ("export nowhere", 1, "nowhere: no such run"),
        ("export --batch many", 2, "--batch is dynamic or a number from 1; found 'many'"),
        ("eval --data cityscapes", 1, "no run in runs/"),
        ("eval no.onnx --data cityscapes", 1, "no.onnx: no such model file"),
        ("infer video.mp4", 1, "video.mp4"),
        ("fly", 2, "No such command 'fly'"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    fada: Run, line: str, code: int, message: str
) -> None:
    got, out, err = fada(*line.replace("PAIR", "--src gta5 --tgt cityscapes").split())
    assert got == code and message in error_line(err) and not out
    assert not list(Path().glob("runs/*"))


def test_bad_models_are_refused_in_one_line(fada: Run, trained: Path) -> None:
    import onnx

    fada("export", trained, "--out", "good.onnx")
    document = onnx.load("good.onnx")
    del document.metadata_props[:]
    onnx.save(document, "bare.onnx")
    Path("cut.onnx").write_bytes(Path("good.onnx").read_bytes()[:1000])
    Path("text.safetensors").write_text("words")
    assert cv2.imwrite("frame.png", np.zeros((64, 96, 3), np.uint8))
    for name, message in (("bare.onnx", "has no `fada` metadata"), ("cut.onnx", "cut short")):
        code, _, err = fada("infer", "frame.png", "--model", name)
        assert code == 1 and message in error_line(err)
    code, _, err = fada("export", "text.safetensors", "--out", "x.onnx")
    assert code == 1 and "not weights written by `fada train`" in error_line(err)
    code, _, err = fada("export", trained, "--out", "good.onnx/below.onnx")
    assert code == 1 and "good.onnx" in error_line(err)
    code, _, err = fada("export", trained, "--size", "100x100")
    assert code == 2 and "100x100" in error_line(err) and "nearest size is 96x96" in err


def test_a_bad_label_among_good_ones_is_named_and_the_rest_scored(
    fada: Run, trained: Path, streets: Path
) -> None:
    import shutil

    shutil.copytree(streets / "cityscapes", "set")
    first, second = sorted(Path("set/gtFine/val").glob("*/*_labelIds.png"))[:2]
    assert cv2.imwrite(str(first), np.zeros((10, 10), np.uint8))
    second.write_bytes(b"no picture")
    code, out, err = fada("eval", trained, "--data", "cityscapes", "--root", "set", "--json")
    assert code == 1 and json.loads(out)["frames"] == 4
    assert "its labels are 10x10" in err and second.name in err


@pytest.mark.slow
def test_the_demo_goes_the_whole_road(fada: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo at a tenth of its length: its products are there, and decode."""
    from fada_deploy.training import config

    short = {f"{s}.{k}": v for s in config.STAGES for k, v in {"iterations": 4, "batch": 2}.items()}
    monkeypatch.setitem(config.PRESETS, "small", config.PRESETS["small"] | short)
    monkeypatch.setattr(
        "fada_deploy.cli.demo.SCENES", {"source": 12, "target": 8, "val": 4, "clip": 0.4}
    )
    code, _, err = fada("demo", "--size", "128x96")
    assert code == 0, err
    for words in (
        "source only (stage 1)",
        "self-distilled",
        "$ fada train",
        "fada export && fada infer",
    ):
        assert words in err
    sheet = cv2.imread("demo-001/contact-sheet.png")
    assert sheet is not None and sheet.shape == (28 + 4 * 96, 4 * 128, 3)
    with av.open("demo-001/overlay/clip.mp4") as video:
        assert len(list(video.decode(video=0))) == 10
    code, _, err = fada("demo", "--out", "demo-001")
    assert code == 2 and "demo-001 exists and is not empty" in error_line(err)


def imported_by(*arguments: object) -> set[str]:
    """Run `fada …` in a process of its own and return the top-level modules that it imported."""
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


def test_a_demo_that_cannot_end_does_not_begin(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxscript" else name
    )
    code, _, err = fada("demo")
    assert (
        code == 2
        and "onnxscript is not installed; type: pip install 'fada_deploy[demo]'" in error_line(err)
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_package(command: str) -> None:
    words = [w for w in (command, "--help") if w]
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "numpy", "av"}
    assert not heavy & imported_by(*words)


@pytest.mark.slow
def test_running_an_export_never_imports_torch(
    trained: Path, streets: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    assert "torch" in imported_by("export", trained, "--out", model), (
        "the check must be able to see torch"
    )
    unwanted = {"torch", "onnx", "matplotlib"}
    assert not unwanted & imported_by(
        "eval", model, "--data", "cityscapes", "--root", streets / "cityscapes"
    )
    clip = streets / "clip/clip.mp4"
    assert not unwanted & imported_by("infer", clip, "--model", model, "--out", tmp_path / "out")


def test_the_runtime_alone_imports_no_engine() -> None:
    engines = "{'torch', 'onnx', 'onnxruntime', 'openvino'}"
    check = f"import sys, fada_deploy.runtime\nassert not {engines} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
