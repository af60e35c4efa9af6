"""Remember in the user's cache which backend is the fastest for a model on this machine.

`fada bench --remember` writes it and `--backend auto` reads it. The key consists of what determines
the speed: backbone, size, head and precision of the network, CPU model, cores and backend versions.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

from fada_deploy.common.files import cache_folder, write_text
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import installed_version, usable_cores

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def fastest_backend(metadata: ModelMetadata) -> str | None:
    """Return the remembered backend for a model, None if there is none."""
    backend = _read().get(_key(metadata))
    return backend if isinstance(backend, str) else None


def remember_fastest(metadata: ModelMetadata, backend: str) -> Path:
    """Remember the fastest backend for a model on this machine; return the cache file."""
    write_text(_path(), json.dumps(_read() | {_key(metadata): backend}, indent=1) + "\n")
    return _path()


def _path() -> Path:
    return cache_folder() / "backends.json"


def _read() -> dict[str, object]:
    try:
        data = json.loads(_path().read_text("utf-8"))
    except (OSError, ValueError):
        # Missing or damaged: fall back to the default order of backends.
        return {}
    return data if isinstance(data, dict) else {}


def _key(metadata: ModelMetadata) -> str:
    height, width = metadata.input_size_hw
    config = metadata.provenance.get("config")
    backbone = config.get("backbone", "") if isinstance(config, dict) else ""
    network = (
        f"{backbone} {width}x{height} {metadata.head} {metadata.precision} "
        f"{metadata.hardware_target}"
    )
    versions = [
        f"{name} {version}"
        for name in _PACKAGES
        if (version := installed_version(name)) is not None
    ]
    return " | ".join([network, _cpu_model(), f"{usable_cores()} cores", *versions])


def _cpu_model() -> str:
    """Return the CPU's model name, or the machine type if the system does not report one."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
