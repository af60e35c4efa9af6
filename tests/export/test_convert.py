"""Converted files are verified and bad ones refused: `fada export --precision`, `fada verify`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.export.onnx_metadata import replace_metadata
from fada_deploy.export.plan import ExportOptions, RefusedFilesError, run_export
from fada_deploy.export.stale import stale_exports
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path
from fada_deploy.runtime.segmenter import Segmenter

Fada = Callable[..., int]
pytestmark = pytest.mark.slow


@pytest.fixture
def model(exported: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the fp32 file with its reference outputs."""
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def converted(
    exported: dict[str, Path], streets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with fp16 and both int8 files, converted by a process without torch.

    To measure which layers have to stay in float32 takes long; `test_quantize` does it.
    """
    folder = tmp_path_factory.mktemp("converted")
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, folder)
    arguments = [
        "export", folder / "model.onnx", "--precision", "int8,fp16", "--calibration-frames", 8,
        "--float-layers", 6,
        "--data", "cityscapes", "--data-root", streets / "cityscapes", "--json",
        "--calibration", streets / "cityscapes/leftImg8bit/train",
    ]  # fmt: skip
    done = run_without(["torch"], *arguments)
    assert done.returncode == 0, done.stderr
    (folder / "result.json").write_text(done.stdout)
    return folder


def run_without(modules: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process that cannot import these modules."""
    code = (
        f"import sys; sys.modules |= dict.fromkeys({modules})\n"
        "from fada_deploy.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def truncate_reference(folder: Path, source: Path) -> None:
    """Write reference outputs with fewer frames, and so another hash."""
    reference = ReferenceOutputs.load(source / "model.reference.npz")
    ReferenceOutputs(reference.frames[:2], reference.logits[:2], reference.labels[:2]).save(
        folder / "model.reference.npz"
    )


def test_metadata_of_converted_files(converted: Path) -> None:
    result = json.loads((converted / "result.json").read_text())
    assert result["refused"] == [] and result["engines"] == [] and result["triton"] is None
    entries = result["converted"]
    names = ["model.fp16.onnx", "model.int8-tensorrt.onnx", "model.int8-cpu.onnx"]
    assert [Path(entry["model"]).name for entry in entries] == names
    baseline = read_metadata(converted / "model.onnx")
    assert baseline.target_statistics is not None
    for entry in entries:
        metadata = read_metadata(Path(entry["model"]))
        assert metadata.precision == entry["precision"]
        assert metadata.hardware_target == entry["hardware_target"]
        assert metadata.verification is not None
        assert set(metadata.verification) == {"onnxruntime", "openvino", "labeled"}
        assert entry["labeled"]["frames"] == 6 and abs(entry["labeled"]["change"]) <= 0.02
        assert metadata.provenance["stage"] == "source"
        # Weights, reference outputs and target statistics are those of the fp32 file.
        assert metadata.target_statistics == baseline.target_statistics
        assert metadata.hashes["weights"] == baseline.hashes["weights"]
        assert reference_path(Path(entry["model"])) == converted / "model.reference.npz"
    assert entries[1]["layers"].keys() >= {"int8"} and not list(converted.glob(".*"))
    quantization = read_metadata(converted / "model.int8-cpu.onnx").quantization
    assert quantization is not None
    assert quantization["calibration_method"] == "percentile" and quantization["frames"] == 4


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8-cpu.onnx"])
def test_verify_passes_and_plots_the_worst_frame(
    converted: Path, fada: Fada, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "worst.png"
    assert fada("verify", "--model", converted / name, "--plot", plot, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verification"].keys() == {"onnxruntime", "openvino"}
    image = cv2.imread(str(plot))[..., ::-1].astype(int)
    reference = ReferenceOutputs.load(converted / "model.reference.npz")
    worst = min(document["verification"].values(), key=lambda v: v["equal_labels"])
    assert image.shape[1] == 3 * (480 + 4)
    # The last panel is red where labels differ.
    panel = image[28:, -482:-2]
    red = (panel[..., 0] > 240) & (panel[..., 1] < 60)
    with Segmenter(converted / name, backend=worst["backend"]) as segmenter:
        labels = np.stack(segmenter.labels(list(reference.frames), color="rgb"))
    differing = [(a != b).mean() for a, b in zip(labels, reference.labels, strict=True)]
    assert red.mean() == pytest.approx(differing[worst["worst_frame"]], abs=0.005)


def negate_largest_kernel(model: Path) -> None:
    document = onnx.load(str(model))
    weights = [t for t in document.graph.initializer if len(t.dims) == 4]
    tensor = max(weights, key=lambda t: int(np.prod(t.dims)))
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-1), tensor.name)
    )
    onnx.save(document, str(model))


def test_verify_refuses_damaged_weights_with_exit_code_3(
    converted: Path, fada: Fada, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.onnx", "model.reference.npz"):
        shutil.copy(converted / name, tmp_path)
    negate_largest_kernel(tmp_path / "model.onnx")
    assert fada("verify", tmp_path / "model.onnx") == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "99.99" in message and str(tmp_path / "model.onnx") in message


def test_reference_outputs_of_another_export_are_refused(
    converted: Path, fada: Fada, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(converted / "model.onnx", tmp_path)
    assert fada("verify", tmp_path / "model.onnx") == 1
    missing = capsys.readouterr().err
    assert f"{tmp_path / 'model.onnx'} has no reference outputs" in missing
    assert "model.reference.npz" in missing
    truncate_reference(tmp_path, converted)
    assert fada("verify", tmp_path / "model.onnx") == 1
    different = capsys.readouterr().err
    assert "model.reference.npz" in different and "model.onnx" in different
    assert different != missing


def test_one_refused_precision_does_not_stop_the_others(
    model: Path, streets: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    code = fada(
        "export", model, "--precision", "fp16,int8", "--hardware-target", "cpu",
        "--min-equal-labels", 99.8, "--float-layers", 0, "--calibration-frames", 6, "--json",
        "--calibration", streets / "cityscapes/leftImg8bit/train",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 3
    # One error, the last line, and no next command after it.
    (reason,) = (line for line in err.splitlines() if "error: " in line)
    assert reason == err.splitlines()[-1] and "next: " not in err
    assert "99.80%" in reason and "model.int8-cpu.worst.png" in reason
    assert "model.int8-cpu.onnx" in reason
    document = json.loads(out)
    assert [Path(c["model"]).name for c in document["converted"]] == ["model.fp16.onnx"]
    assert len(document["refused"]) == 1
    names = {p.name for p in model.parent.iterdir()}
    assert "model.fp16.onnx" in names and "model.int8-cpu.onnx" not in names
    assert "model.int8-cpu.worst.png" in names and not [n for n in names if n.startswith(".")]


def test_python_error_has_the_result_of_the_files_that_passed(model: Path) -> None:
    options = ExportOptions(precisions=("bf16", "fp16"), max_logit_error=1.5e-3)
    with pytest.raises(RefusedFilesError) as caught:
        run_export(model, options)
    assert caught.value.exit_code == 3 and "model.bf16.onnx" in str(caught.value)
    result = caught.value.result
    assert [c.model.name for c in result.converted] == ["model.fp16.onnx"]
    assert result.files == [model, model.with_name("model.fp16.onnx")]
    assert len(result.refused) == 1 and result.refused[0].startswith("model.bf16.onnx: ")


def test_accuracy_check_refuses_what_parity_accepts(
    model: Path, streets: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", "cityscapes", "--data-root", streets / "cityscapes", "--max-miou-drop", -50)
    assert fada("export", model, "--precision", "fp16", *data) == 3
    error = capsys.readouterr().err
    assert "-50.00 points" in error and error.count("compared with fp32") == 1
    assert not (model.parent / "model.fp16.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--precision", "--trt", "--triton")),
        (("--precision", "fp8"), ("'fp8'", "fp32, fp16, bf16, int8")),
        (("--precision", "int8", "--trt", "--hardware-target", "cpu"), ("--hardware-target cpu",)),
        (("--precision", "int8", "--float-layers", "some"), ("--float-layers", "'some'")),
        (("--batch", "many"), ("--batch", "'many'")),
        (("--precision", "fp16", "--trt", "--trt-batch", "8,1"), ("--trt-batch", "'8,1'")),
        (("--precision", "fp16", "--trt", "--trt-batch", "8,1,9"), ("MIN,OPT,MAX", "8,1,9")),
        (("--precision", "fp16", "--head", "labels"), ("--head",)),
        (("--precision", "fp16", "--size", "96x64"), ("--size",)),
        (("--precision", "fp16", "--out", "model.trt"), (".onnx", "model.trt")),
    ],
)
def test_export_options_that_do_not_fit_exit_with_2(
    model: Path,
    fada: Fada,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert fada("export", model, *arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in message


def test_export_of_a_checkpoint_names_fada_import(
    model: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = model.with_name("best.pth")
    assert fada("export", checkpoint) == 2
    assert f"fada import {checkpoint}" in capsys.readouterr().err.splitlines()[-1]


def test_verify_needs_no_onnx_package_but_conversion_does(converted: Path) -> None:
    done = run_without(["onnx", "torch"], "verify", converted / "model.int8-cpu.onnx")
    assert done.returncode == 0 and "equal labels" in done.stderr
    arguments = ("export", converted / "model.onnx", "--precision", "fp16")
    done = run_without(["onnx", "torch"], *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: onnx is not installed") and "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_stale_exports_are_those_with_replaced_reference_outputs(
    converted: Path, tmp_path: Path
) -> None:
    for path in (*converted.glob("*.onnx"), converted / "model.reference.npz"):
        shutil.copy(path, tmp_path)
    model = tmp_path / "model.onnx"
    assert stale_exports(model, {model}) == []
    truncate_reference(tmp_path, converted)
    rewritten = {model, tmp_path / "model.fp16.onnx"}
    expected = ["model.int8-cpu.onnx", "model.int8-tensorrt.onnx"]
    assert stale_exports(model, rewritten) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("runs/a", "--data", "mine.toml"), 2, "--data"),
        (("runs/a", "--min-equal-labels", 101), 2, "at most 100, got 101.0"),
        (("runs/a", "--max-logit-error", -1), 2, "at least 0, got -1.0"),
        (("runs/a", "--calibration-method", "mean"), 2, "'mean' is not one of"),
        (("nosuch.onnx", "--precision", "fp16"), 1, "nosuch.onnx: no such file"),
    ],
)
def test_limits_without_effect_or_out_of_range_are_refused(
    fada: Fada,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    assert fada("export", *arguments) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "values",
    [
        {"head": "colors"},
        {"precisions": ()},
        {"precisions": ("fp8",)},
        {"hardware_target": "gpu"},
        {"batch": 0},
        {"calibration_frames": 1},
        {"calibration_method": "mean"},
        {"float_layers": -1},
        {"min_equal_labels": 99.0},
        {"max_logit_error": -0.1},
        {"out": Path("model.trt")},
        {"data": "cityscapes"},
    ],
)
def test_export_options_are_validated(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ExportOptions(**values)  # type: ignore[arg-type]


def test_only_fp32_files_are_converted(
    converted: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    model = converted / "model.fp16.onnx"
    assert fada("export", model, "--precision", "int8", "--calibration-frames", 4) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert str(model) in message and "fp16" in message and "fp32" in message


def test_replacing_metadata_keeps_the_graph(model: Path) -> None:
    before = onnx.load(str(model)).graph
    metadata = read_metadata(model)
    replace_metadata(model, metadata)
    assert read_metadata(model) == metadata and onnx.load(str(model)).graph == before


def test_metadata_without_hardware_target_reads_as_any(model: Path) -> None:
    document = onnx.load(str(model))
    (entry,) = [p for p in document.metadata_props if p.key == "fada"]
    metadata = json.loads(entry.value)
    del metadata["hardware_target"], metadata["quantization"]
    entry.value = json.dumps(metadata)
    onnx.save(document, str(model))
    assert read_metadata(model).hardware_target == "any"


def test_openvino_refuses_int8_with_a_fixed_batch(converted: Path, tmp_path: Path) -> None:
    """It crashes when it compiles some networks for a fixed batch."""
    model = tmp_path / "model.int8-cpu.onnx"
    shutil.copy(converted / model.name, model)
    assert runnable_backends(model) == ["onnxruntime", "openvino"]
    replace_metadata(model, replace(read_metadata(model), batch=2))
    assert runnable_backends(model) == ["onnxruntime"]
    with pytest.raises(ModelError, match=r"fixed batch.*onnxruntime"):
        Segmenter(model, backend="openvino")
