"""`fada inspect`: show the metadata of a model, an engine, reference outputs, weights or a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import JSON_OPTION, MODEL_OPTION, model_path
from fada_deploy.common.tables import format_table

Row = tuple[str, str]

_STATES = {
    "equal": "unchanged since the export",
    "different": "NOT the file of this export",
    "missing": "missing",
    "unknown": "present, but its hash was not recorded",
}
_MAX_CLASSES_SHOWN = 3


@click.command("inspect")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@MODEL_OPTION
@JSON_OPTION
def command(model: Path | None, model_option: Path | None, as_json: bool) -> int:
    """Show the metadata of MODEL and check its hashes.

    MODEL is an ONNX file, a TensorRT engine, reference outputs, a weights file, the folder of a run
    or a stage, or builtin. [default: the newest export, or else the newest run] It is only read,
    never run.

    \b
    fada inspect model.onnx             # classes, input, precision, verification
    fada inspect model.engine           # also the library and the GPUs that it was built for
    fada inspect model.reference.npz    # the models that it belongs to
    fada inspect runs/gta5-mine-001     # settings, stages, scores, exports
    fada inspect model.onnx --json      # for programs; the metadata is under `metadata`

    Exits with 1 if a check fails, for example if a file next to the model was replaced.
    """
    from fada_deploy.inspection.describe import describe

    document = describe(model_path(model, model_option) or _newest())
    _warn_about_outdated_exports(document)
    if as_json:
        emit_json(document)
        return 1 if document["problems"] else 0
    click.echo(format_table(("", ""), list(_rows(document)), align="ll"))
    for line in document["problems"]:
        click.echo(f"{click.style('problem', fg='red')}: {line}")
    return 1 if document["problems"] else 0


def _newest() -> Path:
    from fada_deploy.common.runs import newest_models, newest_run

    models = newest_models()
    if not models:
        return newest_run()
    log(f"using model {models[0]} (the newest)")
    return models[0]


def _warn_about_outdated_exports(document: Mapping[str, Any]) -> None:
    from fada_deploy.common.runs import warn_if_outdated

    for export in document.get("exports", ()):
        warn_if_outdated(Path(export["path"]), export)
    if metadata := document.get("metadata"):
        warn_if_outdated(Path(document["path"]), metadata["provenance"])


def _rows(document: Mapping[str, Any]) -> Iterator[Row]:
    size = f", {_bytes(document['bytes'])}" if "bytes" in document else ""
    yield "file", f"{document['path']} ({document['kind']}{size})"
    if "sha256" in document:
        yield "sha256", document["sha256"]
    yield from {
        "onnx": _model_rows,
        "engine": _model_rows,
        "reference": _reference_rows,
        "weights": _weights_rows,
        "stage": _weights_rows,
        "run": _run_rows,
    }[document["kind"]](document)


def _model_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    if "engine" in document:
        yield from _engine_rows(document["engine"])
    if "graph" in document:
        yield from _graph_rows(document["graph"])
    metadata = document["metadata"]
    if metadata is None:
        return
    frame, batch = metadata["input"], metadata["input"]["batch"]
    yield (
        "input",
        f"{frame['width']}x{frame['height']} {frame['color']} {frame['dtype']} "
        f"{frame['layout']}, {frame['geometry']}, batch {batch or 'dynamic'}",
    )
    corners = (
        f", align_corners {str(metadata['align_corners']).lower()}"
        if metadata["head"] == "logits"
        else ""
    )
    yield "head", f"{metadata['head']}{corners}"
    target = metadata["hardware_target"]
    yield "precision", metadata["precision"] + (f", for {target}" if target != "any" else "")
    if metadata["quantization"]:
        yield "quantized", _flat(metadata["quantization"])
    # The metadata of an engine is that of its ONNX file.
    name = "ONNX verified" if "engine" in document else "verified"
    yield from _verification_rows(metadata["verification"], name)
    if metadata["target_statistics"]:
        classes = metadata["label_space"]["classes"]
        yield "target data", _target_statistics(metadata["target_statistics"], classes)
    for name in ("reference", "weights"):
        if name in document:
            path = document[name]["path"] or "weights of this run"
            yield name, f"{path}: {_STATES[document[name]['state']]}"
    yield "training", _provenance(metadata["provenance"])
    yield "versions", _flat(metadata["versions"])
    yield from _class_rows(metadata["label_space"])


def _graph_rows(graph: Mapping[str, Any]) -> Iterator[Row]:
    yield (
        "opset",
        f"{graph['opset']} (IR {graph['ir_version']}), by {graph['producer'] or 'an unknown tool'}",
    )
    for name in ("inputs", "outputs"):
        for port in graph[name]:
            yield (
                f"graph {name[:-1]}",
                f"{port['name']} {port['type']} ({', '.join(map(str, port['shape']))})",
            )
    layers = [
        f"{n} {op} in {kind}" for op, kinds in graph["layers"].items() for kind, n in kinds.items()
    ]
    yield (
        "weights in graph",
        f"{graph['parameters']:,} values; {', '.join(layers) or 'no layers with weights'}",
    )
    quantized = {op: n for op, n in graph["quantize_nodes"].items() if n}
    if quantized:
        yield "Q/DQ nodes", _flat(quantized)
    if graph["external_data"]:
        yield "external data", ", ".join(graph["external_data"])


def _engine_rows(engine: Mapping[str, Any]) -> Iterator[Row]:
    yield "built by", f"{engine['flavor']} {engine['flavor_version']}"
    gpu = f", built on {engine['gpu']}" if engine["gpu"] else ""
    yield "runs on", f"{', '.join(engine['compute_capabilities']) or 'default GPUs'}{gpu}"
    if engine["profile"]:
        yield "batch", "{min} to {max}, optimized for {opt}".format(**engine["profile"])
    for port in engine["io"]:
        shape = ", ".join(map(str, port["shape"]))
        yield f"engine {port['kind']}put", f"{port['name']} {port['dtype']} ({shape})"
    precision = engine["precision"]
    yield "layers", f"{_flat(precision['layers'])} (read from the {precision['layers_source']})"
    yield "built from", f"{engine['onnx']['name']}: {_STATES[engine['onnx']['state']]}"
    if engine["verification"] == "not_run":
        yield "engine verified", "not yet; run `fada verify` on the machine that runs it"
    else:
        yield from _verification_rows(engine["verification"], "engine verified")


def _verification_rows(verification: Mapping[str, Any] | None, title: str) -> Iterator[Row]:
    if not verification:
        yield title, "no, because no installed backend could run it"
        return
    for name, result in verification.items():
        if "equal_labels" not in result:
            yield "labeled data", _flat(result)
            continue
        error = result.get("logit_error")
        logits = "" if error is None else f", largest logit error {error:.1e} of the largest logit"
        labels = f"{result['equal_labels']:.4%} equal labels on {result['frames']} frames"
        yield title, f"{name}: {labels}{logits}"


def _reference_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    size, logits = document["size"], document["logits"]
    yield "frames", f"{document['frames']} at {size['width']}x{size['height']}"
    yield "logits", f"{logits['classes']} classes at {logits['width']}x{logits['height']}"
    yield "predicted classes", f"{document['predicted_classes']} with more than 1 % of the pixels"
    for model in document["models"]:
        relation = "belongs" if model["state"] == "equal" else "does NOT belong"
        yield "model", f"{model['path']}: {relation} to these reference outputs"
    if not document["models"]:
        yield "model", "none in this folder"


def _weights_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    model = document["model"]
    height, width = model["size_hw"]
    yield "network", f"{model['backbone']}, normalization {model['norm']}, input {width}x{height}"
    values = ", ".join(f"{count:,} in {kind}" for kind, count in document["values"].items())
    yield "values", f"{values}, {document['tensors']} tensors"
    yield "training", _provenance(document["provenance"])
    if document.get("checkpoints"):
        yield "checkpoints", ", ".join(document["checkpoints"])
    if document.get("scores"):
        yield "scores", _score(document["scores"])
    yield from _class_rows(model["label_space"])


def _run_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    config = document["config"]
    yield "training", _provenance({"config": config})
    space = None
    for name, stage in document["stages"].items():
        if stage is None:
            continue
        space = stage["model"]["label_space"]
        yield name, f"finished, {_score(stage['scores']) if stage['scores'] else 'not scored'}"
    for name in document["unfinished"]:
        yield (
            name,
            f"not finished; continue with `fada train --resume {shlex.quote(document['path'])}`",
        )
    for export in document["exports"]:
        yield (
            "export",
            f"{export['path']}, {export['precision'] or 'unreadable'}, {_bytes(export['bytes'])}"
            + (f", stage {export['stage']}" if export["stage"] else ""),
        )
    if space is not None:
        yield from _class_rows(space)


def _class_rows(space: Mapping[str, Any]) -> Iterator[Row]:
    yield "classes", f"{len(space['classes'])}, {space['name']}; index, trainId, labelId, color:"
    for index, entry in enumerate(space["classes"]):
        red, green, blue = entry["color"]
        # click removes the color if the output does not support it; the hex code remains.
        swatch = click.style("  ", bg=(red, green, blue))
        ids = f"{index:>3} {entry['trainId']:>3} {entry['labelId']:>3}"
        yield "", f"{swatch} {ids}  #{red:02x}{green:02x}{blue:02x}  {entry['name']}"


def _target_statistics(statistics: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean confidence and the largest class fractions of the target data."""
    names = [entry["name"] for entry in classes]
    means, stds = statistics["fraction_mean"], statistics["fraction_std"]
    rows = sorted(zip(means, stds, names, strict=True), reverse=True)[:_MAX_CLASSES_SHOWN]
    parts = [f"{name} {100 * mean:.1f} ± {100 * std:.1f} %" for mean, std, name in rows]
    if statistics["confidence_mean"] is not None:
        mean, std = statistics["confidence_mean"], statistics["confidence_std"]
        parts.insert(0, f"confidence {mean:.3f} ± {std:.3f}")
    return f"{', '.join(parts)}, … on {statistics['frames']} frames"


def _score(scores: Mapping[str, Any]) -> str:
    if not isinstance(scores, dict):
        return "damaged"
    if scores.get("miou") is None:
        return "no class could be scored"
    frames, size = scores.get("frames", "?"), scores.get("input", "?")
    return f"mIoU {100 * scores['miou']:.1f} on {frames} frames at {size}"


def _provenance(provenance: Mapping[str, Any]) -> str:
    """Return the settings that identify a training run."""
    config = provenance.get("config") or {}
    parts = [f"{config['src']} → {config['tgt']}"] if "src" in config and "tgt" in config else []
    # A run that starts from a network does not use the initial weights.
    init = "start" if config.get("start") else "init"
    parts += [
        f"{key} {config[key]}"
        for key in ("method", "backbone", "recipe", init, "seed")
        if key in config
    ]
    parts += [f"stage {provenance['stage']}"] if "stage" in provenance else []
    parts += [f"fada_deploy {provenance['version']}"] if "version" in provenance else []
    return ", ".join(parts) or "not recorded"


def _flat(values: Mapping[str, Any] | Sequence[Any]) -> str:
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return ", ".join(f"{key} {_short(value)}" for key, value in items) or "none"


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return str(len(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"
