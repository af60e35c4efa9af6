"""`fada export --trt`: ONNX file → engine and its sidecar. Needs neither torch, the `onnx` package nor the run.

One path for `tensorrt` 10 and 11, which build on the GPU that is to run the engine, and `tensorrt_rtx`, which
builds anywhere. The precision is the ONNX file's: networks are strongly typed, and the builder's list of layers
says whether that is what it made.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fada_deploy import __version__
from fada_deploy.common.errors import FadaError, ModelError, UsageError
from fada_deploy.common.files import atomic_path, cache_folder, sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.trt_layers import check_precision, layers_of_log, layers_of_network
from fada_deploy.export.trt_progress import build_in_sight
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    EngineSidecar,
    EngineTensor,
    write_sidecar,
)
from fada_deploy.runtime.backends.gpu import Gpu, find_gpu
from fada_deploy.runtime.backends.onnx_file import read_model
from fada_deploy.runtime.backends.trt_library import BuilderContext, open_builder, said

Say = Callable[[str], None]
Batch = tuple[int, int, int]


@dataclass(frozen=True)
class BuiltEngine:
    """The engine that was written, and what its sidecar says."""

    path: Path
    sidecar: EngineSidecar


@dataclass(frozen=True)
class Options:
    """How to build: `batch` is the least, usual and largest one of a file with a dynamic batch."""

    batch: Batch
    compute_capabilities: tuple[str, ...]
    level: int
    workspace_mib: int | None
    timing_cache: Path | None
    version_compatible: bool
    hardware_compatible: bool

    def check(self, flavor: str) -> None:
        """Raise `UsageError` for what this flavor cannot do, and what nobody can."""
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise UsageError(
                f"a batch of {'/'.join(map(str, self.batch))} is none; give 1 <= MIN <= OPT <= MAX"
            )
        if not 0 <= self.level <= 5:
            raise UsageError(f"no optimization level {self.level}; there are 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"a workspace of {self.workspace_mib} MiB is none; it is at least 1")
        if flavor == "tensorrt_rtx":
            for name in ("version_compatible", "hardware_compatible"):
                if getattr(self, name):
                    raise UsageError(
                        f"{name.replace('_', '-')} engines cannot be built by tensorrt_rtx; leave it out, or "
                        "build with tensorrt: pip install 'fada_deploy[tensorrt]'"
                    )
        elif self.compute_capabilities:
            raise UsageError(
                "tensorrt builds for the GPU it runs on and takes no list of compute capabilities; leave it out, "
                "or build with tensorrt_rtx: pip install 'fada_deploy[tensorrt-rtx]'"
            )

    def notes(self, flavor: str) -> list[str]:
        """Say what of this has no use, or one that may surprise."""
        found = []
        if self.version_compatible:
            found.append(
                "a version-compatible engine carries host code, which this package's runtime does not run"
            )
        if self.timing_cache is not None and flavor == "tensorrt_rtx":
            found.append(
                "tensorrt_rtx measures nothing while it builds, so there is no timing cache to keep"
            )
        return found


def build_engine(
    model: Path,
    out: Path,
    *,
    flavor: str = "auto",
    batch: Batch = (1, 1, 8),
    compute_capabilities: Sequence[str] = (),
    level: int = 3,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    say: Say = print,
) -> BuiltEngine:
    """Build `out` (.engine) and its sidecar from an exported ONNX file; nothing is written unless all is well.

    `flavor` is tensorrt, tensorrt_rtx or auto: the first of them that can build here. `batch` is ignored where
    the file's is fixed. `compute_capabilities` ("SM86" …) are for RTX; none means its own choice. `timing_cache`
    keeps measured times from build to build, by default in the user's cache; RTX measures none. The engine is
    not run here: its verification is "not_run". Raise `ModelError` for a file that does not build, `ToleranceError`
    when it is not built in the file's precision, `UsageError`, `DeviceError`, `MissingExtraError`.
    """
    if out.suffix not in ENGINE_SUFFIXES:
        raise UsageError(f"{out}: an engine ends in {' or '.join(sorted(ENGINE_SUFFIXES))}")
    options = Options(
        batch,
        tuple(compute_capabilities),
        level,
        workspace_mib,
        timing_cache,
        version_compatible,
        hardware_compatible,
    )
    try:
        return _build(model, out, flavor, options, say)
    except (FadaError, KeyboardInterrupt) as error:
        # The frames below hold the library's objects. Kept by a traceback they would end whenever garbage is
        # collected, which may be inside a call that the library makes to us, under its locks.
        raise error.with_traceback(None) from None


def _build(model: Path, out: Path, flavor: str, options: Options, say: Say) -> BuiltEngine:
    metadata = read_model(model)
    shop = open_builder(flavor)
    options.check(shop.flavor)
    say(f"building {out} with {shop.flavor} {shop.trt.__version__} from {model}")
    for note in options.notes(shop.flavor):
        say(f"note: {note}")
    gpu = find_gpu()
    # The parser holds weights that the network points to.
    network, _parser = _parse(shop, model)
    config = shop.builder.create_builder_config()
    cache = _configure(shop, config, network, metadata, options, gpu)
    plan = build_in_sight(shop, network, config, str(model))
    layers, seen_in = _layers(shop, network)
    left_out = (metadata.quantization or {}).get("left_out") or ()
    check_precision(metadata.precision, layers, left_out=len(left_out))
    if cache is not None:
        _keep(config, cache)
    sidecar = EngineSidecar(
        flavor=shop.flavor,
        flavor_version=str(shop.trt.__version__),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_name=model.name,
        onnx_sha256=sha256(model),
        metadata=metadata,
        io=_tensors(network),
        precision=metadata.precision,
        layers=layers,
        seen_in=seen_in,
        compute_capabilities=_built_for(shop.flavor, options, gpu),
        gpu=gpu.name if gpu else "",
        profile=None if metadata.batch else options.batch,
        options=_told(options),
        versions=_versions(shop),
    )
    with atomic_path(out) as temporary:
        temporary.write_bytes(plan)
        # The sidecar first: an engine that is there without it, or beside another's, is not run.
        write_sidecar(out, sidecar)
    return BuiltEngine(out, sidecar)


def _parse(shop: BuilderContext, model: Path) -> tuple[Any, Any]:
    """Return the file's network and the parser, which has to live as long; raise `ModelError` with all it says."""
    trt, builder = shop.trt, shop.builder
    # The flag is the one spelling that all versions take; without it TensorRT 10 builds weakly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, shop.log)
    if not parser.parse_from_file(str(model)):
        lines = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            # Of an operator it does not know, only these say which.
            named = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
            lines.append(f"{' '.join(error.desc().split())}{f' ({named})' if named else ''}")
        raise ModelError(
            f"{model}: TensorRT does not take it: {'; '.join(lines) or said(shop.log.errors)}"
        )
    return network, parser


