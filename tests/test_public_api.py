"""The public names of `fada_deploy`, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fada_deploy

PUBLIC = {
    "DataError", "DeviceError", "DriftMonitor", "FadaError", "InterruptedRunError", "LabelClass",
    "LabelSpace", "LiveOptions", "LiveSource", "MissingExtraError", "ModelError", "OverlayRenderer",
    "OverlayStyle", "Result", "Segmenter", "ToleranceError", "UsageError", "VideoWriter",
    "__version__", "adapt", "evaluate", "export", "open_sources", "train",
}  # fmt: skip
HEAVY = "numpy cv2 av torch onnx onnxruntime openvino tensorrt matplotlib tqdm msgspec"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names() -> None:
    assert set(fada_deploy.__all__) == PUBLIC
    assert set(dir(fada_deploy)) == PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        fada_deploy.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(fada_deploy, name)
    assert callable(value)
    text = inspect.getdoc(value)
    assert text and len(text) > 30
    if inspect.isclass(value) and not issubclass(value, Exception):
        parameters = list(inspect.signature(value).parameters)
        missing = [p for p in parameters if f"{p}:" not in text and f"`{p}`" not in text]
        assert not missing, f"{name} does not document {missing}"


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, fada_deploy; print(*[m for m in '{HEAVY}'.split() if m in sys.modules])"
    assert run_python(code) == ""


def test_the_runtime_and_the_functions_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from fada_deploy import *\n"
        "from fada_deploy import Segmenter, evaluate, export, train\n"
        "print(*[m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    assert run_python(code) == ""


def test_export_is_a_function_and_a_package() -> None:
    code = (
        "import fada_deploy\n"
        "import fada_deploy.export.plan\n"
        "from fada_deploy.export.plan import ExportOptions\n"
        "from fada_deploy import export\n"
        "assert export is fada_deploy.export and callable(export)\n"
        "try:\n    export('no-such-run', precisions=('int4',))\n"
        "except fada_deploy.UsageError as error:\n    print(error)"
    )
    assert "int4" in run_python(code)


def test_export_and_its_error_can_be_sent_to_another_process(tmp_path: Path) -> None:
    import pickle

    from fada_deploy.export.result import ExportResult, RefusedFilesError

    assert pickle.loads(pickle.dumps(fada_deploy.export)) is fada_deploy.export
    error = RefusedFilesError(ExportResult(Path("a.onnx"), Path("a.npz"), refused=("a.int8.onnx",)))
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.result == error.result


def test_arguments_of_python_functions(tmp_path: Path) -> None:
    from fada_deploy.data.cache import open_cache

    for gib in ("0.5", -1, float("nan")):
        with pytest.raises(fada_deploy.UsageError, match="at least 0 GiB"):
            open_cache(gib)  # type: ignore[arg-type]
    with pytest.raises(fada_deploy.UsageError, match="list of names"):
        fada_deploy.OverlayStyle(classes="road")  # type: ignore[arg-type]
    with pytest.raises(fada_deploy.UsageError, match="greater than 0 ms"):
        fada_deploy.LiveOptions(deadline_s=float("nan"))


def test_the_library_prints_nothing_by_default() -> None:
    code = "import logging, fada_deploy; logging.getLogger('fada_deploy.x').warning('a message')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_export_shows_the_documentation_of_the_function() -> None:
    import pydoc

    from fada_deploy import api

    assert list(inspect.signature(fada_deploy.export).parameters) == ["source", "options"]
    documented = inspect.getdoc(type(fada_deploy.export).__call__)
    assert documented and documented.split() == str(inspect.getdoc(api.export)).split()
    shown = pydoc.plain(pydoc.render_doc(fada_deploy.export))
    assert "fada_deploy.export - Export a run to ONNX files" in shown
    assert shown.index("precisions=") < shown.index("PACKAGE CONTENTS")


def test_training_result_has_a_short_representation(tmp_path: Path) -> None:
    from fada_deploy.training.result import TrainingResult

    for stage in ("adversarial", "source"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "weights.safetensors").touch()
    scores = {"adversarial": {"miou": 0.4567, "iou": dict.fromkeys(map(str, range(19)), 0.1)}}
    result = TrainingResult(tmp_path, scores, ("bad",) * 100, None)  # type: ignore[arg-type]
    shown = f"TrainingResult(run={str(tmp_path)!r}, stages=[source, adversarial 45.7 % mIoU])"
    assert repr(result) == shown


def test_train_rejects_unknown_arguments_like_any_function() -> None:
    with pytest.raises(TypeError, match="no_such"):
        fada_deploy.train(src="gta5", tgt="cityscapes", no_such=1)
