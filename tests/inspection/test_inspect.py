"""`fada inspect`: descriptions of files, compared with what other readers find in them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
import toy
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from fada_deploy.cli.inspect import command
from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics
from fada_deploy.inspection.describe import describe
from fada_deploy.inspection.onnx_graph import read_graph
from fada_deploy.runtime.backends.engine_file import EngineSidecar, EngineTensor, write_sidecar
from fada_deploy.runtime.parity import ReferenceOutputs

Fada = Callable[..., tuple[int, str, str]]


def metadata(**changes: Any) -> ModelMetadata:
    fixed: dict[str, Any] = {
        "label_space": toy.SPACE,
        "input_size_hw": (64, 128),
        "head": "logits",
        "align_corners": False,
        "provenance": {"config": {"src": "gta5", "tgt": "drives", "seed": 3}, "stage": "distill"},
        "versions": {"fada_deploy": "0.1.0"},
    }
    return ModelMetadata(**{**fixed, **changes})


def write_reference(path: Path) -> ReferenceOutputs:
    frames, labels = zip(*(toy.scene(i) for i in range(3)), strict=True)
    logits = np.zeros((3, toy.SPACE.num_classes, 8, 16), np.float32)
    reference = ReferenceOutputs(np.stack(frames), logits, np.stack(labels))
    reference.save(path)
    return reference


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Return a model with its reference outputs."""
    write_reference(tmp_path / "model.reference.npz")
    result = {
        "backend": "onnxruntime",
        "frames": 3,
        "classes": 4,
        "equal_labels": 0.99995,
        "logit_error": 2e-6,
    }
    document = metadata(
        hashes={"reference": sha256(tmp_path / "model.reference.npz"), "weights": "0" * 64},
        verification={"onnxruntime": result},
    )
    return toy.color_model(tmp_path / "model.onnx", metadata=document.to_json())


