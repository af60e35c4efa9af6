"""Build a TensorRT engine and its sidecar from an exported ONNX file.

`tensorrt` 10 and 11 build on the GPU that will run the engine; `tensorrt_rtx` builds on any
machine. Networks are strongly typed: the precision of the engine is that of the ONNX file, and the
builder's list of layers is used to check it. Needs neither torch nor the `onnx` package.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fada_deploy._version import __version__
from fada_deploy.common.errors import DeviceError, FadaError, ModelError, UsageError
from fada_deploy.common.files import atomic_path, cache_folder, sha256
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.options import EngineOptions
from fada_deploy.export.trt_layers import check_precision, layers_from_log, layers_from_network
from fada_deploy.export.trt_progress import build_serialized
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    EngineSidecar,
    EngineTensor,
    write_sidecar,
)
from fada_deploy.runtime.backends.gpu import Gpu, find_gpu, supports_rtx
from fada_deploy.runtime.backends.onnx_file import read_model
from fada_deploy.runtime.backends.trt_library import BuilderContext, error_summary, open_builder

logger = logging.getLogger(__name__)

_DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was written, and its sidecar."""

    path: Path
    sidecar: EngineSidecar


def build_engine(model: Path, out: Path, options: EngineOptions = _DEFAULTS) -> BuiltEngine:
    """Build `out` (.engine or .plan) and its sidecar from an exported ONNX file.

    The engine is not run, so the sidecar's verification is "not_run". If anything fails, nothing is
    written.

    Raises:
        ModelError: The ONNX file cannot be read or built.
        ToleranceError: The engine is not in the precision of the ONNX file.
        UsageError: `out` or an option is not allowed.
        DeviceError: The library cannot build on this machine.
        MissingExtraError: The library is not installed.
    """
    if out.suffix not in ENGINE_SUFFIXES:
        raise UsageError(
            f"the engine file must end with {' or '.join(sorted(ENGINE_SUFFIXES))}, got {out}"
        )
    try:
        return _build(model, out, options)
    except (FadaError, KeyboardInterrupt) as error:
        # The traceback's frames hold objects of the library. If they were destroyed by a later
        # garbage collection, that could happen inside a callback of the library, under its locks.
        raise error.with_traceback(None) from None


def check_can_build(options: EngineOptions) -> None:
    """Raise the error of `build_engine` if the library of `options` cannot build here."""
    try:
        builder_context = open_builder(options.flavor)
        trt, flavor = builder_context.trt, builder_context.flavor
        options.check_flavor(flavor)
        _require_supported_gpu(trt, flavor, options, find_gpu())
        if flavor == "tensorrt_rtx":
            _check_compute_capabilities(trt, options.compute_capabilities)
    except FadaError as error:
        raise error.with_traceback(None) from None


def _build(model: Path, out: Path, options: EngineOptions) -> BuiltEngine:
    metadata = read_model(model)
    builder_context = open_builder(options.flavor)
    options.check_flavor(builder_context.flavor)
    version = str(builder_context.trt.__version__)
    logger.info("building %s with %s %s from %s", out, builder_context.flavor, version, model)
    for line in options.warnings(builder_context.flavor):
        logger.warning(line)
    gpu = find_gpu()
    _require_supported_gpu(builder_context.trt, builder_context.flavor, options, gpu)
    # The network points to weights that the parser owns, so the parser has to live as long.
    network, _parser = _parse(builder_context, model)
    config = builder_context.builder.create_builder_config()
    timing_cache = _configure(builder_context, config, network, metadata, options, gpu)
    plan = build_serialized(builder_context, network, config, str(model))
    layers, layers_source = _layers(builder_context, network)
    float_layers = (metadata.quantization or {}).get("float_layers") or ()
    check_precision(metadata.precision, layers, float_layers=len(float_layers))
    if timing_cache is not None:
        _save_timing_cache(config, timing_cache)
    sidecar = EngineSidecar(
        flavor=builder_context.flavor,
        flavor_version=version,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_name=model.name,
        onnx_sha256=sha256(model),
        metadata=metadata,
        io=_tensors(network),
        precision=metadata.precision,
        layers=layers,
        layers_source=layers_source,
        compute_capabilities=_compute_capabilities(builder_context.flavor, options, gpu),
        gpu=gpu.name if gpu else "",
        profile=None if metadata.batch else options.batch,
        options=_recorded_options(options),
        versions=_versions(builder_context),
    )
    with atomic_path(out) as temporary:
        temporary.write_bytes(plan)
        # The sidecar is written first: an engine without a matching sidecar is never run.
        write_sidecar(out, sidecar)
    return BuiltEngine(out, sidecar)


def _parse(builder_context: BuilderContext, model: Path) -> tuple[Any, Any]:
    """Return the network and its parser; raise `ModelError` with all errors of the parser."""
    trt, builder = builder_context.trt, builder_context.builder
    # Without this flag TensorRT 10 builds weakly typed networks; later versions accept it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder_context.log)
    if not parser.parse_from_file(str(model)):
        lines = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            # The description of an unknown operator does not contain its name.
            node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
            lines.append(f"{' '.join(error.desc().split())}{f' ({node})' if node else ''}")
        errors = "; ".join(lines) or error_summary(builder_context.log.errors)
        raise ModelError(f"{model}: TensorRT cannot parse it: {errors}")
    return network, parser


