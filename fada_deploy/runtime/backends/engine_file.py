"""What lies beside an engine: `model.engine.json`, read and checked before the engine is.

An engine is executable and holds no properties of ours, and a prefix of them would break the tools that read
plain engines. So its contract lies beside it, with the hash of the one file that it is the contract of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import write_text
from fada_deploy.common.metadata import ModelMetadata

SCHEMA = 1
ENGINE_SUFFIXES = frozenset({".engine", ".plan"})
# What `import` knows the two libraries by.
FLAVORS = ("tensorrt", "tensorrt_rtx")
NOT_RUN = "not_run"
# TensorRT-RTX builds for these and later ones when it is told none.
_RTX_LEAST = (8, 0)


@dataclass(frozen=True)
class EngineTensor:
    """One input or output of an engine: `kind` in or out, `shape` with −1 for a dynamic batch."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineSidecar:
    """Everything about an engine that is to be known before it is trusted.

    `flavor` and `flavor_version` name the library that built it. `compute_capabilities` are those that it
    runs on ("SM86" …); empty: whatever the library builds for when told none. `gpu` is the card it was built
    on, "" where there was none. `profile` has the least, usual and largest batch, None for a fixed one.
    `layers` counts convolutions by the precision that the builder gave them, as `seen_in` says. `verification`
    is "not_run", or each backend's findings under its name.
    """

    flavor: str
    flavor_version: str
    engine_sha256: str
    engine_bytes: int
    onnx_name: str
    onnx_sha256: str
    metadata: ModelMetadata
    io: tuple[EngineTensor, ...]
    precision: str
    layers: Mapping[str, int]
    seen_in: str = "builder"
    compute_capabilities: tuple[str, ...] = ()
    gpu: str = ""
    profile: tuple[int, int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verification: str | Mapping[str, Any] = NOT_RUN

    @property
    def rebuild(self) -> str:
        """Return the command that makes this engine anew."""
        return f"`fada export {self.onnx_name} --trt`"

    def to_json(self) -> str:
        """Serialize; `from_json` reads it back."""
        least, usual, most = self.profile or (None, None, None)
        document = {
            "schema": SCHEMA,
            "flavor": self.flavor,
            "flavor_version": self.flavor_version,
            "engine": {"sha256": self.engine_sha256, "bytes": self.engine_bytes},
            "onnx": {"name": self.onnx_name, "sha256": self.onnx_sha256},
            "compute_capabilities": list(self.compute_capabilities),
            "gpu": self.gpu,
            "profile": None if self.profile is None else {"min": least, "opt": usual, "max": most},
            "io": [
                {"name": t.name, "kind": t.kind, "dtype": t.dtype, "shape": list(t.shape)}
                for t in self.io
            ],
            "precision": {
                "asked": self.precision,
                "layers": dict(self.layers),
                "seen_in": self.seen_in,
            },
            "options": dict(self.options),
            "versions": dict(self.versions),
            "verification": self.verification
            if isinstance(self.verification, str)
            else dict(self.verification),
            "metadata": json.loads(self.metadata.to_json()),
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> EngineSidecar:
        """Read `to_json`'s document; raise `ModelError` naming `where` if it is strange."""
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise ModelError(
                    f"{where}: sidecar schema {data['schema']}, this version reads {SCHEMA}; "
                    "build the engine again: `fada export MODEL.onnx --trt`"
                )
            profile = data["profile"]
            verification = data["verification"]
            if verification != NOT_RUN and not isinstance(verification, dict):
                raise ValueError(f"verification {verification!r}")
            sidecar = cls(
                flavor=str(data["flavor"]),
                flavor_version=str(data["flavor_version"]),
                engine_sha256=str(data["engine"]["sha256"]),
                engine_bytes=int(data["engine"]["bytes"]),
                onnx_name=str(data["onnx"]["name"]),
                onnx_sha256=str(data["onnx"]["sha256"]),
                compute_capabilities=tuple(map(str, data["compute_capabilities"])),
                gpu=str(data["gpu"]),
                profile=profile and (int(profile["min"]), int(profile["opt"]), int(profile["max"])),
                io=tuple(
                    EngineTensor(
                        str(t["name"]), str(t["kind"]), str(t["dtype"]), tuple(map(int, t["shape"]))
                    )
                    for t in data["io"]
                ),
                precision=str(data["precision"]["asked"]),
                layers={str(k): int(v) for k, v in data["precision"]["layers"].items()},
                seen_in=str(data["precision"]["seen_in"]),
                options=dict(data["options"]),
                versions=dict(data["versions"]),
                verification=verification,
                metadata=ModelMetadata.from_json(json.dumps(data["metadata"]), where),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{where}: is malformed ({str(error)[:100]!r}); build the engine again: "
                "`fada export MODEL.onnx --trt`"
            ) from None
        if sidecar.flavor not in FLAVORS:
            raise ModelError(
                f"{where}: flavor {sidecar.flavor!r} is not known; there are {', '.join(FLAVORS)}"
            )
        return sidecar


def sidecar_path(engine: Path) -> Path:
    """Return where an engine's sidecar lies: `model.engine.json` beside `model.engine`."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> EngineSidecar:
    """Return an engine's sidecar, having checked that the engine is the file it speaks of.

    Raise `ModelError` when either is missing, damaged or another.
    """
    return load_engine(path)[0]


def load_engine(path: Path) -> tuple[EngineSidecar, bytes]:
    """Return an engine's sidecar and its bytes, the very ones that were checked; errors as `read_engine`."""
    beside = sidecar_path(path)
    try:
        text = beside.read_text("utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"{path}: {beside.name} is not beside it, so what it is cannot be told and it is not run; "
            "copy both, or build it again: `fada export MODEL.onnx --trt`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{beside}: cannot be read ({error})") from None
    sidecar = EngineSidecar.from_json(text, str(beside))
    try:
        size = path.stat().st_size
        if size != sidecar.engine_bytes:
            raise ModelError(
                f"{path}: has {size} bytes where {beside.name} says {sidecar.engine_bytes}: it was cut short, or "
                f"is another; copy both again, or build it again: {sidecar.rebuild}"
            )
        plan = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(plan).hexdigest()
    if digest != sidecar.engine_sha256:
        raise ModelError(
            f"{path}: is not the engine that {beside.name} speaks of (sha256 {digest[:12]}… instead of "
            f"{sidecar.engine_sha256[:12]}…), so it is not run; copy both again, or build it again: "
            f"{sidecar.rebuild}"
        )
    return sidecar, plan


def write_sidecar(engine: Path, sidecar: EngineSidecar) -> None:
    """Write an engine's sidecar atomically."""
    write_text(sidecar_path(engine), sidecar.to_json())


def can_record(engine: Path) -> bool:
    """Return whether the sidecar could be written anew: a car's disk is often read-only."""
    return os.access(engine.parent, os.W_OK)


def check_can_run(sidecar: EngineSidecar, *, flavor_version: str, compute_capability: str) -> None:
    """Raise `ModelError` when this library or this GPU (compute capability, "8.6") is not what it was built for.

    Engines of either flavor belong to the one version that built them; version-compatible ones of TensorRT
    run on later versions too.
    """
    built, have = sidecar.flavor_version, flavor_version
    later = sidecar.options.get("version_compatible") and _numbers(have) >= _numbers(built)
    if have != built and not later:
        raise ModelError(
            f"the engine was built by {sidecar.flavor} {built} and {have} is installed; build it again with "
            f"{sidecar.rebuild}, or type: pip install '{sidecar.flavor.replace('_', '-')}=={built}'"
        )
    name = f"SM{compute_capability.replace('.', '')}"
    allowed = sidecar.compute_capabilities
    if not allowed:
        fits = sidecar.flavor != "tensorrt_rtx" or _numbers(compute_capability) >= _RTX_LEAST
    elif sidecar.options.get("hardware_compatible"):
        fits = any(_numbers(compute_capability) >= _numbers_of_name(a) for a in allowed)
    else:
        fits = name in allowed
    if not fits:
        built_for = ", ".join(allowed) or "SM80 and later"
        raise ModelError(
            f"the engine was built for {built_for} and this GPU is {name}; build it again for it: "
            f"{sidecar.rebuild}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _numbers_of_name(name: str) -> tuple[int, ...]:
    digits = name.removeprefix("SM")
    return (int(digits[:-1]), int(digits[-1]))