def edited(source: Path, path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    document = onnx.load(str(source))
    change(document)
    onnx.save(document, str(path))
    return path


def test_table_of_a_model(export: Path, fada: Fada) -> None:
    code, out, _ = fada("inspect", export)
    assert code == 0
    rows = [line.split("  ", 1)[0] for line in out.splitlines()]
    assert rows[:3] == ["file", "sha256", "opset"]
    for part in (
        sha256(export),
        "frames uint8 (batch, 64, 128, 3)",
        "1 Conv in float32",
        "128x64 RGB uint8 NHWC, stretch, batch dynamic",
        "logits, align_corners false",
        "onnxruntime: 99.9950% equal labels on 3 frames, largest logit error 2.0e-06",
        "model.reference.npz: unchanged since the export",
        "gta5 → drives, seed 3, stage distill",
        "13, cityscapes-13",
        "#00008e  car",
    ):
        assert part in out, part
    assert "\x1b" not in out, "there must be no color when the output is not a terminal"


def test_target_statistics_are_one_row(tmp_path: Path, fada: Fada) -> None:
    fractions = (0.05, 0.0, 0.25, *(0.0,) * 9, 0.7)
    three = "bicycle 70.0 ± 12.5 %, building 25.0 ± 12.5 %, road 5.0 ± 12.5 %, … on"
    for statistics, line in (
        (
            TargetStatistics(32, fractions, (0.125,) * 13, 0.9123, 0.0234),
            f"confidence 0.912 ± 0.023, {three} 32 frames",
        ),
        (TargetStatistics(7, fractions, (0.125,) * 13), f"{three} 7 frames"),
        (None, ""),
    ):
        model = toy.color_model(
            tmp_path / "model.onnx", metadata=metadata(target_statistics=statistics).to_json()
        )
        code, out, _ = fada("inspect", model)
        assert code == 0 and ("target data" in out) == (statistics is not None)
        assert line in out


def test_classes_are_shown_with_their_colors(export: Path) -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(command, [str(export)], color=True)
    assert click.style("  ", bg=(0, 0, 142)) in done.output


def test_document_contains_the_metadata_as_stored(export: Path, fada: Fada) -> None:
    code, out, err = fada("inspect", export, "--json")
    document = json.loads(out)
    assert code == 0 and err == ""
    (entry,) = [p for p in onnx.load(str(export)).metadata_props if p.key == "fada"]
    assert document["metadata"] == json.loads(entry.value)
    assert document["kind"] == "onnx" and document["bytes"] == export.stat().st_size
    assert document["reference"] == {
        "path": str(export.with_name("model.reference.npz")),
        "state": "equal",
    }
    assert document["problems"] == []


def test_graph_reader_agrees_with_the_onnx_package(tmp_path: Path) -> None:
    for name, options in (
        ("a", {}),
        ("b", {"head": "labels", "batch": 2}),
        ("c", {"metadata": None}),
    ):
        model = toy.color_model(tmp_path / f"{name}.onnx", **options)  # type: ignore[arg-type]
        graph, expected = read_graph(model), onnx.load(str(model))
        assert (
            graph.opset == expected.opset_import[0].version
            and graph.ir_version == expected.ir_version
        )
        assert graph.operators == Counter(n.op_type for n in expected.graph.node)
        assert graph.parameters == sum(int(np.prod(t.dims)) for t in expected.graph.initializer)
        for ports, values in (
            (graph.inputs, expected.graph.input),
            (graph.outputs, expected.graph.output),
        ):
            assert [p.name for p in ports] == [v.name for v in values]
            kinds = [np.dtype(p.dtype) for p in ports]
            assert kinds == [
                helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in values
            ]
            shapes = [
                [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim]
                for v in values
            ]
            assert [list(p.shape) for p in ports] == shapes


def test_layers_are_counted_by_the_type_of_their_weights(tmp_path: Path) -> None:
    from fada_deploy.export.precision import to_half

    model = toy.color_model(tmp_path / "model.onnx")

    def quantize_weights(document: onnx.ModelProto) -> None:
        graph = document.graph
        weight = next(t for t in graph.initializer if t.name == "weight")
        values = (numpy_helper.to_array(weight) / 4).astype(np.int8)
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(values, "stored"))
        graph.initializer.append(numpy_helper.from_array(np.float32(4), "scale"))
        graph.node.insert(0, helper.make_node("DequantizeLinear", ["stored", "scale"], ["weight"]))

    int8 = edited(model, tmp_path / "int8.onnx", quantize_weights)
    assert read_graph(int8).layers == {"Conv": Counter({"int8": 1})}
    assert read_graph(int8).to_dict()["quantize_nodes"] == {
        "QuantizeLinear": 0,
        "DequantizeLinear": 1,
    }
    for kind, stored in (("fp16", "float16"), ("bf16", "bfloat16")):
        with np.errstate(over="ignore"):  # the biases overflow in fp16, which does not matter here
            onnx.save(to_half(onnx.load(str(model)), kind), str(tmp_path / f"{kind}.onnx"))
        assert read_graph(tmp_path / f"{kind}.onnx").layers == {"Conv": Counter({stored: 1})}
    # The metadata was not changed.
    (problem,) = describe(tmp_path / "fp16.onnx")["problems"]
    assert "fp32" in problem and "float16" in problem


