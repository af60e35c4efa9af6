"""Which backend is the fastest for a model on this machine: measured once, kept in the user's cache.

`fada bench --choose` measures and records; `--backend auto` looks here first. The key is what decides the
speed: the network's shape and precision, the processor, the cores, and the engines' versions.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

from fada_deploy.common.files import cache_folder, write_text
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import installed_version, usable_cores

_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def fastest_backend(metadata: ModelMetadata) -> str | None:
    """Return the backend that was measured to be the fastest here, None where none was."""
    found = _read().get(_key(metadata))
    return found if isinstance(found, str) else None


def remember_fastest(metadata: ModelMetadata, backend: str) -> Path:
    """Remember the fastest backend for a model on this machine; return the file it is written to."""
    write_text(_path(), json.dumps(_read() | {_key(metadata): backend}, indent=1) + "\n")
    return _path()


def _path() -> Path:
    return cache_folder() / "backends.json"


def _read() -> dict[str, object]:
    try:
        data = json.loads(_path().read_text("utf-8"))
    except (OSError, ValueError):
        # Not measured yet, or spoiled: the order of preference goes on.
        return {}
    return data if isinstance(data, dict) else {}


def _key(metadata: ModelMetadata) -> str:
    height, width = metadata.input_size_hw
    config = metadata.provenance.get("config")
    backbone = config.get("backbone", "") if isinstance(config, dict) else ""
    network = f"{backbone} {width}x{height} {metadata.head} {metadata.precision} {metadata.hardware_target}"
    versions = [
        f"{name} {found}" for name in _ENGINES if (found := installed_version(name)) is not None
    ]
    return " | ".join([network, _processor(), f"{usable_cores()} cores", *versions])


def _processor() -> str:
    """Return the processor's name, or the machine's kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
