"""A Triton model repository, parsed with the schema of Triton's client package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import toy

from fada_deploy.common.errors import FadaError, ModelError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.label_space import LabelClass, LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.triton import write_repository
from fada_deploy.runtime.backends.engine_file import EngineSidecar, write_sidecar

TYPE_UINT8, KIND_AUTO, KIND_GPU = 2, 0, 1


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Return the schema module, without importing the client and its dependencies."""
    spec = importlib.util.find_spec("tritonclient")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [f for place in places if (f := Path(place) / "grpc" / "model_config_pb2.py").is_file()]
    if not files:
        pytest.skip("tritonclient, which contains the schema, is not installed")
    module_spec = importlib.util.spec_from_file_location("model_config_pb2", files[0])
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def config_of(schema: ModuleType, repository: Path) -> Any:
    """Parse config.pbtxt strictly: unknown fields and wrong types raise."""
    from google.protobuf import text_format

    return text_format.Parse(
        (repository / "segmenter" / "config.pbtxt").read_text("utf-8"), schema.ModelConfig()
    )


def engine(
    path: Path, *, head: str = "labels", flavor: str = "tensorrt", batch: int | None = None,
    profile: tuple[int, int, int] | None = (1, 1, 4),
) -> Path:  # fmt: skip
    path.write_bytes(b"a plan")
    sidecar = EngineSidecar(
        flavor=flavor,
        flavor_version="11.4.0",
        engine_sha256=sha256(path),
        engine_bytes=6,
        onnx_name="model.onnx",
        onnx_sha256="0" * 64,
        metadata=ModelMetadata(toy.SPACE, (64, 128), head, align_corners=False, batch=batch),
        io=(),
        precision="fp32",
        layers={"fp32": 1},
        profile=profile,
    )
    write_sidecar(path, sidecar)
    return path


def test_dynamic_batch_uses_dynamic_batching(schema: ModuleType, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head="labels")
    repository = write_repository(model, tmp_path / "repo")
    assert repository == tmp_path / "repo"
    assert sorted(str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()) == [
        "segmenter/1/model.onnx",
        "segmenter/config.pbtxt",
        "segmenter/labels.txt",
    ]
    config = config_of(schema, repository)
    assert (config.name, config.backend, config.max_batch_size) == ("segmenter", "onnxruntime", 8)
    (frames,), (labels,) = config.input, config.output
    assert (frames.name, frames.data_type, list(frames.dims)) == (
        "frames",
        TYPE_UINT8,
        [64, 128, 3],
    )
    assert (labels.name, labels.data_type, list(labels.dims)) == ("labels", TYPE_UINT8, [64, 128])
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds < 10_000
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, KIND_AUTO)
    assert not config.HasField("optimization"), "ONNX Runtime must not build unverified engines"
    assert config.parameters["label_names"].string_value.split(",") == list(toy.SPACE.names)
    assert json.loads(config.parameters["fada"].string_value)["head"] == "labels"
    assert (repository / "segmenter" / "labels.txt").read_text().splitlines() == list(
        toy.SPACE.names
    )
    assert (repository / "segmenter" / "1" / "model.onnx").read_bytes() == model.read_bytes()


def test_config_has_the_shapes_of_the_graph(schema: ModuleType, tmp_path: Path) -> None:
    """With batching, Triton adds the batch dimension itself."""
    for batch in (None, 3):
        model = toy.color_model(tmp_path / f"{batch}.onnx", head="labels", batch=batch)
        config = config_of(schema, write_repository(model, tmp_path / f"repo-{batch}"))
        graph = onnx.load(str(model)).graph
        for tensor, port in (
            (config.input[0], graph.input[0]),
            (config.output[0], graph.output[0]),
        ):
            dims = [d.dim_value or -1 for d in port.type.tensor_type.shape.dim]
            assert tensor.name == port.name
            assert [-1] * (config.max_batch_size > 0) + list(tensor.dims) == dims


def test_fixed_batch_disables_batching(schema: ModuleType, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head="labels", batch=4)
    config = config_of(schema, write_repository(model, tmp_path / "repo"))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 64, 128, 3] and list(config.output[0].dims) == [
        4,
        64,
        128,
    ]


def test_max_batch_of_an_engine_is_that_of_its_profile(schema: ModuleType, tmp_path: Path) -> None:
    repository = write_repository(engine(tmp_path / "model.engine"), tmp_path / "repo")
    config = config_of(schema, repository)
    assert (config.name, config.backend, config.max_batch_size) == ("segmenter", "tensorrt", 4)
    assert config.instance_group[0].kind == KIND_GPU
    assert config.default_model_filename == "model.plan"
    assert (repository / "segmenter" / "1" / "model.plan").read_bytes() == b"a plan"
    fixed = engine(tmp_path / "fixed.engine", batch=2, profile=None)
    config = config_of(schema, write_repository(fixed, tmp_path / "fixed"))
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [2, 64, 128, 3]


def test_class_names_are_escaped(schema: ModuleType, tmp_path: Path) -> None:
    names = ('tram "track"', "Straße\\weg")
    space = LabelSpace("odd", tuple(LabelClass(n, i, i, (i, 0, 0)) for i, n in enumerate(names)))
    model = toy.color_model(tmp_path / "model.onnx", head="labels", space=space)
    config = config_of(schema, write_repository(model, tmp_path / "repo"))
    assert config.parameters["label_names"].string_value == ",".join(names)
    contract = ModelMetadata.from_json(config.parameters["fada"].string_value, "config")
    assert contract.label_space == space


def test_files_that_triton_cannot_serve_are_refused(tmp_path: Path) -> None:
    logits = toy.color_model(tmp_path / "logits.onnx")
    half = ModelMetadata(
        toy.SPACE, (64, 128), "labels", align_corners=False, precision="bf16"
    ).to_json()
    rtx = engine(tmp_path / "rtx.engine", flavor="tensorrt_rtx")
    cases: list[tuple[Path, type[FadaError], str]] = [
        (logits, ModelError, "head `logits`.*--head labels"),
        (rtx, ModelError, "--trt-flavor tensorrt"),
        (engine(tmp_path / "big.engine", profile=(2, 2, 4)), ModelError, "--trt-batch 1,2,4"),
        (engine(tmp_path / "z.engine", head="logits"), ModelError, "--head labels"),
        (toy.color_model(tmp_path / "b.onnx", head="labels", metadata=half), ModelError, "bf16"),
        (tmp_path / "model.pt", UsageError, "Triton serves .onnx and .engine files"),
    ]
    for model, error, message in cases:
        with pytest.raises(error, match=message):
            write_repository(model, tmp_path / "repo")
    assert not [p for p in tmp_path.iterdir() if "repo" in p.name]


def test_existing_folder_is_not_changed(tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head="labels")
    (tmp_path / "repo").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        write_repository(model, tmp_path / "repo")
    assert list((tmp_path / "repo").iterdir()) == []


def test_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.color_model(tmp_path / "model.onnx", head="labels")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fada_deploy.export.triton.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_repository(model, tmp_path / "repo")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
