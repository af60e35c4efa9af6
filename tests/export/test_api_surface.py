"""Every name that the code uses of TensorRT exists in its Python bindings, versions 10 and 11.

The bindings are downloaded from the package index and loaded with stubs in place of the CUDA
libraries; nothing is built or run. The names are extracted from the source code by the names of the
variables that hold TensorRT objects.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fada_deploy
from fada_deploy.runtime.backends.engine_file import FLAVORS

ROOT = Path(fada_deploy.__file__).parent
MODULES = (
    "export/to_tensorrt.py",
    "export/trt_layers.py",
    "export/trt_progress.py",
    "runtime/backends/tensorrt.py",
    "runtime/backends/trt_library.py",
    "runtime/backends/trt_runner.py",
)
# Variable names in these modules → the class of the object that they hold.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "runtime_config": "IRuntimeConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
    "source": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
# Used only with TensorRT-RTX.
ONLY_RTX = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IExecutionContext.is_stream_capturable",
}
PARSER_ERROR_ONLY = {"desc", "node_name", "node_operator"}
VERSIONS = ("10.16.1.11", "11.4.0.106")


def used_names() -> set[str]:
    """Return `X` for each `trt.X`, and `Class.member` for each use of a variable in `CLASSES`."""
    names: set[str] = set()
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                names |= _names_of(node)
    return names


def _names_of(node: ast.Attribute) -> set[str]:
    match node.value:
        case ast.Name("trt"):
            return {node.attr}
        case ast.Attribute(value=ast.Name("trt"), attr=outer):
            return {f"{outer}.{node.attr}"}
        case ast.Name(id=variable) if variable in CLASSES:
            # Caught exceptions are called `error` too.
            if variable == "error" and node.attr not in PARSER_ERROR_ONLY:
                return set()
            return {f"{CLASSES[variable]}.{node.attr}"}
    return set()


# Runs in another process, because an interpreter can load only one version of the bindings.
SURFACE = """
import ctypes, importlib, json, pathlib, re, subprocess, sys, tempfile

root, compiler = pathlib.Path(sys.argv[1]), sys.argv[2]
package = next(p.name for p in root.iterdir() if re.fullmatch(r"tensorrt(_rtx)?_bindings", p.name))
library = next((root / package).glob("*.so"))
text = library.read_bytes().decode("latin-1")
needed = sorted(set(re.findall(r"lib(?:nv|tensorrt)[a-z_]*\\.so\\.\\d+", text)))
patterns = [r"create\\w+_INTERNAL", r"get(?:Builder)?PluginRegistry", "getNvOnnxParserVersion"]
wanted = "|".join([*patterns, "initLibNvInferPlugins"])
functions = sorted(set(re.findall(rf"\\0({wanted})(?=\\0)", text)))
with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder, "stub.c")
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\\n" for name in functions))
    for index, name in enumerate(needed):
        stub = pathlib.Path(folder, name)
        code = source if index == 0 else "/dev/null"
        command = [compiler, "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", stub, code]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(root))
    module = importlib.import_module(package)
names = [n for n in dir(module) if not n.startswith("__")]
classes = [n for n in names if isinstance(getattr(module, n), type)]
members = [f"{n}.{m}" for n in classes for m in dir(getattr(module, n))]
print(json.dumps({"version": module.__version__, "names": names + members}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def surface(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc, which compiles the stub libraries, is not installed")
    folder = tmp_path_factory.getbasetemp().parent / "tensorrt-bindings" / request.param
    major = sys.version_info
    if not list(folder.glob("*.whl")):
        cuda = "cu12" if request.param.startswith("10.") else "cu13"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--dest",
            str(folder),
        ]
        done = subprocess.run(
            [*command, f"tensorrt_{cuda}_bindings=={request.param}"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no reason given").splitlines()[-1]
            pytest.skip(f"the bindings for Python {major[0]}.{major[1]} cannot be fetched: {last}")
    unpacked = folder / "unpacked"
    if not unpacked.is_dir():
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(unpacked)
    done = subprocess.run(
        [sys.executable, "-c", SURFACE, str(unpacked), compiler],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    bindings: dict[str, Any] = json.loads(done.stdout)
    assert bindings["version"] == request.param
    return bindings


def test_names_are_extracted_from_the_code() -> None:
    """Without names, the tests below would check nothing."""
    names = used_names()
    assert len(names) > 50
    for known in (
        "Builder",
        "BuilderFlag.VERSION_COMPATIBLE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IExecutionContext.execute_async_v3",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "ProfilingVerbosity.DETAILED",
        "LayerType.DEQUANTIZE",
    ):
        assert known in names
    assert names | {"DynamicShapesKernelSpecializationStrategy"} >= ONLY_RTX


@pytest.mark.slow
def test_every_name_exists_in_the_bindings(surface: dict[str, Any]) -> None:
    used = {n for n in used_names() if n not in ONLY_RTX and n.split(".")[0] not in ONLY_RTX}
    assert used - set(surface["names"]) - {"__version__"} == set()
    assert "ICudaEngine.no_such_member" not in surface["names"]


def test_every_name_exists_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip(
        FLAVORS[1], reason="tensorrt-rtx is not installed (Linux x86-64 only)"
    )
    for name in used_names():
        thing = trt
        for part in name.split("."):
            assert hasattr(thing, part), name
            thing = getattr(thing, part)