def test_matmul_of_activations_and_of_constants(tmp_path: Path) -> None:
    value = helper.make_tensor("value", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])
    nodes = [
        helper.make_node("Constant", [], ["stored"], value=value),
        helper.make_node("Transpose", ["stored"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
        helper.make_node("MatMul", ["turned", "y"], ["left"]),
        helper.make_node("MatMul", ["y", "left"], ["z"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xz"]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:])),
        str(tmp_path / "m.onnx"),
    )
    assert read_graph(tmp_path / "m.onnx").layers == {
        "MatMul": Counter({"float32": 2, "activations": 1})
    }


def test_replaced_reference_outputs_are_a_problem(export: Path, tmp_path: Path, fada: Fada) -> None:
    write_reference(tmp_path / "other.reference.npz")
    reference = ReferenceOutputs.load(tmp_path / "other.reference.npz")
    ReferenceOutputs(reference.frames, reference.logits, reference.labels[::-1]).save(
        tmp_path / "model.reference.npz"
    )
    code, out, _ = fada("inspect", export)
    assert code == 1
    assert "problem: model.reference.npz does not belong to model.onnx" in out
    code, out, _ = fada("inspect", tmp_path / "model.reference.npz", "--json")
    assert code == 1 and json.loads(out)["problems"] == [
        "model.reference.npz does not belong to model.onnx"
    ]
    (tmp_path / "model.reference.npz").unlink()
    code, out, _ = fada("inspect", export)
    assert code == 0 and "model.reference.npz: missing" in out


def test_metadata_that_differs_from_the_graph_is_a_problem(tmp_path: Path) -> None:
    wrong = toy.color_model(
        tmp_path / "a.onnx", metadata=metadata(input_size_hw=(32, 64)).to_json()
    )
    assert describe(wrong)["problems"] == ["the input of the graph differs from the metadata"]
    wrong = toy.color_model(tmp_path / "b.onnx", metadata=metadata(head="labels").to_json())
    assert describe(wrong)["problems"] == ["the graph has no output `labels`"]
    foreign = describe(toy.color_model(tmp_path / "c.onnx", metadata=None))
    assert foreign["metadata"] is None and "`fada` metadata" in foreign["problems"][0]


def test_external_weights_outside_the_folder_are_a_problem(tmp_path: Path, fada: Fada) -> None:
    model = toy.color_model(tmp_path / "model.onnx")

    def move_weights(document: onnx.ModelProto) -> None:
        tensor = document.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")

    (tmp_path / "in").mkdir()
    document = onnx.load(str(model))
    move_weights(document)
    (tmp_path / "in" / "model.onnx").write_bytes(document.SerializeToString())
    code, out, _ = fada("inspect", tmp_path / "in" / "model.onnx")
    assert code == 1 and "external data" in out and "outside its own folder" in out


def test_reference_outputs_list_their_models(export: Path, tmp_path: Path, fada: Fada) -> None:
    code, out, _ = fada("inspect", tmp_path / "model.reference.npz")
    assert code == 0
    assert "3 at 128x64" in out and "13 classes at 16x8" in out
    assert f"{export}: belongs to these reference outputs" in out


def test_table_of_an_engine(export: Path, tmp_path: Path, fada: Fada) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"a plan")
    sidecar = EngineSidecar(
        flavor="tensorrt",
        flavor_version="11.4.0",
        engine_sha256=sha256(engine),
        engine_bytes=6,
        onnx_name="model.onnx",
        onnx_sha256=sha256(export),
        metadata=metadata(hashes={"reference": sha256(tmp_path / "model.reference.npz")}),
        io=(EngineTensor("frames", "in", "uint8", (-1, 64, 128, 3)),),
        precision="fp32",
        layers={"fp32": 1},
        compute_capabilities=("SM86",),
        gpu="Test GPU",
        profile=(1, 1, 8),
    )
    write_sidecar(engine, sidecar)
    code, out, _ = fada("inspect", engine)
    assert code == 0
    for part in (
        "tensorrt 11.4.0",
        "SM86, built on Test GPU",
        "1 to 8, optimized for 1",
        "frames uint8 (-1, 64, 128, 3)",
        "model.onnx: unchanged since the export",
        "not yet; run `fada verify`",
        "#00008e  car",
    ):
        assert part in out, part
    document = json.loads(fada("inspect", engine, "--json")[1])
    assert (
        document["engine"]["onnx"]["state"] == "equal" and document["metadata"]["head"] == "logits"
    )
    engine.write_bytes(b"a fake")
    code, _, err = fada("inspect", engine)
    assert code == 1 and "model.engine" in err and "sha256" in err
    engine.with_name("model.engine.json").unlink()
    assert fada("inspect", engine)[2].count("\n") == 1


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    model = {
        "backbone": "ddrnet23-slim",
        "norm": "batch",
        "size_hw": [64, 128],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    document = {
        "model": {**model, "label_space": toy.SPACE.to_dict()},
        "provenance": {"stage": path.parent.name, "config": {"src": "gta5", "tgt": "drives"}},
    }
    tensors = {"a": np.zeros((4, 5), np.float32), "b": np.zeros(3, np.int64)}
    save_file(tensors, path, {"fada": json.dumps(document)})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "gta5-drives-ddrnet23-slim-001"
    weights(folder / "source" / "weights.safetensors")
    scores = {"miou": 0.4321, "frames": 12, "input": "128x64", "iou": {}, "failed": []}
    (folder / "source" / "scores.json").write_text(json.dumps(scores))
    config = {"src": "gta5", "tgt": "drives", "seed": 1, "stages": ["source", "distill"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_table_of_weights_and_of_a_stage(run: Path, fada: Fada) -> None:
    code, out, _ = fada("inspect", run / "source" / "weights.safetensors")
    assert code == 0 and "ddrnet23-slim, normalization batch, input 128x64" in out
    assert "20 in F32, 3 in I64, 2 tensors" in out and "stage source" in out
    code, out, _ = fada("inspect", run / "source")
    assert code == 0 and "mIoU 43.2 on 12 frames at 128x64" in out


def test_table_of_a_run(run: Path, fada: Fada) -> None:
    digest = sha256(run / "source" / "weights.safetensors")
    document = metadata(hashes={"weights": digest}).to_json()
    model = toy.color_model(run / "export" / "model.onnx", metadata=document)
    (run / "export" / "broken.onnx").write_bytes(b"rubbish")
    code, out, _ = fada("inspect", run)
    assert code == 1
    assert "source" in out and "finished, mIoU 43.2" in out
    assert f"not finished; continue with `fada train --resume {run}`" in out
    assert f"{model}, fp32" in out and "broken.onnx, unreadable" in out
    assert "problem: " in out and "broken.onnx" in out
    assert describe(model)["weights"]["state"] == "equal"
    weights_now = run / "source" / "weights.safetensors"
    weights_now.write_bytes(weights_now.read_bytes() + b" ")
    assert describe(model)["weights"] == {"path": None, "state": "different"}


def test_files_of_other_programs_are_one_line_errors(tmp_path: Path, fada: Fada) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "foreign.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (tmp_path / "bad.reference.npz").write_bytes(b"rubbish")
    empty = {"fada": json.dumps({"model": {}, "provenance": {}})}
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "damaged.safetensors", empty)
    for name, message in (
        ("notes.txt", "was not written by `fada`"),
        ("none.onnx", "no such file"),
        ("empty.onnx", "not an ONNX file"),
        ("bad.safetensors", "is not a safetensors file"),
        ("foreign.safetensors", "does not describe its network"),
        ("damaged.safetensors", "'model.backbone' is missing"),
        ("bad.reference.npz", "reference outputs"),
        (".", "was not written by `fada`"),
    ):
        code, out, err = fada("inspect", tmp_path / name)
        assert code == 1 and out == "" and message in err and err.count("\n") == 1, err


def test_damaged_model_raises_only_model_error(export: Path, tmp_path: Path) -> None:
    original = export.read_bytes()
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged.onnx"
    for trial in range(300):
        content = bytearray(
            original[: int(rng.integers(1, len(original)))] if trial % 2 else original
        )
        for place in rng.integers(0, len(content), 4):
            content[place] = int(rng.integers(0, 256))
        damaged.write_bytes(content)
        try:
            json.dumps(describe(damaged))
        except ModelError as error:
            assert "damaged.onnx" in str(error)


def test_inspect_needs_neither_a_backend_nor_onnx(export: Path) -> None:
    code = (
        "import sys\n"
        "names = ('torch', 'onnx', 'onnxruntime', 'openvino', 'safetensors')\n"
        "sys.modules |= dict.fromkeys(names)\n"
        "from fada_deploy.cli import main\n"
        "main(['inspect', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, export], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