def _configure(
    shop: BuilderContext,
    config: Any,
    network: Any,
    metadata: ModelMetadata,
    options: Options,
    gpu: Gpu | None,
) -> Path | None:
    """Set the builder up; return where the timing cache is kept, None where there is none."""
    trt, builder = shop.trt, shop.builder
    config.builder_optimization_level = options.level
    # The list of layers and their types is logged at this level only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if metadata.batch is None:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            profile.set_shape(tensor.name, *((b, *tuple(tensor.shape)[1:]) for b in options.batch))
        config.add_optimization_profile(profile)
    if shop.flavor == "tensorrt_rtx":
        _target(trt, config, options.compute_capabilities)
        return None
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    path = options.timing_cache or _cache_path(shop, gpu)
    kept = path.read_bytes() if path.is_file() else b""
    # A damaged one gives nothing, and the builder then measures anew.
    config.set_timing_cache(
        config.create_timing_cache(kept) or config.create_timing_cache(b""), False
    )
    return path


def _target(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Tell RTX which compute capabilities to build for; raise `UsageError` for one it does not know."""
    members = trt.ComputeCapability.__members__
    known = [name for name in members if name.startswith("SM") or name == "CURRENT"]
    for name in names:
        if name not in known:
            raise UsageError(f"no compute capability {name!r}; there are {', '.join(known)}")
    if "CURRENT" in names and len(names) > 1:
        raise UsageError(
            "compute capability CURRENT stands alone; leave the others out, or name them all"
        )
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(members[name], index)


def _layers(shop: BuilderContext, network: Any) -> tuple[dict[str, int], str]:
    """Return the convolutions by precision, and who says so: the builder, or the network it was given."""
    if (found := layers_of_log(shop.log.layers)) or shop.flavor == "tensorrt_rtx":
        return dict(found), "builder"
    # Logs differ from version to version, and this one names no convolution. A strongly typed network is
    # built as it is defined, so its own types are the next best thing to ask.
    return dict(layers_of_network(shop.trt, network)), "network"


def _tensors(network: Any) -> tuple[EngineTensor, ...]:
    """Return the network's inputs and outputs."""
    inputs = [("in", network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [("out", network.get_output(i)) for i in range(network.num_outputs)]
    return tuple(
        EngineTensor(t.name, kind, t.dtype.name.lower(), tuple(int(n) for n in t.shape))
        for kind, t in (*inputs, *outputs)
    )


def _built_for(flavor: str, options: Options, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities that the engine runs on, () where the library chose them."""
    if flavor == "tensorrt_rtx" and options.compute_capabilities != ("CURRENT",):
        return options.compute_capabilities
    return (gpu.architecture,) if gpu else ()


def _told(options: Options) -> dict[str, Any]:
    return {
        "level": options.level,
        "workspace_mib": options.workspace_mib,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
    }


def _versions(shop: BuilderContext) -> dict[str, str]:
    return {
        "fada_deploy": __version__,
        shop.flavor: str(shop.trt.__version__),
        "python": platform.python_version(),
    }


def _cache_path(shop: BuilderContext, gpu: Gpu | None) -> Path:
    """Return where times are kept: measured by one version on one card, and of no use to others."""
    card = gpu.name.replace(" ", "-").replace("/", "-") if gpu else "unknown"
    return cache_folder() / f"{shop.flavor}-{shop.trt.__version__}-{card}.timing"


def _keep(config: Any, path: Path) -> None:
    """Write the timing cache; a disk that takes none costs only time."""
    cache = config.get_timing_cache()
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))
    except OSError:
        return
