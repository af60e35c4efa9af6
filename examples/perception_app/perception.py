"""From a label map to the scene ahead: free road and obstacles. Pure functions.

Positions are fractions of the image, x to the right and y down; nothing is in meters (README.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy import LabelSpace, UsageError

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Networks confuse vehicle classes with one another most, so vehicles that touch are one obstacle.
GROUPS = (("car", "truck", "bus", "train"), ("person",), ("rider",), ("motorcycle",), ("bicycle",))
DYNAMIC = frozenset(name for group in GROUPS for name in group)
# Label of pixels without a class.
_IGNORE = 255
# A row of the corridor is free if at least this fraction of it is road, because labels flicker at
# the edges.
_MIN_ROAD_FRACTION = 0.5
# The corridor ends at this fraction of the distance from the vanishing point to the lower edge.
# Beyond, it is a few pixels wide.
_FAR_END = 0.06
# Height of the rows above the lower end of the corridor in which the road ahead must begin.
_START_HEIGHT = 0.05
# Fraction of an obstacle's height, from below, that determines on which side it stands.
_FOOT_FRACTION = 0.2
# Smaller regions, as a fraction of the image, are noise or far away.
_MIN_OBSTACLE_FRACTION = 0.0008


@dataclass(frozen=True)
class Corridor:
    """The strip of a straight, flat road that the car will drive over; in the image, a triangle.

    It is `width` wide and centered at the lower edge of the image and narrows to the vanishing
    point (`x`, `y`). Below `bottom` the camera sees the car itself.
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
                "the corridor must have a positive width and a height of at least 0.1, "
                f"got vanishing point ({self.x:g}, {self.y:g}), lower end {self.bottom:g}, "
                f"width {self.width:g}"
            )

    def span(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x of the left and right edge at heights `y`; above the vanishing point, its x."""
        scale = np.clip((y - self.y) / (1 - self.y), 0, None)
        middle = self.x + (0.5 - self.x) * scale
        return middle - self.width / 2 * scale, middle + self.width / 2 * scale

    @property
    def far(self) -> float:
        """The y of its far end."""
        return self.y + _FAR_END * (1 - self.y)

    def polygon(self, top: float) -> NDArray[np.float64]:
        """Return the corners (4, 2) of its part below `top`: clockwise from far left."""
        left, right = self.span(np.array([top, self.bottom]))
        return np.array(
            [[left[0], top], [right[0], top], [right[1], self.bottom], [left[1], self.bottom]]
        )

    def mask(self, size_hw: tuple[int, int]) -> Mask:
        """Return the pixels (H, W) inside the corridor."""
        y, x = ((np.arange(n) + 0.5) / n for n in size_hw)
        left, right = self.span(y)
        inside: Mask = (x >= left[:, None]) & (x <= right[:, None])
        return inside & ((y >= self.far) & (y <= self.bottom))[:, None]


@dataclass(frozen=True)
class Obstacle:
    """A connected region of a dynamic class; touching vehicles are one region.

    Attributes:
        name: The class; of touching vehicles, the most frequent one.
        box: Left, top, right, bottom.
        fraction: Fraction of the image that it covers.
        position: Where it stands: "left" of the corridor, "ego" (inside), or "right".
        ahead: How far up the corridor it stands; None outside the corridor.
    """

    name: str
    box: tuple[float, ...]
    fraction: float
    position: str
    ahead: float | None


@dataclass(frozen=True)
class Scene:
    """The scene ahead.

    Attributes:
        drivable: (H, W) mask of the road that begins in front of the car.
        free_ahead: Length of the free part of the corridor, as a fraction of the image height.
        free_until: The class that ends it; "" if nothing does.
        obstacles: The obstacles, nearest (lowest in the image) first.
    """

    drivable: Mask
    free_ahead: float
    free_until: str
    obstacles: tuple[Obstacle, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description with the drivable area as a polygon."""
        fraction = round(float(self.drivable.mean()), 4)
        polygon = outline(self.drivable).round(4).tolist()
        return {
            "free_ahead": self.free_ahead,
            "free_until": self.free_until,
            "drivable": {"fraction": fraction, "polygon": polygon},
            "obstacles": [asdict(obstacle) for obstacle in self.obstacles],
        }


def perceive(labels: Labels, space: LabelSpace, corridor: Corridor) -> Scene:
    """Return the scene of a label map (H, W). The label space must have a class `road`."""
    is_hood = (np.arange(len(labels)) + 0.5) / len(labels) > corridor.bottom
    labels = np.where(is_hood[:, None], np.uint8(_IGNORE), labels)
    inside = corridor.mask((labels.shape[0], labels.shape[1]))
    drivable = drivable_area(labels == space.index_of("road"), inside, corridor)
    obstacles = find_obstacles(labels, space, inside, corridor)
    free_ahead, free_until = free_road(labels, space, drivable, inside, corridor)
    for obstacle in obstacles:
        if obstacle.ahead is not None and obstacle.ahead < free_ahead:
            free_ahead, free_until = obstacle.ahead, obstacle.name
    return Scene(drivable, free_ahead, free_until, obstacles)


def drivable_area(road: Mask, inside: Mask, corridor: Corridor) -> Mask:
    """Return the connected road (H, W) with the largest part in the first rows of the corridor.

    The mask is empty if there is no road in these rows.
    """
    is_start = (np.arange(len(road)) + 0.5) / len(road) > corridor.bottom - _START_HEIGHT
    _, components = cv2.connectedComponents(road.astype(np.uint8), connectivity=4)
    counts = np.bincount(components[inside & road & is_start[:, None]])
    return np.asarray(components == counts.argmax()) if len(counts) else np.zeros_like(road)


def find_obstacles(
    labels: Labels, space: LabelSpace, inside: Mask, corridor: Corridor
) -> tuple[Obstacle, ...]:
    """Return the connected regions of the dynamic classes in the label space, nearest first."""
    obstacles = []
    for group in GROUPS:
        classes = [space.index_of(name) for name in group if name in space.names]
        mask = np.isin(labels, classes).astype(np.uint8)
        _, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for component, (x, y, w, h, area) in enumerate(stats.tolist()):
            if component == 0 or area < _MIN_OBSTACLE_FRACTION * labels.size:
                continue
            region = components[y : y + h, x : x + w] == component
            obstacles.append(_describe(labels, space, inside, corridor, region, (x, y)))
    return tuple(sorted(obstacles, key=lambda obstacle: -obstacle.box[3]))


def _describe(
    labels: Labels,
    space: LabelSpace,
    inside: Mask,
    corridor: Corridor,
    region: Mask,
    origin: tuple[int, int],
) -> Obstacle:
    """Return the obstacle of a region (h, w) whose upper left corner is at `origin` (x, y)."""
    (height, width), (h, w), (x, y) = labels.shape, region.shape, origin
    name = space.names[int(np.bincount(labels[y : y + h, x : x + w][region]).argmax())]
    # An obstacle stands on the lowest pixel of each column, unless something occludes it.
    lowest = h - 1 - region[::-1].argmax(0)
    foot_columns = np.flatnonzero(lowest >= (1 - _FOOT_FRACTION) * (h - 1))
    middle = (x + float(foot_columns.mean()) + 0.5) / width
    left, right = (float(edge[0]) for edge in corridor.span(np.array([(y + h) / height])))
    position = "left" if middle < left else "right" if middle > right else "ego"
    rows_inside = y + lowest[inside[y + lowest, x + np.arange(w)]]
    ahead = _ahead(int(rows_inside.max()) + 1, height, corridor) if len(rows_inside) else None
    box = (x / width, y / height, (x + w) / width, (y + h) / height)
    fraction = round(int(region.sum()) / labels.size, 5)
    return Obstacle(name, tuple(round(value, 4) for value in box), fraction, position, ahead)


def free_road(
    labels: Labels, space: LabelSpace, road: Mask, inside: Mask, corridor: Corridor
) -> tuple[float, str]:
    """Return how far up the corridor is drivable, and the class that ends it ("" for none)."""
    for row in np.flatnonzero(inside.any(1))[::-1].tolist():
        columns = inside[row]
        if road[row, columns].mean() < _MIN_ROAD_FRACTION:
            others = labels[row, columns & ~road[row]]
            name = space.names[int(np.bincount(others).argmax())]
            return _ahead(row + 1, len(labels), corridor), name
    return round(corridor.bottom - corridor.far, 4), ""


def _ahead(row: int, height: int, corridor: Corridor) -> float:
    """Return the distance of a row from the lower end of the corridor."""
    return round(max(corridor.bottom - row / height, 0.0), 4)


def outline(mask: Mask) -> NDArray[np.float64]:
    """Return the outer contour (N, 2) of the largest region, accurate to 1 % of the height."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2))
    points = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.01 * len(mask), True)[:, 0]
    return np.asarray((points + 0.5) / mask.shape[::-1])
