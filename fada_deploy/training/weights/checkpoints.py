"""Reading and writing weights: safetensors for results, a torch file for resumable training state.

No code from a file is ever executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fada_deploy.common.errors import DataError, ModelError, UsageError, one_line
from fada_deploy.common.files import atomic_path
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.runs import BUILTIN_FILE
from fada_deploy.common.weights_document import WeightsDocument, read_weights_document
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.weights.builtin import load_builtin

# Metadata key of a weights file, with a `WeightsDocument` in JSON.
PROPERTY = "fada"


class Stateful(Protocol):
    """An object with a state dictionary, such as a model or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def save_weights(
    path: Path, weights: Mapping[str, Tensor], spec: ModelSpec, provenance: Mapping[str, Any]
) -> None:
    """Write weights to a safetensors file, with everything needed to rebuild their network.

    `provenance` is a JSON-serializable record of how the weights were trained.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    document = json.dumps({"model": spec.to_dict(), "provenance": dict(provenance)}, sort_keys=True)
    with write_errors(path), atomic_path(path) as temporary:
        save_file(tensors, temporary, {PROPERTY: document})


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk, which PyTorch and safetensors report, into `DataError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch reports the positions of its internal buffers.
        reason = "not all bytes were written" if type(error) is RuntimeError else one_line(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise DataError(
            f"{path} cannot be written ({reason}); check the space and permissions of the folder"
        ) from None


def load_model(
    path: Path, device: torch.device | None = None
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Load a file written by `save_weights`: the network in evaluation mode, and the provenance.

    `path` may also be the file of the built-in model. The network is placed on `device` [CPU].
    Raise `ModelError` if the file does not exist, is not such a file, or holds NaN.
    """
    if path == BUILTIN_FILE:
        model, provenance = load_builtin()
        return model.to(device or torch.device("cpu")), provenance
    with _open(path) as (file, document):
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        model = SegmentationModel(ModelSpec.from_document(document.model))
        model.load_state_dict(weights)
    _require_finite(path, weights)
    return model.to(device or torch.device("cpu")).eval(), document.provenance


def _require_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` if a weight is NaN or infinite."""
    damaged = [name for name, t in weights.items() if not torch.isfinite(t).all()]
    if damaged:
        raise ModelError(
            f"{path}: {len(damaged)} of {len(weights)} weights contain NaN or infinite values, the "
            f"first is {damaged[0]}; use an earlier checkpoint, or train again with a lower "
            "learning rate"
        )


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance in a file that `load_model` reads, without loading the weights.

    Raise `ModelError` if the file does not exist or is not such a file.
    """
    if path == BUILTIN_FILE:
        return dict(read_metadata(path).provenance)
    with _open(path) as (_, document):
        return document.provenance


def read_label_space(path: Path) -> LabelSpace:
    """Return the label space of a file that `load_model` reads, without loading the weights.

    Raise `ModelError` if the file does not exist or is not such a file.
    """
    if path == BUILTIN_FILE:
        return read_metadata(path).label_space
    return read_spec(path).space


def read_spec(path: Path) -> ModelSpec:
    """Return the description of the network in a file of `save_weights`, without its weights.

    Raise `ModelError` if the file does not exist or is not such a file.
    """
    with _open(path) as (_, document):
        return ModelSpec.from_document(document.model)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, WeightsDocument]]:
    """Open a file written by `save_weights`; map errors, also of the block, to `ModelError`."""
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(PROPERTY)
            if text is None:
                raise ModelError(
                    f"{path}: not weights written by `fada train` (it has no metadata "
                    f"{PROPERTY!r}); to train from weights of a backbone, use --init"
                )
            yield file, read_weights_document(text, str(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, KeyError, RuntimeError, UsageError) as error:
        raise ModelError(
            f"{path}: not weights written by `fada train` ({one_line(error)})"
        ) from None


# Parts that the states of earlier versions lack, and that do not change the training.
_OPTIONAL_PARTS = frozenset({"monitor"})


def save_state(path: Path, iteration: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state from which a stage resumes after `iteration` finished iterations."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with write_errors(path), atomic_path(path) as temporary:
        torch.save({"iteration": iteration, "parts": state}, temporary)


def load_state(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore `parts` from a file of `save_state` and return the number of finished iterations.

    Return 0, and change nothing, if the file does not exist. Raise `ModelError` if it cannot be
    read or does not match `parts`. Too little memory says nothing about the file.
    """
    if not path.is_file():
        return 0
    try:
        # Not on the device, which may have no room for the state beside the parts.
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["parts"]
        for name, part in parts.items():
            if name in saved or name not in _OPTIONAL_PARTS:
                part.load_state_dict(saved[name])
        return int(state["iteration"])
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except PermissionError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:
        # Damaged files raise errors of many types, as in `read_checkpoint`.
        raise ModelError(
            f"{path}: not a training state of this run ({one_line(error)}); delete it to restart "
            "the stage"
        ) from None


def _is_zip(path: Path) -> bool:
    # The standard library raises for some damaged archives instead of returning False.
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dictionary in a torch file, without executing code from the file.

    Raise `ModelError` if the file cannot be read that way or contains something else. Too little
    memory says nothing about the file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # torch.load raises many exception types for foreign files, and none of their messages helps
        # a user.
        if not _is_zip(path):
            reason = "it is text, truncated, or contains Python objects"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it contains Python objects, which could execute code when loaded"
        else:
            reason = "it is truncated or damaged"
        raise ModelError(f"{path}: not a readable weights file ({reason})") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ModelError(f"{path}: not a readable weights file (it contains a {kind}, not a dict)")
    return content
