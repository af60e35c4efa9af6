"""Compile the CUDA kernels for the CPU, for several test modules."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from fada_deploy.runtime.backends import cuda_kernels as kernels

HOST = """
#define KERNEL extern "C" void
#define INLINE static inline
#define FOR_EACH(i, n) for (long long i = 0; i < (n); i++)
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define GREATER(a, b) ((a) > (b))
"""


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Return the kernels as a shared library for the CPU; skip the test without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, so the CUDA source cannot be compiled for the CPU")
    (folder / "kernels.cpp").write_text(HOST + kernels.SOURCE)
    # No fused operations, as on the device; warnings are errors.
    flags = ["-O2", "-march=native", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *flags, "-o", folder / "kernels.so", folder / "kernels.cpp"], check=True
    )
    return ctypes.CDLL(str(folder / "kernels.so"))
