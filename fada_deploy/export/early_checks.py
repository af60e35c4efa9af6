"""Checks that are made before an export writes its first file."""

from __future__ import annotations

import shlex
from pathlib import Path

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.export.options import ExportOptions
from fada_deploy.inspection.describe import describe

CHECKPOINT_SUFFIXES = (".pth", ".pt")


def require_weights_file(path: Path) -> None:
    """Raise an error if a file is not a weights file of ours."""
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise UsageError(
            f"{path} is a checkpoint. Convert it first: fada import {shlex.quote(str(path))}"
        )
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is not a run, a weights file or an ONNX model")
    describe(path)


def label_space_of_weights(weights: Path) -> LabelSpace:
    """Return the label space of a weights file; raise `ModelError` if the file is not of ours."""
    return LabelSpace.from_dict(describe(weights)["model"]["label_space"], str(weights))


def check_options(options: ExportOptions, *, head: str, space: LabelSpace | None) -> None:
    """Raise the errors that would otherwise stop the export after its first file was written.

    `head` is that of the files to write. `space` is their label space; None skips the check of the
    labeled data.
    """
    if options.triton is not None:
        if head != "labels":
            raise UsageError(
                f"--triton needs a model with head `labels`, got `{head}`; export the run with "
                "--head labels"
            )
        if options.engine is None and options.variants()[-1].precision == "bf16":
            raise UsageError(
                "--triton: ONNX Runtime cannot run bf16; name a precision other than bf16 last, or "
                "build an engine with --trt"
            )
        if options.triton.exists():
            raise UsageError(f"{options.triton} already exists; choose another folder for --triton")
    if options.data is not None and space is not None:
        open_dataset(options.data, options.data_root, split="val", space=space)
    if options.engine is not None:
        from fada_deploy.export.to_tensorrt import check_can_build

        check_can_build(options.engine)
