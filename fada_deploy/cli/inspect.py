"""`fada inspect`: what a model, reference outputs, weights file or run says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json

Row = tuple[str, str]

_STATES = {
    "equal": "equal to the one it was made with",
    "another": "NOT the one it was made with",
    "missing": "not beside it",
    "unknown": "there, but its hash is not recorded",
}


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document, the contract under `metadata`.",
)
def command(file: Path, as_json: bool) -> int:
    """Say all that FILE says of itself, and check its hashes. Nothing is run.

    \b
    fada inspect model.onnx            # classes, input, precision as found in the graph, verification
    fada inspect model.engine          # and what it was built by and for
    fada inspect model.reference.npz       # whose reference it is
    fada inspect runs/gta5-mine-001    # config, stages, scores, exports
    fada inspect model.onnx --json     # for programs in other languages

    Exits with 1 when something does not hold, as a reference outputs of another file.
    """
    from fada_deploy.inspection.describe import describe

    document = describe(file)
    if as_json:
        emit_json(document)
        return 1 if document["problems"] else 0
    rows = list(_rows(document))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}".rstrip())
    for line in document["problems"]:
        click.echo(f"{click.style('problem', fg='red')}: {line}")
    return 1 if document["problems"] else 0


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
    source, batch = metadata["input"], metadata["input"]["batch"]
    yield (
        "input",
        f"{source['width']}x{source['height']} {source['color']} {source['dtype']} {source['layout']}, "
        f"{source['geometry']}, batch {batch or 'dynamic'}",
    )
    corners = (
        f", align_corners {str(metadata['align_corners']).lower()}"
        if metadata["head"] == "logits"
        else ""
    )
    yield "head", f"{metadata['head']}{corners}"
    whom = (
        f", made for {metadata['hardware_target']}" if metadata["hardware_target"] != "any" else ""
    )
    yield "precision", f"{metadata['precision']}{whom}"
    if metadata["quantization"]:
        yield "quantized", _flat(metadata["quantization"])
    # What is said there of an engine's contract is of the file it was built of.
    name = "its .onnx verified" if "engine" in document else "verified"
    yield from _verification_rows(metadata["verification"], name)
    if metadata["target_statistics"]:
        yield (
            "on its target",
            _reference(metadata["target_statistics"], metadata["label_space"]["classes"]),
        )
    for name in ("reference", "weights"):
        if name in document:
            where = document[name]["path"] or "in this run"
            yield name, f"{where}: {_STATES[document[name]['state']]}"
    yield "trained by", _provenance(metadata["provenance"])
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
    yield "engine of", f"{engine['flavor']} {engine['flavor_version']}"
    gpu = f", built on {engine['gpu']}" if engine["gpu"] else ""
    yield (
        "runs on",
        f"{', '.join(engine['compute_capabilities']) or 'what its library builds for when told none'}{gpu}",
    )
    if engine["profile"]:
        yield "batch", "{min}, usually {opt}, at most {max}".format(**engine["profile"])
    for port in engine["io"]:
        yield (
            f"engine {port['kind']}put",
            f"{port['name']} {port['dtype']} ({', '.join(map(str, port['shape']))})",
        )
    yield (
        "layers",
        f"{_flat(engine['precision']['layers'])} (according to the {engine['precision']['layers_source']})",
    )
    yield "built of", f"{engine['onnx']['name']}: {_STATES[engine['onnx']['state']]}"
    if engine["verification"] == "not_run":
        yield "engine proven", "not yet; `fada verify` does it on the machine that runs it"
    else:
        yield from _verification_rows(engine["verification"], "engine proven")


def _verification_rows(found: Mapping[str, Any] | None, title: str) -> Iterator[Row]:
    if not found:
        yield title, "by no backend when it was written"
        return
    for name, said in found.items():
        if "equal_labels" not in said:
            yield "labeled data", _flat(said)
            continue
        error = said.get("logit_error")
        tail = "" if error is None else f", largest logit error {error:.1e} of the largest logit"
        yield (
            title,
            f"{name}: {said['equal_labels']:.4%} equal labels on {said['frames']} frames{tail}",
        )


def _reference_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    size, logits = document["size"], document["logits"]
    yield "frames", f"{document['frames']} at {size['width']}x{size['height']}"
    yield "logits", f"{logits['classes']} classes at {logits['width']}x{logits['height']}"
    yield "classes seen", f"{document['classes_seen']} with more than 1 % of the pixels"
    for model in document["models"]:
        said = (
            "is proven by this pack"
            if model["state"] == "equal"
            else "was exported with ANOTHER pack"
        )
        yield "model", f"{model['path']}: {said}"
    if not document["models"]:
        yield "model", "none beside it"


def _weights_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    model = document["model"]
    height, width = model["size_hw"]
    yield "network", f"{model['backbone']}, normalization {model['norm']}, input {width}x{height}"
    values = ", ".join(f"{count:,} in {kind}" for kind, count in document["values"].items())
    yield "values", f"{values}, {document['tensors']} tensors"
    yield "trained by", _provenance(document["provenance"])
    if document.get("checkpoints"):
        yield "checkpoints", ", ".join(document["checkpoints"])
    if document.get("scores"):
        yield "scores", _score(document["scores"])
    yield from _class_rows(model["label_space"])


def _run_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    config = document["config"]
    yield "trained by", _provenance({"config": config})
    space = None
    for name, stage in document["stages"].items():
        if stage is None:
            continue
        space = stage["model"]["label_space"]
        yield name, f"finished, {_score(stage['scores']) if stage['scores'] else 'not scored'}"
    for name in document["unfinished"]:
        yield name, f"not finished; go on with `fada train --resume {document['path']}`"
    for export in document["exports"]:
        yield (
            "export",
            f"{export['path']}, {export['precision'] or 'unreadable'}, {_bytes(export['bytes'])}",
        )
    if space is not None:
        yield from _class_rows(space)


def _class_rows(space: Mapping[str, Any]) -> Iterator[Row]:
    yield "classes", f"{len(space['classes'])}, {space['name']}; index, trainId, labelId, color:"
    for index, entry in enumerate(space["classes"]):
        red, green, blue = entry["color"]
        # click takes color out where the output has none; what is left is two blanks and the code.
        swatch = click.style("  ", bg=(red, green, blue))
        ids = f"{index:>3} {entry['trainId']:>3} {entry['labelId']:>3}"
        yield "", f"{swatch} {ids}  #{red:02x}{green:02x}{blue:02x}  {entry['name']}"


def _reference(said: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures that drift is measured from: confidence, and the classes that fill the pictures."""
    names = [entry["name"] for entry in classes]
    rows = sorted(
        zip(said["fraction_mean"], said["fraction_std"], names, strict=True), reverse=True
    )
    parts = [f"{name} {100 * mean:.1f} ± {100 * std:.1f} %" for mean, std, name in rows[:3]]
    if said["confidence_mean"] is not None:
        parts.insert(0, f"confidence {said['confidence_mean']:.3f} ± {said['confidence_std']:.3f}")
    return f"{', '.join(parts)}, … on {said['frames']} frames"


def _score(scores: Mapping[str, Any]) -> str:
    if scores.get("miou") is None:
        return "no class to score"
    return f"mIoU {100 * scores['miou']:.1f} on {scores.get('frames', '?')} frames at {scores.get('input', '?')}"


def _provenance(provenance: Mapping[str, Any]) -> str:
    """Return the head of it: what a person asks first."""
    config = provenance.get("config") or {}
    parts = [f"{config['src']} → {config['tgt']}"] if "src" in config and "tgt" in config else []
    parts += [
        f"{key} {config[key]}"
        for key in ("method", "backbone", "preset", "init", "seed")
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
