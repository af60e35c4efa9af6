"""The device code is `labels_from_logits` and `overlay`, bit for bit: the same source, compiled for the CPU.

That it also runs so on a GPU is shown only where there is one; here nvcc or NVRTC, where present, compile it.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_kernels import compile_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.runtime.backends import cuda_kernels as kernels
from fada_deploy.runtime.kernels import upsample
from fada_deploy.runtime.kernels.upsample import dense_labels, labels_from_logits
from fada_deploy.runtime.overlay.blend import overlay


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def labeled(
    library: ctypes.CDLL,
    logits: np.ndarray,
    size_hw: tuple[int, int],
    align_corners: bool,
    *,
    paint: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run the kernels as the backend does; `paint` is frames and a blend table."""
    batch, classes, h, w = logits.shape
    labels = np.full((batch, *size_hw), 255, np.uint8)
    taps = kernels.taps_of((h, w), size_hw, align_corners=align_corners)
    head = [
        pointer(logits),
        *map(ctypes.c_int, (batch, classes, h, w, *size_hw)),
        *map(pointer, taps),
    ]
    if paint is None:
        library.label_pixels(*head, pointer(labels))
        return labels, None
    frames, blend = paint
    pictures = np.empty_like(frames)
    library.paint_pixels(*head, pointer(frames), pointer(blend), pointer(labels), pointer(pictures))
    return labels, pictures


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_labels_of_random_logits(library: ctypes.CDLL, data: st.DataObject) -> None:
    """Values on a coarse grid, so that ties are many, and fine ones; enlarged, shrunk and a single cell."""
    shape = data.draw(
        st.tuples(st.integers(1, 2), st.integers(1, 21), st.integers(1, 9), st.integers(1, 9))
    )
    size_hw = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    if data.draw(st.booleans()):
        logits = rng.integers(-2, 3, shape).astype(np.float32)
    else:
        logits = rng.normal(0, 5, shape).astype(np.float32)
    align_corners = data.draw(st.booleans())
    got, _ = labeled(library, logits, size_hw, align_corners)
    for labels, planes in zip(got, logits, strict=True):
        np.testing.assert_array_equal(
            labels, dense_labels(planes, size_hw, align_corners=align_corners)
        )


