"""Commands warn about an export of an earlier stage than the last finished one of its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy

from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fada_deploy.runtime.parity import ReferenceOutputs

Fada = Callable[..., tuple[int, str, str]]
RUN = Path("runs/a-b-net-001")


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the export of the source stage of a run that has finished its distill stage."""
    monkeypatch.chdir(tmp_path)
    for stage in ("source", "distill"):
        (RUN / stage).mkdir(parents=True)
        (RUN / stage / "weights.safetensors").touch()
    (RUN / "config.json").write_text(json.dumps({"stages": ["source", "distill"]}))
    return write_model(RUN / "export" / "model.onnx", {})


def write_model(path: Path, hashes: dict[str, str]) -> Path:
    document = ModelMetadata(
        toy.SPACE, (64, 128), "logits", align_corners=False,
        provenance={"stage": "source"}, hashes=hashes,
    ).to_json()  # fmt: skip
    return toy.color_model(path, metadata=document)


def assert_warns(err: str) -> None:
    (line,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert "stage source" in line and "has distill" in line and f"fada export {RUN}" in line


def test_infer(fada: Fada, export: Path, tmp_path: Path) -> None:
    image = toy.write_image(tmp_path / "a.png", toy.scene(0)[0])
    for arguments in ((), ("--model", RUN), ("--model", export)):
        code, _, err = fada("infer", image, "--save", "mask", *arguments)
        assert code == 0
        assert_warns(err)
    (RUN / "distill" / "weights.safetensors").unlink()
    assert "warning" not in fada("infer", image, "--save", "mask")[2]


def test_verify(fada: Fada, export: Path) -> None:
    backend = OnnxRuntimeBackend(export)
    frames = np.stack([toy.scene(i)[0] for i in range(2)])
    prediction = backend.submit(frames)
    logits, labels = prediction.logits(), prediction.labels((64, 128))
    backend.close()
    reference = export.with_name("model.reference.npz")
    ReferenceOutputs(frames, logits, labels).save(reference)
    write_model(export, {"reference": sha256(reference)})
    assert read_metadata(export).provenance == {"stage": "source"}
    code, _, err = fada("verify", "--backend", "onnxruntime")
    assert code == 0, err
    assert_warns(err)


def test_inspect(fada: Fada, export: Path) -> None:
    _, out, err = fada("inspect", RUN, "--json")
    assert_warns(err)
    (exported,) = json.loads(out)["exports"]
    assert exported["stage"] == "source"
    assert_warns(fada("inspect", export)[2])


def test_inspect_without_a_name_takes_the_newest_export_or_else_the_newest_run(
    fada: Fada, export: Path
) -> None:
    _, out, err = fada("inspect", "--json")
    assert json.loads(out)["path"] == str(export) and f"using model {export}" in err
    export.unlink()
    _, out, err = fada("inspect", "--json")
    assert json.loads(out)["kind"] == "run" and f"using run {RUN}" in err
    (RUN / "config.json").unlink()
    code, _, err = fada("inspect")
    assert code == 1 and "no run in runs/" in err.splitlines()[-1]
