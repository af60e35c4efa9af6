"""The models that are measured, and which backend runs them."""

from __future__ import annotations

from pathlib import Path

from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.backends.onnx_file import read_metadata


def backend_for(model: Path, requested: str) -> str:
    """Return the backend to use.

    Usually `requested`. "auto" becomes an explicit backend if ONNX Runtime cannot run the file.
    """
    runnable = runnable_backends(model)
    if requested == "auto" and "onnxruntime" not in runnable:
        return runnable[0]
    return requested


def group_by_network(models: list[Path]) -> list[list[Path]]:
    """Group the files of each network (`lite0.onnx`, `lite0.int8-cpu.onnx`), fp32 first."""
    groups: dict[str, list[Path]] = {}
    for model in models:
        groups.setdefault(model.name.split(".")[0], []).append(model)
    return [
        sorted(group, key=lambda path: read_metadata(path).precision != "fp32")
        for group in groups.values()
    ]
