"""The CUDA kernels equal `labels_from_logits` bit for bit; they are compiled for the CPU here.

If nvcc or NVRTC is installed, they also compile the source for a GPU, and the tests examine the
machine code. The kernels are not run on a GPU here.
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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def run_label_pixels(
    library: ctypes.CDLL, logits: np.ndarray, size_hw: tuple[int, int], align_corners: bool
) -> np.ndarray:
    """Call the kernel with the arguments of `CudaLabeler`."""
    batch, classes, h, w = logits.shape
    labels = np.full((batch, *size_hw), 255, np.uint8)
    taps = kernels.kernel_taps((h, w), size_hw, align_corners=align_corners)
    library.label_pixels(
        pointer(logits),
        *map(ctypes.c_int, (batch, classes, h, w, *size_hw)),
        *map(pointer, taps),
        pointer(labels),
    )
    return labels


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_labels_of_random_logits(library: ctypes.CDLL, data: st.DataObject) -> None:
    """Cover ties (integer logits) and random values, enlarging, shrinking and single cells."""
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
    batch = run_label_pixels(library, logits, size_hw, align_corners)
    for labels, planes in zip(batch, logits, strict=True):
        np.testing.assert_array_equal(
            labels, dense_labels(planes, size_hw, align_corners=align_corners)
        )


@pytest.mark.parametrize("align_corners", [True, False])
def test_logits_one_ulp_apart(library: ctypes.CDLL, align_corners: bool) -> None:
    """A fused multiply-add or another order of operations would change labels here."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 3, (1, 1, 24, 32)).astype(np.float32)
    ulps = rng.integers(-2, 3, (2, 19, 24, 32)).astype(np.float32)
    logits = np.float32(base + ulps * np.spacing(base))
    batch = run_label_pixels(library, logits, (192, 259), align_corners)
    for labels, planes in zip(batch, logits, strict=True):
        np.testing.assert_array_equal(
            labels, labels_from_logits(planes, (192, 259), align_corners=align_corners)
        )


def test_subnormal_logits(library: ctypes.CDLL) -> None:
    """Flushing subnormal numbers to zero would turn these logits into ties."""
    rng = np.random.default_rng(4)
    logits = np.float32(rng.normal(0, 1e-39, (1, 5, 6, 7)))
    labels = run_label_pixels(library, logits, (30, 35), False)
    np.testing.assert_array_equal(labels[0], dense_labels(logits[0], (30, 35), align_corners=False))


@pytest.mark.parametrize(
    ("value", "bad"), [(1e37, 0), (-1e37, 0), (1.1e37, 1), (np.nan, 1), (-np.inf, 1)]
)
def test_finds_unusable_logits(library: ctypes.CDLL, value: float, bad: int) -> None:
    values = np.zeros(1000, np.float32)
    values[613] = value
    flag = np.zeros(1, np.int32)
    largest = ctypes.c_float(float(np.float32(1e37)))
    library.find_unusable(pointer(values), ctypes.c_longlong(values.size), largest, pointer(flag))
    assert flag[0] == bad
    assert kernels.LARGEST == upsample._LARGEST


@pytest.mark.slow
def test_labels_of_a_trained_network(library: ctypes.CDLL, trained: Path, streets: Path) -> None:
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
    labels = run_label_pixels(library, np.ascontiguousarray(logits), size_hw, model.align_corners)
    assert len(np.unique(labels)) >= 8
    for i in range(len(frames)):
        expected = labels_from_logits(logits[i], size_hw, align_corners=model.align_corners)
        np.testing.assert_array_equal(labels[i], expected)


# CuPy appends this option; the kernels must not be affected by it.
CUPY_OPTIONS = ("-ftz=true",)


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
    """Compile with the C interface of NVRTC (package nvidia-cuda-nvrtc); this needs no GPU."""
    root = Path(next(iter(importlib.import_module("nvidia").__path__)))
    nvrtc: Any = ctypes.CDLL(str(next(root.rglob("libnvrtc.so.*"))))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert (
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None)
        == 0
    )
    words = [o.encode() for o in ("--gpu-architecture=compute_80", *options)]
    status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    assert status == 0, "NVRTC cannot compile the kernels"
    assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetPTX(program, text) == 0
    return text.value.decode()


@pytest.mark.parametrize("compiler", [nvcc_ptx, nvrtc_ptx])
def test_ptx_rounds_each_operation_separately(
    tmp_path: Path, compiler: Callable[[Path, str, tuple[str, ...]], str]
) -> None:
    if compiler is nvcc_ptx and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if compiler is nvrtc_ptx:
        nvidia = pytest.importorskip("nvidia", reason="nvidia-cuda-nvrtc is not installed")
        if not any(True for p in nvidia.__path__ for _ in Path(p).rglob("libnvrtc.so.*")):
            pytest.skip("nvidia-cuda-nvrtc is not installed")
    ptx = compiler(tmp_path, kernels.CUDA + kernels.SOURCE, (*kernels.OPTIONS, *CUPY_OPTIONS))
    for name in ("find_unusable", "label_pixels"):
        assert re.search(rf"\.entry {name}\(", ptx), f"there is no kernel {name}"
    labeling = ptx[ptx.index(".entry label_pixels(") :]
    assert "mul.rn.f32" in labeling and "fma." not in labeling and "ftz" not in labeling
    # With plain operators the options take effect, so the assertions above can fail.
    plain = kernels.CUDA.replace("INLINE float MUL", "INLINE float MUL_").replace(
        "INLINE float ADD", "INLINE float ADD_"
    )
    operators = "#define MUL(a, b) ((a) * (b))\n#define ADD(a, b) ((a) + (b))\n"
    assert "fma.rn.ftz" in compiler(tmp_path, plain + operators + kernels.SOURCE, CUPY_OPTIONS)


def test_machine_code_has_no_fused_operations(tmp_path: Path) -> None:
    """The assembler may fuse operations, too, unless PTX forbids it."""
    tool = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
    if shutil.which("nvcc") is None or not Path(tool).is_file():
        pytest.skip("nvcc and cuobjdump are not installed")
    (tmp_path / "k.cu").write_text(kernels.CUDA + kernels.SOURCE)
    command = [
        "nvcc",
        "-cubin",
        "-arch=sm_80",
        *CUPY_OPTIONS,
        "-o",
        tmp_path / "k.cubin",
        tmp_path / "k.cu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        [tool, "-sass", tmp_path / "k.cubin"], capture_output=True, text=True, check=True
    )
    parts = dict(p.split("\n", 1) for p in done.stdout.split("Function : ")[1:])
    code = parts["label_pixels"]
    assert re.search(r"\bFMUL ", code) and re.search(r"\bFADD ", code)
    assert not re.search(r"\bFFMA|\bFMUL\.FTZ|\bFADD\.FTZ", code)
