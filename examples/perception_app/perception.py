"""From a label map to what lies ahead: road that is free, and who is in the way. Pure functions.

Positions are fractions of the picture, x to the right and y down; nothing here is in meters (README.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import IGNORE, LabelSpace

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Vehicles are mistaken for one another more than for anything else, so those that touch are one obstacle.
GROUPS = (("car", "truck", "bus", "train"), ("person",), ("rider",), ("motorcycle",), ("bicycle",))
DYNAMIC = frozenset(name for group in GROUPS for name in group)
# A row of the corridor is free while at least this share of it is road; labels flicker at the rims.
_FREE = 0.5
# Nearer to the vanishing point than this fraction of the way down, the corridor is a few pixels wide.
_FAR = 0.06
# The rows above the corridor's foot in which the road in front of the car begins.
_NEAR = 0.05
# The part of a thing's height, from below, that says on which side it stands.
_FOOT = 0.2
# Of the picture; what is smaller is noise, or far away.
_LEAST = 0.0008


@dataclass(frozen=True)
class Corridor:
    """The strip that the car drives into on a straight and flat road: in the picture, a triangle.

    It is `width` wide at the picture's lower edge, centerd there, and narrows to the vanishing point (`x`, `y`).
    Below `bottom` the camera sees the car itself.
    """

    x: float = 0.5
    y: float = 0.48
    width: float = 0.5
    bottom: float = 1.0

    def __post_init__(self) -> None:
        if not (
            0 <= self.x <= 1
            and self.y >= 0
            and self.width > 0
            and self.far + 0.1 <= self.bottom <= 1
        ):
            raise UsageError(
                f"no corridor from {self.bottom:g}, {self.width:g} wide, to ({self.x:g}, {self.y:g}); all are "
                "fractions of the picture, a tenth of which has to lie below the vanishing point"
            )

    def span(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the left and right edge at heights `y`; at and above the vanishing point, that."""
        scale = np.clip((y - self.y) / (1 - self.y), 0, None)
        middle = self.x + (0.5 - self.x) * scale
        return middle - self.width / 2 * scale, middle + self.width / 2 * scale

    @property
    def far(self) -> float:
        """The height at which it ends in the distance."""
        return self.y + _FAR * (1 - self.y)

    def polygon(self, top: float) -> NDArray[np.float64]:
        """Return the corners (4, 2) of its part below `top`: far left, far right, near right, near left."""
        left, right = self.span(np.array([top, self.bottom]))
        return np.array(
            [[left[0], top], [right[0], top], [right[1], self.bottom], [left[1], self.bottom]]
        )

    def mask(self, size_hw: tuple[int, int]) -> Mask:
        """Return which pixels (H, W) it holds."""
        y, x = ((np.arange(n) + 0.5) / n for n in size_hw)
        left, right = self.span(y)
        inside: Mask = (x >= left[:, None]) & (x <= right[:, None])
        return inside & ((y >= self.far) & (y <= self.bottom))[:, None]


@dataclass(frozen=True)
class Obstacle:
    """A connected region of a dynamic class, or of touching vehicles by the name of the most common one.

    `box` is left, top, right, bottom; `share` its part of the picture. `position` says where it stands: left of
    the corridor, ego or right of it. `ahead`: how far up the corridor it stands in it, None outside.
    """

    name: str
    box: tuple[float, ...]
    fraction: float
    position: str
    ahead: float | None