@pytest.mark.parametrize("align_corners", [True, False])
def test_corners_one_ulp_apart(library: ctypes.CDLL, align_corners: bool) -> None:
    """Where a fused multiply-add, or another order, would show."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 3, (1, 1, 24, 32)).astype(np.float32)
    ulps = rng.integers(-2, 3, (2, 19, 24, 32)).astype(np.float32)
    logits = np.float32(base + ulps * np.spacing(base))
    got, _ = labeled(library, logits, (192, 259), align_corners)
    for labels, planes in zip(got, logits, strict=True):
        np.testing.assert_array_equal(
            labels, labels_from_logits(planes, (192, 259), align_corners=align_corners)
        )


def test_numbers_below_the_normal_ones(library: ctypes.CDLL) -> None:
    """Where flushing to zero would make ties."""
    rng = np.random.default_rng(4)
    logits = np.float32(rng.normal(0, 1e-39, (1, 5, 6, 7)))
    got, _ = labeled(library, logits, (30, 35), False)
    np.testing.assert_array_equal(got[0], dense_labels(logits[0], (30, 35), align_corners=False))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.55, 1.0])
def test_pictures_are_the_overlay(library: ctypes.CDLL, alpha: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (2, 19, 12, 16)).astype(np.float32)
    size_hw = (97, 131)
    frames = rng.integers(0, 256, (2, *size_hw, 3), dtype=np.uint8)
    palette = CITYSCAPES_19.palette
    blend = kernels.blend_table(palette, 19, alpha)
    labels, pictures = labeled(library, logits, size_hw, True, paint=(frames, blend))
    assert pictures is not None
    for i in range(2):
        expected = labels_from_logits(logits[i], size_hw, align_corners=True)
        np.testing.assert_array_equal(labels[i], expected)
        np.testing.assert_array_equal(pictures[i], overlay(frames[i], expected, palette, alpha))


def test_every_color_over_every_value_blends_as_overlay_does() -> None:
    """The table is made of short rows; the overlay of a picture may take another path through OpenCV."""
    rng = np.random.default_rng(3)
    palette = CITYSCAPES_19.palette
    for alpha in (*np.linspace(0, 1, 11), 1 / 3, 0.6180339):
        blend = kernels.blend_table(palette, 19, float(alpha))
        frame = rng.integers(0, 256, (61, 509, 3), dtype=np.uint8)
        labels = rng.integers(0, 19, (61, 509), dtype=np.uint8)
        expected = overlay(frame, labels, palette, float(alpha))
        channels = np.arange(3)[None, None]
        np.testing.assert_array_equal(blend[labels[..., None], frame, channels], expected)


@pytest.mark.parametrize(
    ("value", "bad"), [(1e37, 0), (-1e37, 0), (1.1e37, 1), (np.nan, 1), (-np.inf, 1)]
)
def test_unusable_logits_are_found(library: ctypes.CDLL, value: float, bad: int) -> None:
    values = np.zeros(1000, np.float32)
    values[613] = value
    flag = np.zeros(1, np.int32)
    largest = ctypes.c_float(float(np.float32(1e37)))
    library.find_unusable(pointer(values), ctypes.c_longlong(values.size), largest, pointer(flag))
    assert flag[0] == bad
    assert kernels.LARGEST == upsample._LARGEST


@pytest.mark.slow
def test_labels_and_pictures_of_a_trained_network(
    library: ctypes.CDLL, trained: Path, streets: Path
) -> None:
    torch = pytest.importorskip("torch")
    from fada_deploy.data import open_dataset
    from fada_deploy.training.predict import Predictor
    from fada_deploy.training.weights.checkpoints import load_model

    dataset = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    frames = [dataset.image(i) for i in range(0, 64, 16)]
    model = load_model(trained / "source" / "weights.safetensors")[0]
    logits = np.concatenate(
        [Predictor(model, torch.device("cpu")).logits([f]).numpy() for f in frames]
    )
    size_hw = frames[0].shape[:2]
    blend = kernels.blend_table(CITYSCAPES_19.palette, logits.shape[1], 0.5)
    stacked = np.ascontiguousarray(np.stack(frames))
    labels, pictures = labeled(
        library, np.ascontiguousarray(logits), size_hw, model.align_corners, paint=(stacked, blend)
    )
    assert pictures is not None and len(np.unique(labels)) >= 8
    for i, frame in enumerate(frames):
        expected = labels_from_logits(logits[i], size_hw, align_corners=model.align_corners)
        np.testing.assert_array_equal(labels[i], expected)
        np.testing.assert_array_equal(
            pictures[i], overlay(frame, expected, CITYSCAPES_19.palette, 0.5)
        )


# What CuPy adds of its own accord; the last one wins, and this test must not see it win.
CUPY = ("-ftz=true",)


def nvcc_ptx(folder: Path, source: str, options: tuple[str, ...]) -> str:
    (folder / "kernels.cu").write_text(source)
    command = [
        "nvcc",
        "-ptx",
        "-arch=sm_80",
        *options,
        "-o",
        folder / "kernels.ptx",
        folder / "kernels.cu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "kernels.ptx").read_text()


def nvrtc_ptx(folder: Path, source: str, options: tuple[str, ...]) -> str:
    """Compile with NVRTC of the package nvidia-cuda-nvrtc, by its C interface; needs no GPU."""
    root = Path(next(iter(importlib.import_module("nvidia").__path__)))
    nvrtc: Any = ctypes.CDLL(str(next(root.rglob("libnvrtc.so.*"))))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert (
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None)
        == 0
    )
    words = [o.encode() for o in ("--gpu-architecture=compute_80", *options)]
    status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    assert status == 0, "NVRTC refuses the kernels"
    assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetPTX(program, text) == 0
    return text.value.decode()


@pytest.mark.parametrize("compiler", [nvcc_ptx, nvrtc_ptx])
def test_compiles_for_a_gpu_and_rounds_one_by_one(
    tmp_path: Path, compiler: Callable[[Path, str, tuple[str, ...]], str]
) -> None:
    if compiler is nvcc_ptx and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if compiler is nvrtc_ptx:
        nvidia = pytest.importorskip("nvidia", reason="nvidia-cuda-nvrtc is not installed")
        if not any(True for p in nvidia.__path__ for _ in Path(p).rglob("libnvrtc.so.*")):
            pytest.skip("nvidia-cuda-nvrtc is not installed")
    ptx = compiler(tmp_path, kernels.CUDA + kernels.SOURCE, (*kernels.OPTIONS, *CUPY))
    for name in ("find_unusable", "label_pixels", "paint_pixels"):
        assert re.search(rf"\.entry {name}\(", ptx), f"{name} is no kernel of that name"
    labeling = ptx[ptx.index(".entry label_pixels(") :]
    assert "mul.rn.f32" in labeling and "fma." not in labeling and "ftz" not in labeling
    # Written with plain operators the options would decide, so the test above can fail.
    plain = kernels.CUDA.replace("INLINE float MUL", "INLINE float MUL_").replace(
        "INLINE float ADD", "INLINE float ADD_"
    )
    operators = "#define MUL(a, b) ((a) * (b))\n#define ADD(a, b) ((a) + (b))\n"
    assert "fma.rn.ftz" in compiler(tmp_path, plain + operators + kernels.SOURCE, CUPY)


def test_no_fused_operation_in_the_machine_code(tmp_path: Path) -> None:
    """The assembler behind PTX fuses too, where PTX lets it."""
    tool = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
    if shutil.which("nvcc") is None or not Path(tool).is_file():
        pytest.skip("nvcc and cuobjdump are not installed")
    (tmp_path / "k.cu").write_text(kernels.CUDA + kernels.SOURCE)
    command = [
        "nvcc",
        "-cubin",
        "-arch=sm_80",
        *CUPY,
        "-o",
        tmp_path / "k.cubin",
        tmp_path / "k.cu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        [tool, "-sass", tmp_path / "k.cubin"], capture_output=True, text=True, check=True
    )
    parts = dict(p.split("\n", 1) for p in done.stdout.split("Function : ")[1:])
    for name in ("label_pixels", "paint_pixels"):
        # The sums of weighted corners are FMUL and FADD, none of them flushing.
        assert re.search(r"\bFMUL ", parts[name]) and re.search(r"\bFADD ", parts[name])
        assert not re.search(r"\bFFMA|\bFMUL\.FTZ|\bFADD\.FTZ", parts[name])
