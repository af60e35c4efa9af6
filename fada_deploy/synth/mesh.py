"""Small models of flat-coloured faces, each with its class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.labels import CITYSCAPES_19, IGNORE
from fada_deploy.synth.camera import FLOATS

LABEL = {name: index for index, name in enumerate(CITYSCAPES_19.names)} | {"void": IGNORE}
Point = tuple[float, float, float]
Colours = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Part:
    """Faces drawn together: vertex indices (N, K), a colour slot and its gain, and a label.

    `solid` faces are seen from outside only and are shaded by the sun; others are seen from both
    sides. `fine` parts never change a label and are left out far away.
    """

    faces: NDArray[np.intp]
    slot: str
    gain: float
    label: int
    solid: bool
    fine: bool
    convex: bool


@dataclass(frozen=True)
class Mesh:
    """Vertices (V, 3) in metres and the parts, in drawing order."""

    vertices: FLOATS
    parts: tuple[Part, ...]

    @cached_property
    def probes(self) -> NDArray[np.intp]:
        """The first three vertices of every part (P, 3), which tell where it faces."""
        return np.array([p.faces[0, :3] for p in self.parts], np.intp).reshape(-1, 3)

    @cached_property
    def solid(self) -> NDArray[np.bool_]:
        """Which parts are solid (P,)."""
        return np.array([p.solid for p in self.parts], bool)

    @cached_property
    def labels(self) -> FLOATS:
        """Label of every part (P,)."""
        return np.array([p.label for p in self.parts], np.float64)

    def paint(self, colours: Colours) -> FLOATS:
        """Return the colour of every part (P, 3) for a choice of colours by slot."""
        table = np.array([colours[p.slot] for p in self.parts], np.float64).reshape(-1, 3)
        gains = np.array([p.gain for p in self.parts], np.float64).reshape(-1, 1)
        return np.multiply(table, gains, dtype=np.float64)


class MeshBuilder:
    """Collect faces; `label` is the class of those that name none."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._points: list[FLOATS] = []
        self._parts: list[Part] = []
        self._count = 0

    def faces(
        self,
        polygons: FLOATS | Sequence[Sequence[Point]],
        slot: str,
        *,
        out: Point | None = None,
        gain: float = 1.0,
        label: str | None = None,
        fine: bool = False,
        convex: bool = True,
    ) -> None:
        """Add polygons (N, K, 3) that do not overlap; `out` is the side they are seen from, else both."""
        corners = np.asarray(polygons, np.float64)
        if not corners.size:
            return
        if out is not None:
            normal = np.cross(corners[0, 1] - corners[0, 0], corners[0, 2] - corners[0, 0])
            if float(normal @ np.asarray(out)) < 0:
                corners = corners[:, ::-1]
        n, k, _ = corners.shape
        index = np.arange(self._count, self._count + n * k, dtype=np.intp).reshape(n, k)
        self._points.append(corners.reshape(-1, 3))
        self._parts.append(
            Part(index, slot, gain, LABEL[label or self.label], out is not None, fine, convex and n == 1)
        )
        self._count += n * k

    def face(
        self,
        points: Sequence[Point] | FLOATS,
        slot: str,
        *,
        out: Point | None = None,
        gain: float = 1.0,
        label: str | None = None,
        fine: bool = False,
        convex: bool = True,
    ) -> None:
        """Add one polygon (K, 3)."""
        corners = np.asarray(points, np.float64)[None]
        self.faces(corners, slot, out=out, gain=gain, label=label, fine=fine, convex=convex)

    def frustum(self, low: Iterable[float], high: Iterable[float], slot: str, *, gain: float = 1.0) -> None:
        """Add a box that narrows: `low` and `high` are (x0, x1, z0, z1, y) of its bottom and top."""
        ax, bx, az, bz, ay = low
        cx, dx, cz, dz, cy = high
        bottom = ((ax, ay, az), (bx, ay, az), (bx, ay, bz), (ax, ay, bz))
        top = ((cx, cy, cz), (dx, cy, cz), (dx, cy, dz), (cx, cy, dz))
        outs: tuple[Point, ...] = ((0, 0, -1), (1, 0, 0), (0, 0, 1), (-1, 0, 0))
        for i, out in enumerate(outs):
            j = (i + 1) % 4
            self.face((bottom[i], bottom[j], top[j], top[i]), slot, out=out, gain=gain)
        self.face(top, slot, out=(0, 1, 0), gain=gain)

    def box(self, low: Point, high: Point, slot: str, *, gain: float = 1.0) -> None:
        """Add a box between two corners, open below."""
        sides = (low[0], high[0], low[2], high[2])
        self.frustum((*sides, low[1]), (*sides, high[1]), slot, gain=gain)

    def build(self) -> Mesh:
        """Return the model."""
        return Mesh(np.concatenate(self._points), tuple(self._parts))


def disc(centre: Point, radius: float, *, plane: str, sides: int = 10) -> list[Point]:
    """Return a regular polygon in the plane "xy" (seen along the street) or "zy" (seen from the side)."""
    x, y, z = centre
    points: list[Point] = []
    for angle in np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / sides:
        a, b = radius * float(np.cos(angle)), radius * float(np.sin(angle))
        points.append((x + a, y + b, z) if plane == "xy" else (x, y + b, z + a))
    return points


def bar(
    start: tuple[float, float], end: tuple[float, float], width: tuple[float, float], *, z: float = 0.0
) -> list[Point]:
    """Return a tapered limb (4 points) in the plane "xy" between two points, `width` at each end."""
    (x0, y0), (x1, y1) = start, end
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
    nx, ny = (y1 - y0) / length / 2, (x0 - x1) / length / 2
    w0, w1 = width
    return [
        (x0 - nx * w0, y0 - ny * w0, z),
        (x0 + nx * w0, y0 + ny * w0, z),
        (x1 + nx * w1, y1 + ny * w1, z),
        (x1 - nx * w1, y1 - ny * w1, z),
    ]
