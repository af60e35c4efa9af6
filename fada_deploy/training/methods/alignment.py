"""The alignment methods by name. Each is one module of this folder, which states its equations."""

from __future__ import annotations

from collections.abc import Callable

from fada_deploy.common.errors import UsageError
from fada_deploy.training.methods.adaptpatch import adaptpatch
from fada_deploy.training.methods.adaptsegnet import adaptsegnet, adaptsegnet_multi
from fada_deploy.training.methods.advent import advent, advent_multi, minent
from fada_deploy.training.methods.base import AlignmentMethod, MethodContext
from fada_deploy.training.methods.clan import clan
from fada_deploy.training.methods.fada import fada, fada_hard, feature_only
from fada_deploy.training.methods.fcn_wild import fcn_wild
from fada_deploy.training.methods.siban import siban

METHODS: dict[str, Callable[[MethodContext], AlignmentMethod]] = {
    "fada": fada,
    "fada-hard": fada_hard,
    "feature": feature_only,
    "adaptsegnet": adaptsegnet,
    "adaptsegnet-multi": adaptsegnet_multi,
    "advent": advent,
    "advent-multi": advent_multi,
    "minent": minent,
    "clan": clan,
    "fcn-wild": fcn_wild,
    "siban": siban,
    "adaptpatch": adaptpatch,
}


def make_method(name: str, context: MethodContext) -> AlignmentMethod:
    """Return a new method with its networks; raise `UsageError` for an unknown name."""
    if name not in METHODS:
        raise UsageError(f"alignment method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name](context)
