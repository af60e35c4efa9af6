"""Find exports that were verified against reference outputs that no longer exist."""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import FadaError
from fada_deploy.common.runs import MODEL_SUFFIXES
from fada_deploy.runtime.backend_selection import metadata_of
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path


def stale_exports(model: Path, rewritten: set[Path]) -> list[str]:
    """Return the names of the files next to `model` whose reference outputs were replaced.

    Only files that share the reference outputs of `model` are checked. The files in `rewritten` are
    skipped, because the running export replaces them too.
    """
    stale = []
    for path in sorted(model.parent.iterdir()):
        if (
            path.suffix not in MODEL_SUFFIXES
            or path.name.startswith(".")
            or path in rewritten
            or reference_path(path) != reference_path(model)
        ):
            continue
        try:
            ReferenceOutputs.for_model(path, metadata_of(path))
        except FadaError:
            stale.append(path.name)
    return stale
