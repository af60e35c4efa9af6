"""`fada verify`: compare an exported model with the outputs of its network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log, warn_about_unused
from fada_deploy.cli.options import (
    DATA_ROOT_OPTION,
    DEVICE_OPTION,
    JSON_OPTION,
    MAX_LOGIT_ERROR_OPTION,
    MIN_EQUAL_LABELS_OPTION,
    MODEL_OPTION,
    FiniteFloat,
    model_path,
    named_options,
)
from fada_deploy.common.errors import ModelError, UsageError

if TYPE_CHECKING:
    from fada_deploy.common.metadata import ModelMetadata
    from fada_deploy.export.verify import AccuracyCheck


@click.command("verify")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@MODEL_OPTION
@click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Inference backend: onnxruntime, openvino, tensorrt, or auto for all that are installed.",
)
@DEVICE_OPTION
@MIN_EQUAL_LABELS_OPTION
@MAX_LOGIT_ERROR_OPTION
@click.option(
    "--data",
    metavar="NAME|TOML",
    help="Labeled data set on which MODEL is also compared with --baseline.",
)
@DATA_ROOT_OPTION
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="fp32 ONNX file to compare with on --data. [default: model.onnx next to MODEL]",
)
@click.option(
    "--max-miou-drop",
    type=FiniteFloat(-100, 100),
    metavar="POINTS",
    default=2.0,
    show_default=True,
    help="Largest allowed drop of the mIoU on --data, in percentage points.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Save an image (.png) of the reference frame with the most differences.",
)
@JSON_OPTION
def command(
    model: Path | None, model_option: Path | None, plot: Path | None, as_json: bool, **values: Any
) -> None:
    """Verify an exported model on this machine.

    MODEL is an ONNX file, a TensorRT engine, the folder of a run, or builtin. [default: the newest
    export] Its outputs on a few target frames are compared with those of the trained network, which
    are stored next to it in model.reference.npz. PyTorch and the training run are not needed.

    Exits with 3 if the outputs differ too much.
    """
    from fada_deploy.common.runs import warn_if_outdated
    from fada_deploy.export.engines import verify_engine
    from fada_deploy.export.verify import VerificationLimits, try_save_comparison, verify_file
    from fada_deploy.runtime.backend_selection import metadata_of, runnable_backends
    from fada_deploy.runtime.parity import ReferenceOutputs, require_parity

    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot must end with .png, got {plot}")
    if values["data"] is None:
        unused = dict.fromkeys(("baseline", "data_root", "max_miou_drop"), "it needs --data")
        warn_about_unused(unused, named_options())
    model = _model(model_path(model, model_option))
    metadata = metadata_of(model)
    warn_if_outdated(model, metadata.provenance)
    reference = ReferenceOutputs.for_model(model, metadata)
    backend = values["backend"]
    device = values["device"]
    backends = runnable_backends(model, device) if backend == "auto" else [backend]
    if not backends:
        raise UsageError(
            f"{model}: no installed backend runs {metadata.precision}; see `fada export --list`"
        )
    results = verify_file(model, reference, backends, device=device)
    for name, result in results.items():
        log(f"{name}: {result.text()}")
    if plot is not None:
        worst = min(results.values(), key=lambda result: result.equal_labels)
        if try_save_comparison(model, reference, worst, plot):
            log(f"wrote {plot}")
    accuracy = _check_accuracy(model, metadata, backends[0], values)
    if as_json:
        emit_json(
            {
                "model": str(model),
                "precision": metadata.precision,
                "verification": {name: result.to_dict() for name, result in results.items()},
                "labeled": None if accuracy is None else accuracy.to_dict(),
            }
        )
    min_equal_labels = values["min_equal_labels"]
    limits = VerificationLimits(
        None if min_equal_labels is None else min_equal_labels / 100, values["max_logit_error"]
    )
    tolerance = limits.tolerance(metadata.precision)
    require_parity(results, tolerance, consequence=f"do not use {model}")
    if accuracy is not None:
        log(accuracy.text())
        accuracy.check(values["max_miou_drop"] / 100)
    if model.suffix != ".onnx":
        # Records the result, so that the runtime does not verify the engine again on this GPU.
        verify_engine(model, device=device, tolerance=tolerance)
    log(f"verified {model}")


def _model(model: Path | None) -> Path:
    from fada_deploy.common.runs import exported_model, newest_models
    from fada_deploy.runtime.backend_selection import runnable_models

    if model is not None:
        return exported_model(model)
    newest = next(iter(runnable_models(newest_models())), None)
    if newest is None:
        raise ModelError(
            "no exported model under runs/ can run here; export one with `fada export`, or name one"
        )
    log(f"using model {newest} (the newest)")
    return newest


def _check_accuracy(
    model: Path, metadata: ModelMetadata, backend: str, values: dict[str, Any]
) -> AccuracyCheck | None:
    from fada_deploy.data import open_dataset
    from fada_deploy.export.verify import check_accuracy
    from fada_deploy.runtime.parity import reference_path

    if values["data"] is None:
        return None
    from fada_deploy.common.runs import REFERENCE_SUFFIX

    reference = reference_path(model)
    default = reference.with_name(reference.name.replace(REFERENCE_SUFFIX, ".onnx"))
    baseline = values["baseline"] or default
    if not baseline.is_file():
        raise ModelError(f"{baseline}: no such fp32 file; name it with --baseline")
    dataset = open_dataset(
        values["data"], values["data_root"], split="val", space=metadata.label_space
    )
    return check_accuracy(model, baseline, dataset, backend=backend, device=values["device"])
