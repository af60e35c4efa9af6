"""Export a run: the fp32 ONNX file, other precisions, TensorRT engines, a Triton repository.

`run_export` does what `fada export` does. It imports torch only to export a run, and the `onnx`
package only to write ONNX files, so that engines can be built on machines without them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fada_deploy.common.errors import (
    FadaError,
    MissingExtraError,
    ModelError,
    ToleranceError,
    UsageError,
)
from fada_deploy.common.runs import BUILTIN_FILE, EXPORTS, final_weights, newest_run
from fada_deploy.common.system import require_package
from fada_deploy.export.early_checks import (
    CHECKPOINT_SUFFIXES,
    check_options,
    label_space_of_weights,
    require_weights_file,
)
from fada_deploy.export.options import EngineOptions, ExportOptions, Variant
from fada_deploy.export.result import ExportResult, RefusedFilesError, VerifiedEngine
from fada_deploy.export.stale import stale_exports
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path

if TYPE_CHECKING:
    from fada_deploy.data.base import FrameDataset
    from fada_deploy.export.calibration_frames import TargetOfRun
    from fada_deploy.export.convert import Calibration, ConvertedModel
    from fada_deploy.export.exporter import ExportedModel
    from fada_deploy.export.verify import VerificationLimits
    from fada_deploy.runtime.parity import ParityResult

__all__ = ["EngineOptions", "ExportOptions", "ExportResult", "RefusedFilesError", "run_export"]

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
_DEFAULTS = ExportOptions()
_FP32 = Variant("fp32")


def run_export(source: Path | None = None, options: ExportOptions = _DEFAULTS) -> ExportResult:
    """Write the files of `options` from `source`.

    Each file is compared with the trained network on real frames before it is saved under its final
    name. A file that exceeds a tolerance is not saved; the others are still written.

    Args:
        source: Folder of a run or of a stage, a weights file, or the ONNX file of an earlier
            export; None for the newest run under `runs/`.
        options: What to write.

    Raises:
        RefusedFilesError: A converted file or an engine exceeded a tolerance; `error.result` has
            the files that were written.
        ToleranceError: The fp32 file exceeded a tolerance, so nothing was written.
        UsageError: `source` and `options` do not fit together; nothing was written.
        ModelError: `source` does not exist or cannot be exported.
        DataError: There are no frames to verify or calibrate with.
        MissingExtraError: A package is not installed.
    """
    from fada_deploy.export.calibration_frames import target_of

    variants = options.variants()
    is_onnx = source is not None and source.suffix == ".onnx"
    if is_onnx and source is not None and not source.is_file():
        raise ModelError(f"{source}: no such file; name a run, or the fp32 ONNX file of an export")
    if any(variant.precision != "fp32" for variant in variants):
        require_package("onnx", "onnx")
    conversions = [variant for variant in variants if variant != _FP32]
    verification: Mapping[str, ParityResult] = {}
    if is_onnx and source is not None:
        model = source
        if own_variant := _check_file(source, options, variants):
            variants, conversions = [own_variant], []
        metadata = read_metadata(model)
        check_options(options, head=metadata.head, space=metadata.label_space)
        target = target_of(source, metadata.provenance)
    else:
        weights, out = _weights_and_output(source, options)
        exported = _export_fp32(weights, out, options, variants)
        model, verification = exported.model, exported.verification
        target = target_of(weights, exported.provenance)
    refused: list[str] = []
    converted: list[ConvertedModel] = []
    engines: list[VerifiedEngine] = []
    try:
        _convert(model, target, options, conversions, converted, refused)
        files = [model, *(c.model for c in converted)]
        _build_engines(files, options, variants, engines, refused)
        triton = None if refused else _write_triton(files, engines, options)
    except FadaError:
        for message in refused:
            logger.warning("%s", message)
        raise
    finally:
        if not is_onnx:
            written = {model, *(c.model for c in converted), *(e.path for e in engines)}
            _warn_about_stale_files(model, written)
    if refused and options.triton is not None:
        logger.warning("no Triton repository was written, because a file was refused")
    result = ExportResult(
        model=model,
        reference=reference_path(model),
        verification=verification,
        converted=tuple(converted),
        engines=tuple(engines),
        triton=triton,
        refused=tuple(refused),
    )
    if refused:
        raise RefusedFilesError(result)
    return result


def _warn_about_stale_files(model: Path, written: set[Path]) -> None:
    if stale := stale_exports(model, written):
        logger.warning(
            "the reference outputs of %s were replaced; export these files again", ", ".join(stale)
        )


def _check_file(model: Path, options: ExportOptions, variants: list[Variant]) -> Variant | None:
    """Raise `UsageError` if `options` do not fit an ONNX file that is already exported.

    Return the file's variant if it is not fp32 and no other precision is asked for.
    """
    metadata = read_metadata(model)
    defaults = {"head": _DEFAULTS.head, "size_hw": None, "batch": None, "out": None}
    changed = [name for name, default in defaults.items() if getattr(options, name) != default]
    if changed:
        names = ", ".join(f"--{name.removesuffix('_hw')}" for name in changed)
        raise UsageError(
            f"{model} is already exported, so {names} has no effect; leave it out, or export the "
            "run again"
        )
    if not (options.engine or options.triton or variants != [_FP32]):
        raise UsageError(
            f"{model} is already exported; choose what to make of it with --precision, --trt or "
            "--triton"
        )
    if metadata.precision == "fp32" or variants != [_FP32]:
        return None
    if options.engine and metadata.hardware_target == "cpu":
        raise UsageError(
            f"{model} is quantized for CPUs; build the engine from the file quantized for "
            "tensorrt instead"
        )
    return Variant(metadata.precision, metadata.hardware_target)


def _export_fp32(
    weights: Path, out: Path, options: ExportOptions, variants: list[Variant]
) -> ExportedModel:
    """Export the network of a run to fp32 ONNX."""
    space = None if options.data is None else label_space_of_weights(weights)
    check_options(options, head=options.head, space=space)
    try:
        from fada_deploy.export.exporter import export_onnx
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from None
    # Without fp32 among the precisions, custom tolerances are meant for the converted files only.
    tolerance = _limits(options).tolerance("fp32") if _FP32 in variants else None
    exported = export_onnx(
        weights,
        out,
        head=options.head,
        size_hw=options.size_hw,
        batch=options.batch,
        frames=options.calibration,
        tolerance=tolerance,
    )
    for backend, result in exported.verification.items():
        logger.info("%s: %s", backend, result.text())
    logger.info("wrote %s and %s", exported.model, exported.reference)
    return exported


def _weights_and_output(source: Path | None, options: ExportOptions) -> tuple[Path, Path]:
    """Return the weights file of a run, and the path of the ONNX file to write."""
    run = source or newest_run()
    if run.is_file() or run.suffix in CHECKPOINT_SUFFIXES:
        require_weights_file(run)
    weights = final_weights(run)
    if weights == BUILTIN_FILE:
        raise UsageError(
            "the built-in model is already exported, as an int8 file; run it with --model builtin, "
            "or adapt it first: fada adapt builtin --tgt VIDEO"
        )
    if options.out is not None:
        return weights, options.out
    if run.is_file():
        raise UsageError(f"{run} is a weights file; name the output with --out model.onnx")
    # The two heads have different names, because converted files lie next to the file that they
    # were converted from.
    name = "model.onnx" if options.head == "logits" else "model.labels.onnx"
    folder = weights.parent.parent if run == weights.parent else run
    return weights, folder / EXPORTS / name


def _convert(
    model: Path,
    target: TargetOfRun,
    options: ExportOptions,
    variants: list[Variant],
    converted: list[ConvertedModel],
    refused: list[str],
) -> None:
    """Convert the fp32 file to each variant; `target` says where its frames are."""
    if not variants:
        return
    from fada_deploy.export.convert import convert_precision

    calibration = _calibration(model, target, options)
    limits = _limits(options, _labeled_data(model, options))

    def convert(variant: Variant) -> ConvertedModel:
        target = "" if variant.hardware_target == "any" else f" for {variant.hardware_target}"
        logger.info("converting %s to %s%s", model.name, variant.precision, target)
        made = convert_precision(
            model,
            variant.precision,
            hardware_target=variant.hardware_target,
            calibration=calibration,
            limits=limits,
        )
        for backend, result in made.verification.items():
            logger.info("%s: %s", backend, result.text())
        if made.accuracy is not None:
            logger.info(made.accuracy.text())
        logger.info("wrote %s (layers: %s)", made.model, _counts(made.layers))
        return made

    _unless_refused(convert, variants, converted, refused)


def _calibration(model: Path, target: TargetOfRun, options: ExportOptions) -> Calibration:
    from fada_deploy.export.calibration_frames import target_frames
    from fada_deploy.export.convert import Calibration

    metadata = read_metadata(model)
    return Calibration(
        lambda: target_frames(
            target,
            metadata.label_space,
            options.calibration,
            count=options.calibration_frames,
            held_out=False,
            purpose="int8 calibration",
        ),
        options.calibration_method,
        options.float_layers,
    )


def _labeled_data(model: Path, options: ExportOptions) -> FrameDataset | None:
    from fada_deploy.data import open_dataset

    if options.data is None:
        return None
    space = read_metadata(model).label_space
    return open_dataset(options.data, options.data_root, split="val", space=space)


def _limits(options: ExportOptions, dataset: FrameDataset | None = None) -> VerificationLimits:
    from fada_deploy.export.verify import VerificationLimits

    return VerificationLimits(
        options.min_equal_labels, options.max_logit_error, dataset, options.max_miou_drop
    )


def _build_engines(
    files: list[Path],
    options: ExportOptions,
    variants: list[Variant],
    engines: list[VerifiedEngine],
    refused: list[str],
) -> None:
    """Build an engine of each file in a requested precision, except int8 files for CPUs."""
    if options.engine is None:
        return
    from fada_deploy.export.engines import verify_new_engine
    from fada_deploy.export.to_tensorrt import build_engine

    engine_options = options.engine
    precisions = {variant.precision for variant in variants}

    def is_requested(path: Path) -> bool:
        metadata = read_metadata(path)
        return metadata.hardware_target != "cpu" and metadata.precision in precisions

    def build(path: Path) -> VerifiedEngine:
        # Without reference outputs the engine could never be verified.
        ReferenceOutputs.for_model(path, read_metadata(path))
        built = build_engine(path, path.with_suffix(".engine"), engine_options)
        logger.info(
            "wrote %s and its .json (convolutions: %s)", built.path, _counts(built.sidecar.layers)
        )
        tolerance = _limits(options).tolerance(read_metadata(path).precision)
        return VerifiedEngine(built.path, verify_new_engine(built.path, tolerance))

    _unless_refused(build, [path for path in files if is_requested(path)], engines, refused)


def _write_triton(
    files: list[Path], engines: list[VerifiedEngine], options: ExportOptions
) -> Path | None:
    """Write a Triton repository with the last TensorRT engine, or else the last ONNX file."""
    if options.triton is None:
        return None
    from fada_deploy.export.triton import write_repository
    from fada_deploy.runtime.backends.engine_file import read_engine

    # Triton cannot run TensorRT-RTX engines.
    servable = [e.path for e in engines if read_engine(e.path).flavor == "tensorrt"]
    repository = write_repository((servable or files)[-1], options.triton)
    logger.info("wrote the Triton repository %s", repository)
    return repository


def _unless_refused(
    make: Callable[[S], T], items: Iterable[S], results: list[T], refused: list[str]
) -> None:
    """Add `make` of each item to `results`, or the message of its `ToleranceError` to `refused`."""
    for item in items:
        try:
            results.append(make(item))
        except ToleranceError as error:
            # Reported at the end, by `RefusedFilesError`.
            refused.append(str(error))


def _counts(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in layers.items())
