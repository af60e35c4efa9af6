"""Options of the overlay drawing."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
LEGEND_POSITIONS = ("auto", *CORNERS, "none")


@dataclass(frozen=True)
class OverlayStyle:
    """How labels are drawn over a frame.

    Attributes:
        alpha: Opacity of the class colors, 0 … 1.
        legend: Corner of the panel with class names and fractions: "top-left", "top-right",
            "bottom-left", "bottom-right" or "none". "auto" takes the corner that hides the fewest
            pixels of road, road users, signs, lights and poles in the first frame of a source, and
            keeps it for that source.
        contours: Draw a light line between classes.
        side_by_side: Put the original frame to the left of the overlay; doubles the width.
        classes: Names of the classes to draw, in the image and in the legend, in upper or lower
            case; empty means all.

    Raises:
        UsageError: `alpha` or `legend` has a value that is not allowed.
    """

    alpha: float = 0.5
    legend: str = "auto"
    contours: bool = False
    side_by_side: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise UsageError(f"classes must be a list of names, got {self.classes!r}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be between 0 and 1, got {self.alpha}")
        if self.legend not in LEGEND_POSITIONS:
            raise UsageError(
                f"legend must be one of {', '.join(LEGEND_POSITIONS)}, got {self.legend!r}"
            )

    def drawn_classes(self, space: LabelSpace) -> NDArray[np.bool_] | None:
        """Return which of 256 label values are drawn, (256,) bool; None means all.

        Raise `UsageError` if the label space lacks a class of `classes`.
        """
        if not self.classes:
            return None
        indices = {name.lower(): index for index, name in enumerate(space.names)}
        unknown = [name for name in self.classes if name.lower() not in indices]
        if unknown:
            close = [get_close_matches(name.lower(), indices, n=1) for name in unknown]
            suggested = ", ".join(space.names[indices[name]] for names in close for name in names)
            raise UsageError(
                f"the model has no class {', '.join(unknown)}; "
                + (f"did you mean {suggested}? " if suggested else "")
                + f"its classes are {', '.join(space.names)}"
            )
        drawn = np.zeros(256, np.bool_)
        drawn[[indices[name.lower()] for name in self.classes]] = True
        return drawn
