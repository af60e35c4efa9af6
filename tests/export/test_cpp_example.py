"""The C++ example, compared with the Python runtime on the same ONNX files."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19, LabelClass, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.inspection.describe import describe
from fada_deploy.runtime.segmenter import Segmenter

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Program:
    """The compiled example."""

    path: Path

    def run(self, *arguments: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    def labels(
        self, model: Path, frame: np.ndarray, folder: Path
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Return labels (H, W), colors (H, W, 3) RGB and the standard output."""
        (folder / "model.json").write_text(json.dumps(describe(model)), "utf-8")
        assert cv2.imwrite(str(folder / "frame.ppm"), frame[..., ::-1])
        names = ("model.json", "frame.ppm", "colors.ppm", "labels.pgm")
        done = self.run(model, *(folder / name for name in names))
        assert done.returncode == 0, done.stderr
        colors = cv2.imread(str(folder / "colors.ppm"), cv2.IMREAD_COLOR)[..., ::-1]
        return cv2.imread(str(folder / "labels.pgm"), cv2.IMREAD_UNCHANGED), colors, done.stdout


def has_nlohmann_json(folder: Path) -> bool:
    """Return whether the compiler finds the header <nlohmann/json.hpp>."""
    source = folder / "header.cpp"
    source.write_text("#include <nlohmann/json.hpp>\n")
    done = subprocess.run(["g++", "-E", source], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    for tool in ("g++", "cmake", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        pytest.skip("the openvino wheel, which contains the C++ library, is not installed")
    package = Path(spec.origin).parent
    if not (package / "include").is_dir():
        pytest.skip("the installed openvino wheel contains no C++ headers")
    build = tmp_path_factory.mktemp("cpp")
    if not has_nlohmann_json(build):
        pytest.skip("<nlohmann/json.hpp> is not installed (Debian: nlohmann-json3-dev)")
    options = [f"-DOpenVINO_DIR={package / 'cmake'}", "-DCMAKE_CXX_FLAGS=-Werror"]
    for command in (["cmake", "-S", EXAMPLE, "-B", build, *options], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Program(build / "label")


@pytest.fixture(scope="module")
def models(
    trained: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return exports of a trained network, one per head."""
    from fada_deploy.export.exporter import export_onnx

    folder, frames = tmp_path_factory.mktemp("models"), streets / "clip" / "clip.mp4"
    weights = trained / "source" / "weights.safetensors"
    return {
        head: export_onnx(weights, folder / f"{head}.onnx", head=head, frames=frames).model
        for head in ("logits", "labels")
    }


@pytest.fixture(scope="module")
def frame(streets: Path) -> np.ndarray:
    return open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19).image(0)


@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize(
    ("size_hw", "min_equal"),
    [
        ((128, 192), 1.0),
        ((256, 384), 1.0),
        ((301, 523), 0.999),
        ((100, 150), 0.999),
        ((100, 400), 0.999),
    ],
)
def test_labels_equal_those_of_the_python_runtime(
    program: Program,
    models: dict[str, Path],
    frame: np.ndarray,
    tmp_path: Path,
    head: str,
    size_hw: tuple[int, int],
    min_equal: float,
) -> None:
    """Exact at the input size and at twice that; elsewhere the resize may round differently."""
    resized = cv2.resize(frame, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    with Segmenter(models[head], backend="openvino") as segmenter:
        (expected,) = segmenter.labels([resized], color="rgb")
    labels, colors, output = program.labels(models[head], resized, tmp_path)
    equal = float((labels == expected).mean())
    classes = len(np.unique(expected))
    print(f"{head} {size_hw[1]}x{size_hw[0]}: {equal:.4%} of labels equal, {classes} classes")
    assert labels.shape == expected.shape and equal >= min_equal
    assert classes >= 4
    np.testing.assert_array_equal(colors, CITYSCAPES_19.palette[labels])
    assert CITYSCAPES_19.names[int(np.bincount(labels.ravel()).argmax())] in output


def test_fixed_batch_is_filled_with_copies(program: Program, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx", batch=3)
    frame, expected = toy.scene(2)
    labels, _, _ = program.labels(model, frame, tmp_path)
    assert (labels == expected).mean() > 0.95
    with Segmenter(model, backend="openvino") as segmenter:
        np.testing.assert_array_equal(labels, segmenter.labels([frame], color="rgb")[0])


def test_prints_class_names_beyond_ascii(program: Program, tmp_path: Path) -> None:
    names = {"road": "Straße", "sky": "空", "car": 'Auto "🚗"', "building": "Gebäude\\Häuser"}
    classes = tuple(rename(each, names.get(each.name, each.name)) for each in CITYSCAPES_13.classes)
    space = LabelSpace("international", classes)
    model = toy.color_model(tmp_path / "model.onnx", space=space)
    frame, _ = toy.scene(2)
    labels, _, output = program.labels(model, frame, tmp_path)
    expected = {space.names[index] for index in np.unique(labels).tolist()}
    printed = {line.split("%", 1)[1].strip() for line in output.splitlines()}
    assert printed == expected
    assert any(not name.isascii() for name in printed)


def rename(label_class: LabelClass, name: str) -> LabelClass:
    return LabelClass(name, label_class.train_id, label_class.label_id, label_class.color)


def test_unusable_input_is_one_line_with_exit_code_1(program: Program, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx")
    document = describe(model)
    metadata = document["metadata"]
    letterbox = {**metadata, "input": {**metadata["input"], "geometry": "letterbox"}}
    (tmp_path / "truncated.json").write_text(json.dumps(document)[:-20])
    (tmp_path / "letterbox.json").write_text(json.dumps(letterbox))
    (tmp_path / "schema.json").write_text(json.dumps({**metadata, "schema": 99}))
    (tmp_path / "good.json").write_text(json.dumps(metadata))
    (tmp_path / "frame.ppm").write_bytes(b"P6 8 8 255\n" + bytes(8 * 8 * 3))
    (tmp_path / "short.ppm").write_bytes(b"P6 8 8 255\n" + bytes(8))
    for metadata_name, frame_name, fact in (
        ("truncated.json", "frame.ppm", "parse error"),
        ("letterbox.json", "frame.ppm", '"letterbox"'),
        ("schema.json", "frame.ppm", "99"),
        ("good.json", "short.ppm", "short.ppm"),
        ("good.json", "none.ppm", "none.ppm"),
    ):
        done = program.run(
            model, tmp_path / metadata_name, tmp_path / frame_name, tmp_path / "out.ppm"
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1 and fact in done.stderr
    good = program.run(model, *(tmp_path / n for n in ("good.json", "frame.ppm", "out.ppm")))
    assert good.returncode == 0, good.stderr
