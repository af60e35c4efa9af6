"""The alignment methods by name. Each is one module of this folder, which states its equations."""

from __future__ import annotations

from collections.abc import Callable

from fada_deploy.common.errors import UsageError
from fada_deploy.training.methods.adaptpatch import adaptpatch
from fada_deploy.training.methods.adaptsegnet import adaptsegnet, adaptsegnet_multi
from fada_deploy.training.methods.advent import advent, advent_multi, minent
from fada_deploy.training.methods.base import AlignmentMethod, MethodContext
from fada_deploy.training.methods.cda import cda
from fada_deploy.training.methods.clan import clan
from fada_deploy.training.methods.cycada import cycada
from fada_deploy.training.methods.fada import fada, fada_hard, feature_only
from fada_deploy.training.methods.fcn_wild import fcn_wild
from fada_deploy.training.methods.multi_level import require_auxiliary
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
    "cda": cda,
    "cycada": cycada,
}


# Methods with an auxiliary classifier, which not every backbone supports.
_TWO_LEVELS = frozenset({"adaptsegnet-multi", "advent-multi"})


def check_backbone(name: str, backbone: str) -> None:
    """Raise `UsageError` if a method is unknown or does not support a backbone."""
    if name not in METHODS:
        raise UsageError(f"method: found {name!r}, expected source or one of {', '.join(METHODS)}")
    if name in _TWO_LEVELS:
        require_auxiliary(backbone)


def make_method(name: str, context: MethodContext) -> AlignmentMethod:
    """Return a new method with its networks; raise `UsageError` if it cannot be used."""
    check_backbone(name, context.model.spec.backbone)
    return METHODS[name](context)
