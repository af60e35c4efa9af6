"""`fada export`: the newest run → ONNX file, proven against the network."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fada_deploy.cli.options import SIZE, emit_json, log, newest


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    type=click.Choice(["logits", "labels"]),
    default="logits",
    show_default=True,
    help="logits: fastest with this runtime; labels: upsampling and arg max inside, for other callers.",
)
@click.option("--size", type=SIZE, help="The network's input [as trained].")
@click.option("--batch", default="dynamic", show_default=True, help="dynamic, or a fixed number of frames.")
@click.option(
    "--frames", type=click.Path(path_type=Path), help="Pictures or video to prove on [the run's target]."
)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write [RUN/export/model.onnx].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    run: Path | None,
    head: str,
    size: tuple[int, int] | None,
    batch: str,
    frames: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Turn a run into a proven ONNX file. RUN is a run's folder, a stage's, or a weights file [the newest].

    Nothing is written unless every backend installed here gives the network's own answers on real frames.
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError
    from fada_deploy.common.runs import final_weights, newest_models

    if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
        raise UsageError(f"--batch is dynamic or a number from 1; found {batch!r}")
    if run is None:
        run = newest()
    weights = final_weights(run)
    if out is None:
        if run.is_file():
            raise UsageError("say where to write: --out model.onnx (a weights file alone names no run)")
        out = (weights.parent.parent if run == weights.parent else run) / "export" / "model.onnx"
    try:
        from fada_deploy.export.exporter import export
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from None
    result = export(
        weights,
        out,
        head=head,
        size_hw=size,
        batch=None if batch == "dynamic" else int(batch),
        frames=frames,
        say=log,
    )
    for name, v in result.verification.items():
        logits = "" if v.logit_error is None else f", largest logit error {v.logit_error:.1e} of the largest logit"
        log(f"{name}: {v.equal_labels:.4%} of labels equal the network's on {v.frames} frames{logits}")
    log(f"done: {result.model} and {result.proof}")
    # Only an export under runs/ is found without being named.
    named = "" if result.model in newest_models() else f" --model {shlex.quote(str(result.model))}"
    log(f"next: fada infer video.mp4{named}")
    if as_json:
        verified = {name: v.to_dict() for name, v in result.verification.items()}
        emit_json({"model": str(result.model), "proof": str(result.proof), "verification": verified})
