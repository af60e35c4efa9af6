"""The sidecar of a TensorRT engine (`model.engine.json`), which is validated before the engine.

An engine contains executable code and has no room for metadata. So its metadata lie in a JSON file
beside it, together with the hash of the one engine file that they describe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fada_deploy.common.documents import MAX_BYTES, convert, read_json
from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import write_text
from fada_deploy.common.metadata import ModelMetadata

SCHEMA = 1
ENGINE_SUFFIXES = frozenset({".engine", ".plan"})
# Import names of the two libraries.
FLAVORS = ("tensorrt", "tensorrt_rtx")
NOT_RUN = "not_run"
# TensorRT-RTX builds for GPUs from this compute capability on unless it is given others.
_MIN_RTX_CAPABILITY = (8, 0)
# Hardware-compatible engines run on every GPU from this one on, wherever they were built.
_AMPERE = (8, 0)
_REMEDY = "build the engine again: `fada export MODEL.onnx --trt`"

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[^/\\\x00]+$")]
_Architecture = Annotated[str, msgspec.Meta(pattern="^SM[0-9]{2,3}$")]
_NotNegative = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine; a dynamic batch has size −1 in `shape`."""

    name: str
    kind: Literal["in", "out"]
    dtype: str
    shape: tuple[int, ...]


class FileDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Hash and size of the engine file."""

    sha256: _Sha256
    bytes: _NotNegative


class OnnxDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The ONNX file that the engine was built from."""

    name: _FileName
    sha256: _Sha256


class ProfileDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The batch sizes of an engine with a dynamic batch."""

    min: _Positive
    opt: _Positive
    max: _Positive

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min ≤ opt ≤ max must hold, got {self.min}, {self.opt}, {self.max}")


class PrecisionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The requested precision and the precisions that the builder chose."""

    requested: str
    layers: dict[str, _NotNegative]
    layers_source: str


class SidecarDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The sidecar of a TensorRT engine as it is stored."""

    schema: Literal[1]
    flavor: Literal["tensorrt", "tensorrt_rtx"]
    flavor_version: str
    engine: FileDocument
    onnx: OnnxDocument
    compute_capabilities: tuple[_Architecture, ...]
    gpu: str
    profile: ProfileDocument | None
    io: tuple[EngineTensor, ...]
    precision: PrecisionDocument
    options: dict[str, Any]
    versions: dict[str, str]
    verification: Literal["not_run"] | dict[str, dict[str, Any]]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class EngineSidecar:
    """What must be known about an engine before it is loaded.

    - `flavor`, `flavor_version`: the library that built it.
    - `engine_sha256`, `engine_bytes`: hash and size of the engine file.
    - `compute_capabilities`: the GPUs that it runs on ("SM86", …); empty for the library's default.
    - `gpu`: the GPU on which it was built, "" without one.
    - `profile`: smallest, optimal and largest batch; None for a fixed batch.
    - `precision`: the requested precision. `layers`: number of convolutions by the precision that
      the builder chose. `layers_source`: where that was read, "builder" or "network".
    - `options`: builder options. `versions`: package versions at build time.
    - `verification`: "not_run", or a parity result by backend name.
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
    layers_source: str = "builder"
    compute_capabilities: tuple[str, ...] = ()
    gpu: str = ""
    profile: tuple[int, int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verification: str | Mapping[str, Any] = NOT_RUN

    @property
    def rebuild_command(self) -> str:
        """Return the command that rebuilds this engine."""
        return f"`fada export {shlex.quote(self.onnx_name)} --trt` in the folder of the engine"

    def to_json(self) -> str:
        """Return the document as JSON text; `from_json` reads it back."""
        verification = self.verification
        if not isinstance(verification, str):
            verification = dict(verification)
        document = {
            "schema": SCHEMA,
            "flavor": self.flavor,
            "flavor_version": self.flavor_version,
            "engine": {"sha256": self.engine_sha256, "bytes": self.engine_bytes},
            "onnx": {"name": self.onnx_name, "sha256": self.onnx_sha256},
            "compute_capabilities": list(self.compute_capabilities),
            "gpu": self.gpu,
            "profile": self.profile and dict(zip(("min", "opt", "max"), self.profile, strict=True)),
            "io": [
                {"name": t.name, "kind": t.kind, "dtype": t.dtype, "shape": list(t.shape)}
                for t in self.io
            ],
            "precision": {
                "requested": self.precision,
                "layers": dict(self.layers),
                "layers_source": self.layers_source,
            },
            "options": dict(self.options),
            "versions": dict(self.versions),
            "verification": verification,
            "metadata": self.metadata.to_dict(),
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> EngineSidecar:
        """Read the text of `to_json`; raise `ModelError` naming `where` if it is invalid."""
        data = read_json(text, dict[str, Any], where=where, remedy=_REMEDY)
        version = data.get("schema")
        if isinstance(version, int) and version != SCHEMA:
            raise ModelError(f"{where}: schema version must be {SCHEMA}, got {version}; {_REMEDY}")
        document = convert(data, SidecarDocument, where=where, remedy=_REMEDY)
        profile = document.profile
        return cls(
            flavor=document.flavor,
            flavor_version=document.flavor_version,
            engine_sha256=document.engine.sha256,
            engine_bytes=document.engine.bytes,
            onnx_name=document.onnx.name,
            onnx_sha256=document.onnx.sha256,
            metadata=ModelMetadata.from_dict(document.metadata, where),
            io=document.io,
            precision=document.precision.requested,
            layers=document.precision.layers,
            layers_source=document.precision.layers_source,
            compute_capabilities=document.compute_capabilities,
            gpu=document.gpu,
            profile=None if profile is None else (profile.min, profile.opt, profile.max),
            options=document.options,
            versions=document.versions,
            verification=document.verification,
        )


def sidecar_path(engine: Path) -> Path:
    """Return the path of an engine's sidecar: `model.engine.json` for `model.engine`."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> EngineSidecar:
    """Return the sidecar of an engine file; see `load_engine`."""
    return load_engine(path)[0]


def load_engine(path: Path) -> tuple[EngineSidecar, bytes]:
    """Return the sidecar of an engine file and the bytes of the engine.

    The returned bytes are the ones whose size and hash were checked. Raise `ModelError` if a file
    is missing, unreadable or invalid, or if the engine is not the one that the sidecar describes.
    """
    sidecar_file = sidecar_path(path)
    try:
        with sidecar_file.open("rb") as handle:
            text = handle.read(MAX_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"{path}: its sidecar {sidecar_file.name} is missing, so it cannot be checked and is "
            f"not run; copy both files, or {_REMEDY}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{sidecar_file} cannot be read ({error}); {_REMEDY}") from None
    sidecar = EngineSidecar.from_json(text, str(sidecar_file))
    remedy = f"copy both files again, or build it again: {sidecar.rebuild_command}"
    try:
        size = path.stat().st_size
        if size != sidecar.engine_bytes:
            raise ModelError(
                f"{path} has {size} bytes, but {sidecar_file.name} describes an engine of "
                f"{sidecar.engine_bytes} bytes; {remedy}"
            )
        plan = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(plan).hexdigest()
    if digest != sidecar.engine_sha256:
        raise ModelError(
            f"{path} is not the engine that {sidecar_file.name} describes (sha256 {digest[:12]}… "
            f"instead of {sidecar.engine_sha256[:12]}…) and is not run; {remedy}"
        )
    return sidecar, plan


def write_sidecar(engine: Path, sidecar: EngineSidecar) -> None:
    """Write an engine's sidecar atomically."""
    write_text(sidecar_path(engine), sidecar.to_json())


def can_write_sidecar(engine: Path) -> bool:
    """Return whether the sidecar can be updated; disks in vehicles are often read-only."""
    return os.access(engine.parent, os.W_OK)


def check_can_run(sidecar: EngineSidecar, *, flavor_version: str, compute_capability: str) -> None:
    """Check that an engine fits the installed library and a GPU of a compute capability ("8.6").

    An engine runs only with the library version that built it; version-compatible engines of
    TensorRT also run with later versions. Raise `ModelError` if it does not fit.
    """
    built_with, installed = sidecar.flavor_version, flavor_version
    compatible = sidecar.options.get("version_compatible") and _version_numbers(
        installed
    ) >= _version_numbers(built_with)
    if installed != built_with and not compatible:
        package = sidecar.flavor.replace("_", "-")
        raise ModelError(
            f"the engine was built by {sidecar.flavor} {built_with}, but {installed} is installed; "
            f"build it again: {sidecar.rebuild_command}, or run: "
            f"pip install '{package}=={built_with}'"
        )
    architecture = f"SM{compute_capability.replace('.', '')}"
    targets = sidecar.compute_capabilities
    capability = _version_numbers(compute_capability)
    if not targets:
        fits = sidecar.flavor != "tensorrt_rtx" or capability >= _MIN_RTX_CAPABILITY
    elif sidecar.options.get("hardware_compatible"):
        fits = capability >= _AMPERE
    else:
        fits = architecture in targets
    if not fits:
        raise ModelError(
            f"the engine was built for {', '.join(targets) or 'SM80 and later'}, but this GPU is "
            f"{architecture}; build it again for this GPU: {sidecar.rebuild_command}"
        )


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
