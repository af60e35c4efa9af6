"""`fada export --precision` and `fada verify`: what is written is proven, and the gate sees what goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fada_deploy.export.onnx_metadata import stamp
from fada_deploy.export.plan import Plan
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path
from fada_deploy.runtime.segmenter import Segmenter

Fada = Callable[..., int]
pytestmark = pytest.mark.slow


@pytest.fixture
def model(exported: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the fp32 file, its pack beside it."""
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def derived(
    exported: dict[str, Path], streets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder in which a process without torch has made fp16 and both int8 of the fp32 file."""
    folder = tmp_path_factory.mktemp("derived")
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, folder)
    arguments = [
        "export", folder / "model.onnx", "--precision", "int8,fp16", "--calibration-frames", 8, "--json",
        "--data", "cityscapes", "--data-root", streets / "cityscapes",
    ]  # fmt: skip
    code = "import sys; sys.modules['torch'] = None; from fada_deploy.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(done.stdout)
    return folder


def test_the_files_say_what_they_are(derived: Path) -> None:
    made = json.loads((derived / "said.json").read_text())["derived"]
    names = ["model.fp16.onnx", "model.int8-tensorrt.onnx", "model.int8-cpu.onnx"]
    assert [Path(m["model"]).name for m in made] == names
    for entry in made:
        metadata = read_metadata(Path(entry["model"]))
        assert (
            metadata.precision == entry["precision"]
            and metadata.hardware_target == entry["hardware_target"]
        )
        assert metadata.verification is not None
        assert set(metadata.verification) == {"onnxruntime", "openvino", "labeled"}
        assert entry["labeled"]["frames"] == 6 and abs(entry["labeled"]["change"]) <= 0.02
        assert metadata.provenance["stage"] == "source"
        # Drift is measured from what the fp32 file said.
        assert metadata.target_statistics is not None
        assert metadata.target_statistics == read_metadata(derived / "model.onnx").target_statistics
        # The network is the fp32 one's, and so is the pack.
        assert metadata.hashes["weights"] == read_metadata(derived / "model.onnx").hashes["weights"]
        assert reference_path(Path(entry["model"])) == derived / "model.reference.npz"
    assert made[1]["layers"].keys() >= {"int8"} and not list(derived.glob(".*"))
    int8 = read_metadata(derived / "model.int8-cpu.onnx").quantization
    assert int8 is not None and int8["calibration"] == "percentile" and int8["frames"] == 4


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8-cpu.onnx"])
def test_a_good_file_verifies_and_its_worst_frame_is_drawn(
    derived: Path, fada: Fada, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "worst.png"
    assert fada("verify", derived / name, "--picture", picture, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verification"].keys() == {"onnxruntime", "openvino"}
    drawn = cv2.imread(str(picture))[..., ::-1].astype(int)
    answers = ReferenceOutputs.load(derived / "model.reference.npz")
    worst = min(document["verification"].values(), key=lambda v: v["equal_labels"])
    assert drawn.shape[1] == 3 * (480 + 4)
    # Where labels differ the last panel is red, and the share in the title is the share that is red.
    panel = drawn[28:, -482:-2]
    red = (panel[..., 0] > 240) & (panel[..., 1] < 60)
    with Segmenter(derived / name, backend=worst["backend"]) as segmenter:
        said = np.stack(segmenter.labels(list(answers.frames), color="rgb"))
    shares = [(a != b).mean() for a, b in zip(said, answers.labels, strict=True)]
    assert red.mean() == pytest.approx(shares[worst["worst_frame"]], abs=0.005)


def break_weight(model: Path) -> None:
    document = onnx.load(str(model))
    weights = [t for t in document.graph.initializer if len(t.dims) == 4]
    tensor = max(weights, key=lambda t: int(np.prod(t.dims)))
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-1), tensor.name)
    )
    onnx.save(document, str(model))


def test_a_damaged_file_is_refused_with_3(
    derived: Path, fada: Fada, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.onnx", "model.reference.npz"):
        shutil.copy(derived / name, tmp_path)
    break_weight(tmp_path / "model.onnx")
    assert fada("verify", tmp_path / "model.onnx") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        "the file is not the network" in said
        and "of labels equal the network's, 99.99% are needed" in said
    )


def test_another_exports_pack_is_no_reference(
    derived: Path, fada: Fada, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(derived / "model.onnx", tmp_path)
    assert fada("verify", tmp_path / "model.onnx") == 1
    assert "no such reference outputs" in capsys.readouterr().err
    reference = ReferenceOutputs.load(derived / "model.reference.npz")
    ReferenceOutputs(reference.frames[:2], reference.logits[:2], reference.labels[:2]).save(
        tmp_path / "model.reference.npz"
    )
    assert fada("verify", tmp_path / "model.onnx") == 1
    assert (
        "is not the reference outputs that model.onnx was exported with" in capsys.readouterr().err
    )


def test_a_refused_precision_leaves_a_picture_and_no_file_and_the_others_are_made(
    model: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    code = fada(
        "export", model, "--precision", "fp16,int8", "--for", "cpu", "--min-equal", 99.8, "--leave-out", 0,
        "--calibration-frames", 6,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert code == 3 and "refused: model.int8-cpu.onnx: the file is not the network" in said
    names = {p.name for p in model.parent.iterdir()}
    assert "model.fp16.onnx" in names and "model.int8-cpu.onnx" not in names
    assert "model.int8-cpu.worst.png" in names and not [n for n in names if n.startswith(".")]


def test_labeled_frames_can_refuse_what_the_pack_lets_pass(
    model: Path, streets: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", "cityscapes", "--data-root", streets / "cityscapes", "--max-miou-drop", -50)
    assert fada("export", model, "--precision", "fp16", *data) == 3
    said = capsys.readouterr().err
    assert "a drop of -50.00 points is allowed" in said and "worst class" in said
    assert not (model.parent / "model.fp16.onnx").exists()


def test_what_cannot_be_asked_is_one_line(
    model: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((model,), "is exported already; say --precision, --trt or --triton"),
        ((model, "--precision", "fp8"), "no precision 'fp8'; there are fp32, fp16, bf16, int8"),
        ((model, "--precision", "int8", "--trt", "--for", "cpu"), "leave out --for cpu"),
        ((model, "--precision", "int8", "--leave-out", "some"), "--leave-out is auto or a number"),
        ((model, "--precision", "fp16", "--trt", "--trt-batch", "8,1"), "three rising numbers"),
        ((model.with_name("best.pth"),), "fada import"),
        (
            (model, "--precision", "fp16", "--head", "labels"),
            "--head belongs to the export of a run",
        ),
    ):
        assert fada("export", *arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_onnx_files_are_verified_and_what_it_is_for_is_said(derived: Path) -> None:
    code = "import sys; sys.modules['onnx'] = sys.modules['torch'] = None; from fada_deploy.cli import main; main()"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run("verify", derived / "model.int8-cpu.onnx")
    assert done.returncode == 0 and "of labels equal the network's" in done.stderr
    done = run("export", derived / "model.onnx", "--precision", "fp16")
    assert done.returncode == 2
    assert done.stderr.startswith("error: onnx is not installed; run: pip install ")
    assert "[onnx]" in done.stderr and done.stderr.count("\n") == 1


def test_what_loses_its_reference_is_named(
    derived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*derived.glob("*.onnx"), derived / "model.reference.npz"):
        shutil.copy(path, tmp_path)
    plan, base = Plan(None, {"trt": False}), tmp_path / "model.onnx"
    plan._tell_stale(base, [("fp32", "any")])
    assert capsys.readouterr().err == ""
    reference = ReferenceOutputs.load(tmp_path / "model.reference.npz")
    ReferenceOutputs(reference.frames[:2], reference.logits[:2], reference.labels[:2]).save(
        tmp_path / "model.reference.npz"
    )
    plan._tell_stale(base, [("fp32", "any"), ("fp16", "any")])
    said = capsys.readouterr().err
    assert "the pack that proved model.int8-cpu.onnx, model.int8-tensorrt.onnx is replaced" in said
    assert "fp16" not in said


def test_options_that_would_judge_nothing_are_refused(
    fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, message in (
        (("runs/a", "--data", "mine.toml"), 2, "--data judges other precisions than fp32"),
        (("runs/a", "--min-equal", 101), 2, "101.0 is not in the range 0<=x<=100"),
        (("runs/a", "--max-logit-error", -1), 2, "not in the range x>=0"),
        (("runs/a", "--calibration", "mean"), 2, "'mean' is not one of"),
        (("nosuch.onnx", "--precision", "fp16"), 1, "nosuch.onnx: no such file"),
    ):
        assert fada("export", *arguments) == code
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_only_the_fp32_file_is_derived_from(
    derived: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        fada(
            "export", derived / "model.fp16.onnx", "--precision", "int8", "--calibration-frames", 4
        )
        == 1
    )
    assert "is fp16 already; give the fp32 file it was made of" in capsys.readouterr().err


def test_files_of_before_say_fp32_for_any_engine(model: Path) -> None:
    document = onnx.load(str(model))
    (entry,) = [p for p in document.metadata_props if p.key == "fada"]
    old = json.loads(entry.value)
    del old["hardware_target"], old["quantization"]
    entry.value = json.dumps(old)
    onnx.save(document, str(model))
    assert read_metadata(model).hardware_target == "any"
    stamp(model, read_metadata(model))
    assert read_metadata(model).precision == "fp32"
