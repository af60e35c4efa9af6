"""The C++ example labels a rendered frame as the Python runtime does, from the file and its contract alone."""

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

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.inspection.describe import describe
from fada_deploy.runtime.segmenter import Segmenter

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Program:
    """The built program."""

    path: Path

    def run(self, *arguments: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    def labels(
        self, model: Path, frame: np.ndarray, folder: Path
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Return labels (H, W), colors (H, W, 3) RGB, and what was printed."""
        (folder / "contract.json").write_text(json.dumps(describe(model)), "utf-8")
        assert cv2.imwrite(str(folder / "frame.ppm"), frame[..., ::-1])
        done = self.run(
            model, *(folder / n for n in ("contract.json", "frame.ppm", "colors.ppm", "labels.pgm"))
        )
        assert done.returncode == 0, done.stderr
        colors = cv2.imread(str(folder / "colors.ppm"), cv2.IMREAD_COLOR)[..., ::-1]
        return cv2.imread(str(folder / "labels.pgm"), cv2.IMREAD_UNCHANGED), colors, done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    for tool in ("g++", "cmake", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so the C++ example is not built")
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        pytest.skip("openvino is not installed, whose wheel holds the C++ library")
    package = Path(spec.origin).parent
    if not (package / "include").is_dir():
        pytest.skip("this wheel of openvino holds no headers")
    build = tmp_path_factory.mktemp("cpp")
    for command in (
        [
            "cmake",
            "-S",
            EXAMPLE,
            "-B",
            build,
            f"-DOpenVINO_DIR={package / 'cmake'}",
            "-DCMAKE_CXX_FLAGS=-Werror",
        ],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Program(build / "label")


@pytest.fixture(scope="module")
def models(
    trained: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return an export of a trained network with each head."""
    from fada_deploy.export.exporter import export

    folder, frames = tmp_path_factory.mktemp("models"), streets / "clip" / "clip.mp4"
    weights = trained / "source" / "weights.safetensors"
    return {
        head: export(
            weights, folder / f"{head}.onnx", head=head, frames=frames, say=lambda text: None
        ).model
        for head in ("logits", "labels")
    }


@pytest.fixture(scope="module")
def frame(streets: Path) -> np.ndarray:
    return open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19).image(0)


@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize(
    ("size_hw", "least"),
    [
        ((128, 192), 1.0),
        ((256, 384), 1.0),
        ((301, 523), 0.999),
        ((100, 150), 0.999),
        ((100, 400), 0.999),
    ],
)
def test_it_labels_as_the_python_runtime_does(
    program: Program,
    models: dict[str, Path],
    frame: np.ndarray,
    tmp_path: Path,
    head: str,
    size_hw: tuple[int, int],
    least: float,
) -> None:
    """Label for label at the network's size and at twice that; else but for roundings of single gray levels."""
    shown = cv2.resize(frame, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    with Segmenter(models[head], backend="openvino") as runtime:
        (want,) = runtime.labels([shown], color="rgb")
    got, colors, printed = program.labels(models[head], shown, tmp_path)
    share = float((got == want).mean())
    print(
        f"{head} {size_hw[1]}x{size_hw[0]}: {share:.4%} of labels equal, {len(np.unique(want))} classes"
    )
    assert got.shape == want.shape and share >= least
    assert len(np.unique(want)) >= 4
    np.testing.assert_array_equal(colors, CITYSCAPES_19.palette[got])
    assert CITYSCAPES_19.names[int(np.bincount(got.ravel()).argmax())] in printed


def test_a_fixed_batch_is_filled(program: Program, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx", batch=3)
    picture, labels = toy.scene(2)
    got, _, _ = program.labels(model, picture, tmp_path)
    assert (got == labels).mean() > 0.95
    with Segmenter(model, backend="openvino") as runtime:
        np.testing.assert_array_equal(got, runtime.labels([picture], color="rgb")[0])


def test_what_it_cannot_use_is_said_in_a_line(program: Program, tmp_path: Path) -> None:
    model = toy.color_model(tmp_path / "model.onnx")
    contract = describe(model)
    (tmp_path / "bad.json").write_text(json.dumps(contract)[:-20])
    (tmp_path / "other.json").write_text(
        json.dumps(
            {
                **contract["metadata"],
                "input": {**contract["metadata"]["input"], "geometry": "letterbox"},
            }
        )
    )
    (tmp_path / "good.json").write_text(json.dumps(contract["metadata"]))
    (tmp_path / "frame.ppm").write_bytes(b"P6 8 8 255\n" + bytes(8 * 8 * 3))
    (tmp_path / "short.ppm").write_bytes(b"P6 8 8 255\n" + bytes(8))
    for contract_name, frame_name, said in (
        ("bad.json", "frame.ppm", "JSON"),
        ("other.json", "frame.ppm", "a contract of another kind"),
        ("good.json", "short.ppm", "no binary PPM"),
        ("good.json", "none.ppm", "cannot be read"),
    ):
        done = program.run(
            model, tmp_path / contract_name, tmp_path / frame_name, tmp_path / "out.ppm"
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr
    good = program.run(model, *(tmp_path / n for n in ("good.json", "frame.ppm", "out.ppm")))
    assert good.returncode == 0, good.stderr
