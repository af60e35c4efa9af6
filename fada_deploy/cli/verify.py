"""`fada verify`: is a file still the network that it was exported from? On this machine, now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json, log


@click.command("verify")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="One of them; auto: all that can run it here.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--min-equal",
    type=click.FloatRange(0, 100),
    help="Percent of labels that must equal the network's.",
)
@click.option(
    "--max-logit-error", type=click.FloatRange(0), help="Largest logit error, of the largest logit."
)
@click.option("--data", help="Labeled data set to score it on too, beside --baseline.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where --data lies.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="The fp32 file [model.onnx beside MODEL]."
)
@click.option(
    "--max-miou-drop", type=float, default=2.0, show_default=True, help="Points on --data."
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the worst reference frame (.png)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(model: Path | None, picture: Path | None, as_json: bool, **options: Any) -> None:
    """Hold MODEL (.onnx or .engine) against its reference outputs [the newest export]. Exits with 3 when it is another.

    Needs neither torch nor the run: the pack beside it has the network's answers on real frames.
    """
    from fada_deploy.common.errors import UsageError
    from fada_deploy.common.runs import exported_model, newest_models
    from fada_deploy.export.engines import verify_engine
    from fada_deploy.export.verify import VerificationLimits, try_draw, verify_file
    from fada_deploy.runtime.backend_selection import (
        metadata_of,
        runnable_backends,
        runnable_models,
    )
    from fada_deploy.runtime.parity import ReferenceOutputs, gate

    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture {picture}: writes a .png")
    if model is None:
        model = next(iter(runnable_models(newest_models())), None)
        if model is None:
            raise UsageError("no model under runs/: type `fada export` first, or name one")
        log(f"model {model}, the newest")
    model = exported_model(model)
    metadata = metadata_of(model)
    reference = ReferenceOutputs.of(model, metadata)
    backend = options["backend"]
    backends = runnable_backends(model) if backend == "auto" else [backend]
    if not backends:
        raise UsageError(
            f"nothing installed here runs {metadata.precision} of {model}; see fada export --list"
        )
    allowed = VerificationLimits.in_percent(options["min_equal"], options["max_logit_error"])
    found = verify_file(model, reference, backends, device=options["device"])
    for name, verification in found.items():
        log(f"{name}: {verification.text()}")
    if picture is not None:
        worst = min(found.values(), key=lambda v: v.equal_labels)
        if try_draw(model, reference, worst, picture):
            log(f"picture: {picture}")
    judgment = _judged(model, metadata, backends[0], options)
    if as_json:
        emit_json(
            {
                "model": str(model),
                "precision": metadata.precision,
                "verification": {name: v.to_dict() for name, v in found.items()},
                "labeled": None if judgment is None else judgment.to_dict(),
            }
        )
    gate(found, allowed.thresholds(metadata.precision), lost=f"{model} is not to be used")
    if judgment is not None:
        log(judgment.text())
        judgment.check(options["max_miou_drop"] / 100)
    if model.suffix != ".onnx":
        # So that the runtime need not compare it again on this card.
        verify_engine(model, log)


def _judged(model: Path, metadata: Any, backend: str, options: dict[str, Any]) -> Any:
    from fada_deploy.common.errors import UsageError
    from fada_deploy.data import open_dataset
    from fada_deploy.export.verify import judge
    from fada_deploy.runtime.parity import reference_path

    if options["data"] is None:
        return None
    pack = reference_path(model)
    baseline = options["baseline"] or pack.with_name(pack.name.replace(".reference.npz", ".onnx"))
    if not baseline.is_file():
        raise UsageError(f"{baseline}: no fp32 file to score beside; give --baseline")
    dataset = open_dataset(
        options["data"], options["data_root"], split="val", space=metadata.label_space
    )
    return judge(model, baseline, dataset, backend=backend)