def _configure(
    builder_context: BuilderContext,
    config: Any,
    network: Any,
    metadata: ModelMetadata,
    options: EngineOptions,
    gpu: Gpu | None,
) -> Path | None:
    """Configure the build; return the path of the timing cache, None for TensorRT-RTX."""
    trt, builder = builder_context.trt, builder_context.builder
    config.builder_optimization_level = options.optimization_level
    # TF32 rounds more than the tolerance of float32 allows; fp16 is the faster precision.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Layers and their types are logged at this verbosity only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if metadata.batch is None:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            profile.set_shape(tensor.name, *((b, *tuple(tensor.shape)[1:]) for b in options.batch))
        config.add_optimization_profile(profile)
    if builder_context.flavor == "tensorrt_rtx":
        _set_compute_capabilities(trt, config, options.compute_capabilities)
        return None
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    path, data = options.timing_cache, b""
    try:
        path = path or _default_timing_cache(builder_context, gpu)
        data = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        # No home folder, or a file that cannot be read.
        logger.warning("building without a timing cache (%s)", error)
        path = None
    # create_timing_cache returns None for damaged data; the build then starts without timings.
    config.set_timing_cache(
        config.create_timing_cache(data) or config.create_timing_cache(b""), False
    )
    return path


def _require_supported_gpu(trt: Any, flavor: str, options: EngineOptions, gpu: Gpu | None) -> None:
    """Raise `DeviceError` if an engine for this machine's GPU would be built and then not load."""
    if flavor != "tensorrt_rtx" or gpu is None:
        return
    if options.compute_capabilities not in ((), ("CURRENT",)):
        return
    supported = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if supports_rtx(gpu, supported):
        return
    raise DeviceError(
        f"tensorrt_rtx does not support {gpu.name} ({gpu.architecture}), only "
        f"{', '.join(supported)} and later ones; use `fada infer --device cuda` with ONNX Runtime "
        "(pip install onnxruntime-gpu) or --trt-flavor tensorrt on this machine, or name the GPU "
        "that the engine is for with --compute-capability"
    )


def _check_compute_capabilities(trt: Any, names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that TensorRT-RTX does not know, or that excludes others."""
    members = trt.ComputeCapability.__members__
    known = [name for name in members if name.startswith("SM") or name == "CURRENT"]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown compute capability {name!r}; use one of {', '.join(known)}")
    if "CURRENT" in names and len(names) > 1:
        raise UsageError(
            "compute capability CURRENT cannot be combined with others; leave it out, or use it "
            "alone"
        )


def _set_compute_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Set the GPUs that TensorRT-RTX builds for, by default all that it knows."""
    _check_compute_capabilities(trt, names)
    members = trt.ComputeCapability.__members__
    if names:
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(members[name], index)


def _layers(builder_context: BuilderContext, network: Any) -> tuple[dict[str, int], str]:
    """Return the convolutions by precision, and their source: "builder" or "network"."""
    counts = layers_from_log(builder_context.log.layers)
    if counts or builder_context.flavor == "tensorrt_rtx":
        return dict(counts), "builder"
    # The format of the log differs between versions, and this log names no convolution. A strongly
    # typed network is built as it is defined, so its types are the best remaining source.
    return dict(layers_from_network(builder_context.trt, network)), "network"


def _tensors(network: Any) -> tuple[EngineTensor, ...]:
    """Return the network's inputs and outputs."""

    def describe(tensor: Any, kind: Literal["in", "out"]) -> EngineTensor:
        shape = tuple(int(n) for n in tensor.shape)
        return EngineTensor(tensor.name, kind, tensor.dtype.name.lower(), shape)

    return (
        *(describe(network.get_input(i), "in") for i in range(network.num_inputs)),
        *(describe(network.get_output(i), "out") for i in range(network.num_outputs)),
    )


def _compute_capabilities(flavor: str, options: EngineOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities that the engine runs on, () for the library's default."""
    if flavor == "tensorrt_rtx" and options.compute_capabilities != ("CURRENT",):
        return options.compute_capabilities
    return (gpu.architecture,) if gpu else ()


def _recorded_options(options: EngineOptions) -> dict[str, Any]:
    return {
        "level": options.optimization_level,
        "workspace_mib": options.workspace_mib,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
    }


def _versions(builder_context: BuilderContext) -> dict[str, str]:
    return {
        "fada_deploy": __version__,
        builder_context.flavor: str(builder_context.trt.__version__),
        "python": platform.python_version(),
    }


def _default_timing_cache(builder_context: BuilderContext, gpu: Gpu | None) -> Path:
    """Return the path of the timing cache; timings are valid for one version and one GPU only."""
    name = gpu.name.replace(" ", "-").replace("/", "-") if gpu else "unknown"
    return (
        cache_folder() / f"{builder_context.flavor}-{builder_context.trt.__version__}-{name}.timing"
    )


def _save_timing_cache(config: Any, path: Path) -> None:
    """Write the timing cache; a failure only makes the next build slower."""
    cache = config.get_timing_cache()
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))
    except OSError as error:
        logger.warning("the timing cache %s cannot be written (%s)", path, error.strerror)
