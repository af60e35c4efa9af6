"""`fada export`: the newest run → ONNX files and engines, each proven against the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json
from fada_deploy.cli.options import SIZE


@click.command("export")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    type=click.Choice(["logits", "labels"]),
    default="logits",
    show_default=True,
    help="logits: fastest with this runtime; labels: upsampling and arg max inside, for other callers.",
)
@click.option("--size", type=SIZE, help="The network's input [as trained].")
@click.option(
    "--batch", default="dynamic", show_default=True, help="dynamic, or a fixed number of frames."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="Comma-separated: fp32, fp16, bf16, int8.",
)
@click.option(
    "--for",
    "hardware_target",
    type=click.Choice(["cpu", "tensorrt", "both"]),
    default="both",
    show_default=True,
    help="Whom int8 is quantized for.",
)
@click.option(
    "--calibration",
    type=click.Choice(["percentile", "minmax", "entropy"]),
    default="percentile",
    show_default=True,
    help="Of int8.",
)
@click.option(
    "--calibration-frames",
    type=click.IntRange(2),
    default=64,
    show_default=True,
    help="Target frames for int8.",
)
@click.option(
    "--leave-out", default="auto", show_default=True, help="Layers that int8 leaves in float."
)
@click.option(
    "--frames",
    type=click.Path(path_type=Path),
    help="Pictures or video in place of the run's target.",
)
@click.option("--data", help="Labeled data set that judges other precisions than fp32 too.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where --data lies.")
@click.option(
    "--max-miou-drop", type=float, default=2.0, show_default=True, help="Points on --data."
)
@click.option(
    "--min-equal",
    type=click.FloatRange(0, 100),
    help="Percent of labels that must equal the network's.",
)
@click.option(
    "--max-logit-error", type=click.FloatRange(0), help="Largest logit error, of the largest logit."
)
@click.option(
    "--trt", is_flag=True, help="Build an engine of each precision, with TensorRT or TensorRT-RTX."
)
@click.option(
    "--trt-flavor",
    type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--trt-batch", default="1,1,8", show_default=True, help="Smallest, usual and largest batch."
)
@click.option(
    "--trt-level", type=click.IntRange(0, 5), default=3, show_default=True, help="Builder's level."
)
@click.option(
    "--trt-workspace",
    type=click.IntRange(1),
    help="MiB that the builder may use [its own default].",
)
@click.option(
    "--trt-timing-cache", type=click.Path(path_type=Path), help="Kept file [in the user's cache]."
)
@click.option(
    "--compute-capability", multiple=True, help="RTX: GPU to build for, e.g. SM89; may be repeated."
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: runs on later versions too.")
@click.option(
    "--hardware-compatible",
    is_flag=True,
    help="TensorRT: runs on other GPUs (Ampere and later) too.",
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    help="Write a Triton model repository to this folder.",
)
@click.option(
    "--list", "list_targets", is_flag=True, help="Say what can be built, proven and run here."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file to write [RUN/export/model.onnx]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(source: Path | None, list_targets: bool, as_json: bool, **options: Any) -> None:
    """Turn SOURCE into proven files: a run's folder, a stage's, a weights file, or an fp32 .onnx [the newest run].

    \b
    fada export                                         # model.onnx
    fada export --precision fp16,int8 --data mine.toml  # and others, gated
    fada export model.onnx --trt                        # an engine, without torch and the run

    Nothing is written unless every backend here that can run it gives the network's own answers on real frames.
    """
    if list_targets:
        from fada_deploy.inspection.targets import table, targets

        found = targets()
        return emit_json([t.to_dict() for t in found]) if as_json else click.echo(table(found))
    from fada_deploy.export.plan import Plan

    plan = Plan(source=source, options=options)
    plan.run()
    if as_json:
        emit_json(plan.document)
    plan.finish()
    return None
