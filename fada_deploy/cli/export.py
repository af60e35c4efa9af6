"""`fada export`: export a run to ONNX files and TensorRT engines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log, warn_about_unused
from fada_deploy.cli.options import (
    DATA_ROOT_OPTION,
    JSON_OPTION,
    MAX_LOGIT_ERROR_OPTION,
    MIN_EQUAL_LABELS_OPTION,
    SIZE,
    FiniteFloat,
    named_options,
)
from fada_deploy.common.errors import UsageError

if TYPE_CHECKING:
    from fada_deploy.export.options import EngineOptions, ExportOptions
    from fada_deploy.export.result import ExportResult

_ENGINE_OPTIONS = (
    "trt_flavor", "trt_batch", "trt_level", "trt_workspace", "trt_timing_cache",
    "version_compatible", "hardware_compatible", "compute_capability",
)  # fmt: skip
_INT8_OPTIONS = ("hardware_target", "calibration_method", "calibration_frames", "float_layers")


@click.command("export")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="ONNX file to write. [default: RUN/export/model.onnx, or model.labels.onnx with --head "
    "labels]",
)
@click.option(
    "--head",
    type=click.Choice(["logits", "labels"]),
    default="logits",
    show_default=True,
    help="Output of the model: logits (upsampled by the fada runtime) or labels (upsampling and "
    "argmax inside the graph, for other runtimes and Triton).",
)
@click.option("--size", type=SIZE, help="Input size of the model. [default: as trained]")
@click.option(
    "--batch",
    metavar="N",
    default="dynamic",
    show_default=True,
    help="Frames per inference call: dynamic, or a fixed number.",
)
@click.option(
    "--precision",
    metavar="NAME,…",
    default="fp32",
    show_default=True,
    help="Precisions to write: fp32, fp16, bf16 and int8.",
)
@click.option(
    "--hardware-target",
    type=click.Choice(["cpu", "tensorrt", "both"]),
    default="both",
    show_default=True,
    help="int8: hardware to quantize for; CPUs and TensorRT need different files.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Images or video that supply the verification frames and the int8 calibration frames. "
    "[default: the target data of the run]",
)
@click.option(
    "--calibration-method",
    type=click.Choice(["percentile", "minmax", "entropy"]),
    default="percentile",
    show_default=True,
    help="int8: how the ranges of the activations are chosen.",
)
@click.option(
    "--calibration-frames",
    type=click.IntRange(2),
    metavar="N",
    default=64,
    show_default=True,
    help="int8: number of calibration frames.",
)
@click.option(
    "--float-layers",
    metavar="N",
    default="auto",
    show_default=True,
    help="int8: number of sensitive layers that stay in float32; auto chooses the number by "
    "measured sensitivity.",
)
@click.option(
    "--data",
    metavar="NAME|TOML",
    help="Labeled data set on which other precisions are compared with fp32.",
)
@DATA_ROOT_OPTION
@click.option(
    "--max-miou-drop",
    type=FiniteFloat(-100, 100),
    metavar="POINTS",
    default=2.0,
    show_default=True,
    help="Largest allowed drop of the mIoU on --data, in percentage points.",
)
@MIN_EQUAL_LABELS_OPTION
@MAX_LOGIT_ERROR_OPTION
@click.option("--trt", is_flag=True, help="Also build a TensorRT engine of each file.")
@click.option(
    "--trt-flavor",
    type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]),
    default="auto",
    show_default=True,
    help="TensorRT: library to build with, TensorRT or TensorRT-RTX; auto takes the first that can "
    "build here.",
)
@click.option(
    "--trt-batch",
    metavar="MIN,OPT,MAX",
    default="1,1,8",
    show_default=True,
    help="TensorRT: minimum, optimal and maximum batch size.",
)
@click.option(
    "--trt-level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="TensorRT: builder optimization level, from 0 (fastest build) to 5 (fastest engine).",
)
@click.option(
    "--trt-workspace",
    type=click.IntRange(1),
    metavar="MIB",
    help="TensorRT: memory limit of the builder. [default: that of the library]",
)
@click.option(
    "--trt-timing-cache",
    type=click.Path(path_type=Path),
    help="TensorRT: file that keeps kernel timings for later builds. [default: in the "
    "user's cache folder]",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="TensorRT: the engine also loads in later TensorRT versions. `fada infer` does not run "
    "such an engine, because it contains host code.",
)
@click.option(
    "--hardware-compatible",
    is_flag=True,
    help="TensorRT: the engine also runs on other GPUs (Ampere and later).",
)
@click.option(
    "--compute-capability",
    multiple=True,
    metavar="SMXX",
    help="TensorRT-RTX: GPU to build for, for example SM89; may be repeated.",
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write a model repository for the Triton Inference Server; needs a model with --head "
    "labels.",
)
@click.option(
    "--list", "list_only", is_flag=True, help="List what this machine can build and run, and exit."
)
@JSON_OPTION
def command(source: Path | None, list_only: bool, as_json: bool, **values: Any) -> None:
    """Export a run to ONNX files and TensorRT engines.

    SOURCE is the folder of a run or of a stage, a weights file, or an ONNX file of an earlier
    export: the fp32 file for another precision, a file of any precision for --trt. [default: the
    newest run] From a run, the stage that training chose without labels is exported
    (RUN/selection.json), or the last one if there is no choice.

    \b
    fada export                                         # model.onnx
    fada export --precision fp16,int8 --data mine.toml  # smaller files, checked on labeled data
    fada export model.onnx --trt                        # an engine

    Before it is saved, each ONNX file is compared on target frames with the outputs of the PyTorch
    network. A file that differs too much is not saved, and the command exits with 3. Engines are
    compared after the build, or, if this machine cannot run them, when they are first opened.
    Converting an ONNX file and building an engine work without PyTorch and without the run.
    """
    if list_only:
        return _list_targets(as_json)
    options = _export_options(values)
    _warn_about_ignored_options(values, source)
    from fada_deploy.export.plan import RefusedFilesError, run_export

    refused: RefusedFilesError | None = None
    try:
        result = run_export(source, options)
    except RefusedFilesError as error:
        result, refused = error.result, error
    if as_json:
        emit_json(result.to_dict())
    if refused is not None:
        raise refused
    _log_next_commands(result, source)
    return None


def _warn_about_ignored_options(values: dict[str, Any], source: Path | None) -> None:
    """Print a warning for each named option that has no effect."""
    unused: dict[str, str] = {}
    if not values["trt"]:
        unused |= dict.fromkeys(_ENGINE_OPTIONS, "it needs --trt")
    if "int8" not in values["precision"]:
        unused |= dict.fromkeys(_INT8_OPTIONS, "it needs --precision int8")
        if source is not None and source.suffix == ".onnx":
            unused["calibration"] = "it needs --precision int8"
    if values["data"] is None:
        unused |= dict.fromkeys(("data_root", "max_miou_drop"), "it needs --data")
    warn_about_unused(unused, named_options())


def _list_targets(as_json: bool) -> None:
    from fada_deploy.inspection.targets import list_targets, targets_table

    targets = list_targets()
    if as_json:
        emit_json([target.to_dict() for target in targets])
    else:
        click.echo(targets_table(targets))


def _export_options(values: dict[str, Any]) -> ExportOptions:
    from fada_deploy.export.options import ExportOptions

    engine = _engine_options(values)
    min_equal_labels = values["min_equal_labels"]
    return ExportOptions(
        head=values["head"],
        size_hw=values["size"],
        batch=_number("--batch", values["batch"], "dynamic"),
        precisions=tuple(filter(None, (p.strip() for p in values["precision"].split(",")))),
        hardware_target=values["hardware_target"],
        calibration=values["calibration"],
        calibration_method=values["calibration_method"],
        calibration_frames=values["calibration_frames"],
        float_layers=_number("--float-layers", values["float_layers"], "auto"),
        data=values["data"],
        data_root=values["data_root"],
        max_miou_drop=values["max_miou_drop"] / 100,
        min_equal_labels=None if min_equal_labels is None else min_equal_labels / 100,
        max_logit_error=values["max_logit_error"],
        engine=engine if values["trt"] else None,
        triton=values["triton"],
        out=values["out"],
    )


def _engine_options(values: dict[str, Any]) -> EngineOptions:
    from fada_deploy.export.options import EngineOptions

    sizes = values["trt_batch"].split(",")
    if len(sizes) != 3 or not all(size.isascii() and size.strip().isdigit() for size in sizes):
        raise UsageError(
            f"--trt-batch must be MIN,OPT,MAX, for example 1,1,8, got {values['trt_batch']!r}"
        )
    return EngineOptions(
        flavor=values["trt_flavor"],
        batch=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        compute_capabilities=values["compute_capability"],
        optimization_level=values["trt_level"],
        workspace_mib=values["trt_workspace"],
        timing_cache=values["trt_timing_cache"],
        version_compatible=values["version_compatible"],
        hardware_compatible=values["hardware_compatible"],
    )


def _number(option: str, text: str, keyword: str) -> int | None:
    """Return a number, or None for `keyword`."""
    if text == keyword:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{option} must be {keyword} or a number, got {text!r}")
    return int(text)


def _log_next_commands(result: ExportResult, source: Path | None) -> None:
    for path in (*result.files, *(engine.path for engine in result.engines)):
        if path != source:
            log(f"next: fada infer video.mp4 --model {shlex.quote(str(path))}")
    if result.triton is not None:
        log(f"next: tritonserver --model-repository {shlex.quote(str(result.triton))}")
