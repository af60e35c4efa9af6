"""Weights in and out: safetensors for what is kept, a torch file for what resumes, files for what starts.

Nothing here unpickles code: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import atomic_path
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

PROPERTY = "fada"


class Stateful(Protocol):
    """A model, optimizer or average."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def save_weights(
    path: Path, weights: Mapping[str, Tensor], spec: ModelSpec, provenance: Mapping[str, Any]
) -> None:
    """Write weights with all that is needed to build their network."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    document = json.dumps({"model": spec.to_dict(), "provenance": dict(provenance)}, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {PROPERTY: document})


def load_model(
    path: Path, device: torch.device | None = None
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Return the network of a weights file in evaluation mode, and the file's provenance."""
    try:
        with safe_open(str(path), "pt") as file:
            document = json.loads((file.metadata() or {})[PROPERTY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        model = SegmentationModel(ModelSpec.from_dict(document["model"]))
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such weights") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: not weights written by `fada train` ({reason})") from None
    return model.to(device or torch.device("cpu")).eval(), document["provenance"]


def save_state(path: Path, iteration: int, parts: Mapping[str, Stateful]) -> None:
    """Write all that a stage needs to go on after `iteration` finished iterations."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_path(path) as temporary:
        torch.save({"iteration": iteration, "parts": state}, temporary)


def load_state(path: Path, parts: Mapping[str, Stateful], device: torch.device) -> int:
    """Restore what `save_state` wrote; return the number of finished iterations (0: nothing there)."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["iteration"])
    except (OSError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path}: not this run's training state ({reason}); delete it to start the stage again"
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dictionary of a torch file, read without running code; raise `ModelError` for anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises whatever a foreign file makes it raise, in words that are not for our users.
        if not zipfile.is_zipfile(path):
            reason = "it is text, cut short, or holds Python objects"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it holds Python objects, which may run code when they are read"
        else:
            reason = "it is cut short or damaged"
        raise ModelError(f"{path}: not a file of weights that can be read ({reason})") from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: not a file of weights that can be read (it holds a {type(content).__name__})"
        )
    return content