@dataclass(frozen=True)
class Scene:
    """What lies ahead. `drivable` (H, W): the road that begins in front of the car.

    `free_ahead`: how far up the corridor is free, as a fraction of the picture's height; `free_until`: the class
    that ends it, "" where nothing does. `obstacles`: the nearest, those whose foot is lowest, first.
    """

    drivable: Mask
    free_ahead: float
    free_until: str
    obstacles: tuple[Obstacle, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description, the drivable area as a polygon."""
        fraction, polygon = (
            round(float(self.drivable.mean()), 4),
            outline(self.drivable).round(4).tolist(),
        )
        return {
            "free_ahead": self.free_ahead,
            "free_until": self.free_until,
            "drivable": {"fraction": fraction, "polygon": polygon},
            "obstacles": [asdict(o) for o in self.obstacles],
        }


def perceive(labels: Labels, space: LabelSpace, corridor: Corridor) -> Scene:
    """Read a label map (H, W) of a space that has a class `road`."""
    below = (np.arange(len(labels)) + 0.5) / len(labels) > corridor.bottom
    labels = np.where(below[:, None], np.uint8(IGNORE), labels)
    inside = corridor.mask((labels.shape[0], labels.shape[1]))
    drivable = drivable_area(labels == space.index_of("road"), inside, corridor)
    obstacles = find_obstacles(labels, space, inside, corridor)
    free, until = free_road(labels, space, drivable, inside, corridor)
    for obstacle in obstacles:
        if obstacle.ahead is not None and obstacle.ahead < free:
            free, until = obstacle.ahead, obstacle.name
    return Scene(drivable, free, until, obstacles)


def drivable_area(road: Mask, inside: Mask, corridor: Corridor) -> Mask:
    """Return the connected road (H, W) that holds most of the corridor's foot; empty where there is none."""
    foot = (np.arange(len(road)) + 0.5) / len(road) > corridor.bottom - _NEAR
    _, parts = cv2.connectedComponents(road.astype(np.uint8), connectivity=4)
    found = np.bincount(parts[inside & road & foot[:, None]])
    return np.asarray(parts == found.argmax()) if len(found) else np.zeros_like(road)


def find_obstacles(
    labels: Labels, space: LabelSpace, inside: Mask, corridor: Corridor
) -> tuple[Obstacle, ...]:
    """Return the connected regions of the dynamic classes that a space has, the nearest first."""
    height, width = labels.shape
    found = []
    for group in GROUPS:
        classes = [space.index_of(name) for name in group if name in space.names]
        mask = np.isin(labels, classes).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for part, (x, y, w, h, area) in enumerate(stats.tolist()):
            if part == 0 or area < _LEAST * labels.size:
                continue
            own = parts[y : y + h, x : x + w] == part
            name = space.names[int(np.bincount(labels[y : y + h, x : x + w][own]).argmax())]
            # Each column's lowest pixel is where it stands, unless something hides that.
            lowest = h - 1 - own[::-1].argmax(0)
            middle = (
                x + float(np.flatnonzero(lowest >= (1 - _FOOT) * (h - 1)).mean()) + 0.5
            ) / width
            left, right = (float(edge[0]) for edge in corridor.span(np.array([(y + h) / height])))
            position = "left" if middle < left else "right" if middle > right else "ego"
            stands = y + lowest[inside[y + lowest, x + np.arange(w)]]
            ahead = _ahead(int(stands.max()) + 1, height, corridor) if len(stands) else None
            box = tuple(
                round(v, 4) for v in (x / width, y / height, (x + w) / width, (y + h) / height)
            )
            found.append(Obstacle(name, box, round(area / labels.size, 5), position, ahead))
    return tuple(sorted(found, key=lambda o: -o.box[3]))


def free_road(
    labels: Labels, space: LabelSpace, road: Mask, inside: Mask, corridor: Corridor
) -> tuple[float, str]:
    """Return how far up at least half of the corridor is drivable, and the class that ends it ("" for none)."""
    for row in np.flatnonzero(inside.any(1))[::-1].tolist():
        here = inside[row]
        if road[row, here].mean() < _FREE:
            others = labels[row, here & ~road[row]]
            return _ahead(row + 1, len(labels), corridor), space.names[
                int(np.bincount(others).argmax())
            ]
    return round(corridor.bottom - corridor.far, 4), ""


def _ahead(row: int, height: int, corridor: Corridor) -> float:
    return round(max(corridor.bottom - row / height, 0.0), 4)


def outline(mask: Mask) -> NDArray[np.float64]:
    """Return the largest region's outer contour (N, 2), true to a hundredth of the height."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2))
    points = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.01 * len(mask), True)[:, 0]
    return np.asarray((points + 0.5) / mask.shape[::-1])
