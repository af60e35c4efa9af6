"""Small meshes of flat faces, each with a color slot, a surface and a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.synth.appearances import SLOTS
from fada_deploy.synth.camera import FLOATS

LABEL = {name: index for index, name in enumerate(CITYSCAPES_19.names)}
Point = tuple[float, float, float]


class Surface(IntEnum):
    """Material of a face, which selects its texture."""

    PLAIN = 0
    ROAD = 1
    PAVING = 2
    GRASS = 3
    LEAF = 4
    FACADE = 5
    SHOPS = 6
    HOME = 7
    BRICK = 8
    SLATS = 9
    TILES = 10
    GLASS = 11
    PAINT = 12


GROUND = (Surface.ROAD, Surface.PAVING, Surface.GRASS, Surface.PAINT)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Faces in drawing order.

    The corners of face f are `corners[starts[f]:starts[f + 1]]`, in meters. `slots` index the
    palette and `gains` scale its colors. `solid` faces are visible from outside only and shaded by
    the sun; others are visible from both sides. `fine` faces are not drawn far away. `cast` is the
    box that throws a shadow: half width, half length, lowest and highest y; None throws no shadow.
    """

    corners: FLOATS
    starts: NDArray[np.intp]
    slots: NDArray[np.intp]
    gains: FLOATS
    labels: NDArray[np.uint8]
    surfaces: NDArray[np.uint8]
    solid: NDArray[np.bool_]
    fine: NDArray[np.bool_]
    cast: tuple[float, float, float, float] | None

    def __len__(self) -> int:
        return len(self.slots)


class MeshBuilder:
    """Build a mesh face by face; `label` is the default class of a face."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._corners: list[FLOATS] = []
        self._rows: list[tuple[int, float, int, int, bool, bool]] = []

    def add_face(
        self,
        points: Sequence[Point] | FLOATS,
        slot: str,
        *,
        out: Point | None = None,
        gain: float = 1.0,
        label: str | None = None,
        surface: Surface = Surface.PLAIN,
        fine: bool = False,
    ) -> None:
        """Add a flat polygon (K, 3).

        `out` is the direction from which it is visible; None is both sides.
        """
        corners = np.asarray(points, np.float64)
        if out is not None:
            normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
            if float(normal @ np.asarray(out)) < 0:
                corners = corners[::-1]
        self._corners.append(corners)
        index = LABEL[label or self.label]
        self._rows.append((SLOTS.index(slot), gain, index, int(surface), out is not None, fine))

    def add_frustum(
        self,
        low: Iterable[float],
        high: Iterable[float],
        slot: str,
        *,
        gain: float = 1.0,
        pane: tuple[float, float] | None = None,
        surface: Surface = Surface.PLAIN,
    ) -> None:
        """Add a frustum; `low` and `high` are (x0, x1, z0, z1, y) of its bottom and its top.

        `pane` adds a window to every side, inset by these fractions (horizontal, vertical).
        """
        ax, bx, az, bz, ay = low
        cx, dx, cz, dz, cy = high
        bottom = ((ax, ay, az), (bx, ay, az), (bx, ay, bz), (ax, ay, bz))
        top = ((cx, cy, cz), (dx, cy, cz), (dx, cy, dz), (cx, cy, dz))
        outs: tuple[Point, ...] = ((0, 0, -1), (1, 0, 0), (0, 0, 1), (-1, 0, 0))
        for i, out in enumerate(outs):
            j = (i + 1) % 4
            side = (bottom[i], bottom[j], top[j], top[i])
            self.add_face(side, slot, out=out, gain=gain, surface=surface)
            if pane:
                self.add_face(inset(side, *pane), "glass", out=out, surface=Surface.GLASS)
        self.add_face(top, slot, out=(0, 1, 0), gain=gain)

    def add_box(
        self,
        low: Point,
        high: Point,
        slot: str,
        *,
        gain: float = 1.0,
        surface: Surface = Surface.PLAIN,
    ) -> None:
        """Add a box between two opposite corners, without a bottom."""
        sides = (low[0], high[0], low[2], high[2])
        self.add_frustum((*sides, low[1]), (*sides, high[1]), slot, gain=gain, surface=surface)

    def build(self, cast: tuple[float, float, float, float] | None = None) -> Mesh:
        """Return the mesh; `cast` is the box that throws its shadow."""
        slots, gains, labels, surfaces, solid, fine = zip(*self._rows, strict=True)
        return Mesh(
            np.concatenate(self._corners),
            np.cumsum([0, *(len(c) for c in self._corners)], dtype=np.intp),
            np.array(slots, np.intp),
            np.array(gains, np.float64),
            np.array(labels, np.uint8),
            np.array(surfaces, np.uint8),
            np.array(solid, bool),
            np.array(fine, bool),
            cast,
        )


def inset(quad: Sequence[Point], across: float, up: float, down: float | None = None) -> FLOATS:
    """Return a quad (4, 3) inside `quad`, inset by fractions of its sides.

    The first edge of `quad` is its bottom.
    """
    a, b, c, d = np.asarray(quad, np.float64)
    low, high = (up if down is None else down), 1 - up

    def at(s: float, t: float) -> FLOATS:
        return np.asarray((1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c))

    return np.array([at(across, low), at(1 - across, low), at(1 - across, high), at(across, high)])


def disc(
    center: Point, radius: float, *, plane: str = "xy", sides: int = 12, flat: float = 1.0
) -> list[Point]:
    """Return a regular polygon in the plane "xy" or "zy".

    "xy" faces along the street, "zy" faces sideways. `flat` scales the polygon horizontally.
    """
    x, y, z = center
    points: list[Point] = []
    for angle in np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / sides:
        a, b = radius * flat * float(np.cos(angle)), radius * float(np.sin(angle))
        points.append((x + a, y + b, z) if plane == "xy" else (x, y + b, z + a))
    return points


def ring(center: Point, radius: float, width: float, *, sides: int = 14) -> list[Point]:
    """Return a ring in the plane "xy" as one polygon with a seam."""
    outer = disc(center, radius, sides=sides)
    inner = disc(center, radius - width, sides=sides)
    return [*outer, outer[0], inner[0], *inner[:0:-1], inner[0]]


def bar(
    start: tuple[float, float], end: tuple[float, float], width: tuple[float, float]
) -> list[Point]:
    """Return a tapered bar (4 points) in the plane "xy"; `width` is at each end."""
    (x0, y0), (x1, y1) = start, end
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
    nx, ny = (y1 - y0) / length / 2, (x0 - x1) / length / 2
    w0, w1 = width
    return [
        (x0 - nx * w0, y0 - ny * w0, 0.0),
        (x0 + nx * w0, y0 + ny * w0, 0.0),
        (x1 + nx * w1, y1 + ny * w1, 0.0),
        (x1 - nx * w1, y1 - ny * w1, 0.0),
    ]
