"""Settings of a run without the paths of the machine that trained it, for files that are shared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_deploy.common.runs import CONFIG, FINGERPRINTS

# Settings that name files or folders, and settings that only say where they are.
_NAMES = frozenset(
    {"src", "tgt", "name", "label_space", "start", "ego_mask", "init", "semantic_network"}
)
_PLACES = frozenset({"src_root", "tgt_root", "root"})


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, or a part of them, in which paths are reduced to names.

    Data sets, label spaces and weights are named by the last part of their path; the folders of
    data sets become None.
    """
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _PLACES:
            result[key] = None
        elif key in _NAMES and isinstance(value, str):
            result[key] = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        elif isinstance(value, Mapping):
            result[key] = without_paths(value)
        elif isinstance(value, list | tuple):
            result[key] = [without_paths(v) if isinstance(v, Mapping) else v for v in value]
        else:
            result[key] = value
    return result


def shared_provenance(provenance: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the provenance of weights for an exported file.

    Its settings contain no path. If the folder `run` is a run, `data` has the fingerprints of its
    data sets, which are SHA-256 hashes.
    """
    shared = dict(provenance)
    if isinstance(shared.get("config"), Mapping):
        shared["config"] = without_paths(shared["config"])
    try:
        fingerprints = json.loads((run / FINGERPRINTS).read_text("utf-8"))
    except (OSError, ValueError):
        return shared
    if not (run / CONFIG).is_file() or not isinstance(fingerprints, dict):
        return shared
    hashes = {k: v for k, v in fingerprints.items() if re.fullmatch("[0-9a-f]{64}", str(v))}
    return {**shared, "data": hashes}
