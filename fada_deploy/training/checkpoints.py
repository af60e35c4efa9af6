"""Weights in and out: safetensors for what is kept, a torch file for what resumes, files for what starts.

Nothing here unpickles code: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import atomic_path
from fada_deploy.training.models.normalisation import require_init
from fada_deploy.training.models.segmenter import ModelSpec, Segmenter, find_backbone

PROPERTY = "fada"

# What frameworks put before a backbone's own names, one inside another.
_WRAPPERS = re.compile(r"^(?:(?:module|model|backbone|features)\.)+")


class Stateful(Protocol):
    """A model, optimiser or average."""

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


def load_segmenter(path: Path, device: torch.device | None = None) -> tuple[Segmenter, dict[str, Any]]:
    """Return the network of a weights file in evaluation mode, and the file's provenance."""
    try:
        with safe_open(str(path), "pt") as file:
            document = json.loads((file.metadata() or {})[PROPERTY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        model = Segmenter(ModelSpec.from_dict(document["model"]))
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


def load_backbone(model: Segmenter, path: Path, *, bgr: bool = False) -> None:
    """Load ImageNet weights under their published names into the backbone, key by key.

    What wrappers put before the names is taken off, the file's own classifier and heads are left out, and
    what ImageNet weights do not have (`Architecture.beyond_init`) stays as it is where the file lacks it.
    `bgr`: the file's first convolution reads blue first; its channels are turned round. Raise `ModelError`
    naming what is missing, of another shape or too many, as of a deeper network.
    """
    architecture, backbone = find_backbone(model.spec.backbone), model.feature_extractor["backbone"]
    found = _uncounted({_our_name(n, architecture.renames): t for n, t in _read_tensors(path).items()})
    wanted = _uncounted(backbone.state_dict())
    missing = [n for n in wanted if n not in found and not n.startswith(architecture.beyond_init)]
    odd = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    parts = {n.partition(".")[0] for n in wanted}
    extra = [n for n in found if n not in wanted and n.partition(".")[0] in parts]
    if missing or odd or extra:
        raise ModelError(
            f"{path}: does not fit {model.spec.backbone}: {len(missing)} of {len(wanted)} parameters missing, "
            f"{len(odd)} of another shape, {len(extra)} too many, the first {(missing + odd + extra)[0]}"
        )
    if bgr:
        # A backbone's first parameter is its first convolution, (C, 3, h, w).
        first = next(iter(wanted))
        found[first] = found[first].flip(1)
    backbone.load_state_dict({n: found[n] for n in wanted if n in found}, strict=False)


def _uncounted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out how many batches a normalisation has seen, which frozen ones do not count."""
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def _our_name(name: str, renames: Mapping[str, str]) -> str:
    name = _WRAPPERS.sub("", name)
    for theirs, ours in renames.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    require_init(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a file of weights ({error})") from None
    content = read_checkpoint(path)
    content = content.get("state_dict", content)
    return {n: t for n, t in content.items() if isinstance(t, Tensor)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dictionary of a torch file, read without running code; raise `ModelError` for anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises whatever a foreign file makes it raise.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: not a file of weights ({reason})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a file of weights (it holds a {type(content).__name__})")
    return content
