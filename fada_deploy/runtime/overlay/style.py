"""How an overlay looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace


@dataclass(frozen=True)
class OverlayStyle:
    """`alpha`: opacity of the colors, 0 … 1. `legend`: names and fractions of the classes in a corner.

    `contours`: a light line between classes. `beside`: the frame as it came to the left of its overlay.
    `classes`: names of those that are colored, in the frame and in the legend; none named are all.
    """

    alpha: float = 0.5
    legend: bool = True
    contours: bool = False
    beside: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"an alpha of {self.alpha} is no opacity; it is 0 to 1")

    def shown(self, space: LabelSpace) -> NDArray[np.bool_] | None:
        """Return which of 256 indices are colored, None for all; raise `UsageError` for unknown names."""
        if not self.classes:
            return None
        unknown = [name for name in self.classes if name not in space.names]
        if unknown:
            raise UsageError(
                f"the model has no class {', '.join(unknown)}; it has {', '.join(space.names)}"
            )
        shown = np.zeros(256, np.bool_)
        shown[[space.names.index(name) for name in self.classes]] = True
        return shown
