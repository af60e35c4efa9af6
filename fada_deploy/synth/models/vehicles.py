"""Cars, vans, trucks, buses and trams. Their front faces +z and their wheels stand on y = 0."""

from __future__ import annotations

from functools import lru_cache

from fada_deploy.synth.mesh import Mesh, MeshBuilder, Point, Surface, disc

LEFT: Point = (-1, 0, 0)
RIGHT: Point = (1, 0, 0)
FRONT: Point = (0, 0, 1)
REAR: Point = (0, 0, -1)


def _rect(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def _flank(x: float, z0: float, z1: float, y0: float, y1: float) -> list[Point]:
    return [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]


def _wheels(
    b: MeshBuilder, half: float, radius: float, axles: tuple[float, ...], ends: tuple[float, ...]
) -> None:
    for x, out in ((-half, LEFT), (half, RIGHT)):
        side = x * 1.012
        for z in axles:
            b.add_face(
                disc((side, radius * 1.08, z), radius * 1.16, plane="zy"), "tire", out=out, gain=0.6
            )
            b.add_face(disc((side * 1.002, radius, z), radius, plane="zy"), "tire", out=out)
            b.add_face(
                disc((side * 1.004, radius, z), radius * 0.58, plane="zy", sides=8),
                "hub",
                out=out,
                fine=True,
            )
        tread = sorted((x * 0.72, x * 0.98))
        for z in ends:
            b.add_face(
                _rect(tread[0], tread[1], 0.0, radius * 1.1, z),
                "tire",
                out=REAR if z < 0 else FRONT,
            )


def _lamps(
    b: MeshBuilder, half: float, length: float, y: tuple[float, float], *, wide: float = 0.30
) -> None:
    for sign in (-1, 1):
        inner, outer = sorted((sign * half * 0.96, sign * half * (0.96 - wide * 1.2)))
        b.add_face(_rect(inner, outer, *y, -length / 2 - 0.01), "tail", out=REAR)
        b.add_face(_rect(inner, outer, *y, length / 2 + 0.01), "head", out=FRONT)
    for z, out in ((-length / 2 - 0.012, REAR), (length / 2 + 0.012, FRONT)):
        b.add_face(_rect(-0.28, 0.28, y[0] - 0.22, y[0] - 0.09, z), "plate", out=out, fine=True)


def _car(
    length: float, width: float, height: float, cabin: tuple[float, float, float, float]
) -> Mesh:
    """Build a car.

    `cabin` is the rear and front end of the cabin at the belt line and at the roof, as fractions of
    the length.
    """
    b = MeshBuilder("car")
    half, belt = width / 2, height * 0.60
    rear, front, roof_rear, roof_front = (length * c for c in cabin)
    _wheels(b, half, 0.33, (-length * 0.30, length * 0.31), (-length * 0.49, length * 0.49))
    body = (-half, half, -length / 2, length / 2)
    waist = (-half * 0.97, half * 0.97, -length * 0.49, length * 0.48)
    b.add_frustum((*body, 0.22), (*body, belt * 0.72), "car", gain=0.86)
    b.add_frustum((*body, belt * 0.72), (*waist, belt), "car")
    for z, out in ((-length / 2 - 0.005, REAR), (length / 2 + 0.005, FRONT)):
        b.add_face(_rect(-half * 0.98, half * 0.98, 0.20, 0.40, z), "dark", out=out, gain=1.3)
    b.add_face(
        _rect(-half * 0.45, half * 0.45, belt * 0.55, belt * 0.78, length / 2 + 0.01),
        "dark",
        out=FRONT,
    )
    for x, out in ((-half * 1.003, LEFT), (half * 1.003, RIGHT)):
        b.add_face(_flank(x, -length * 0.47, length * 0.47, 0.2, 0.34), "dark", out=out, gain=1.2)
        b.add_face(_flank(x, 0.0, 0.035, 0.34, belt), "dark", out=out, fine=True)
    # Drawn again: the body must cover the ends of the wheels but not their sides.
    _wheels(b, half, 0.33, (-length * 0.30, length * 0.31), (-length * 0.49, length * 0.49))
    _cabin(b, half, (belt, height), (rear, front, roof_rear, roof_front))
    _lamps(b, half, length, (belt * 0.72, belt * 0.93))
    return b.build((half, length / 2, 0.15, height * 0.9))


def _cabin(
    b: MeshBuilder, half: float, y: tuple[float, float], z: tuple[float, float, float, float]
) -> None:
    """Add windows, roof, pillars and mirrors above the belt line; `z` as in `_car`, in meters."""
    rear, front, roof_rear, roof_front = z
    b.add_frustum(
        (-half * 0.94, half * 0.94, rear, front, y[0]),
        (-half * 0.74, half * 0.74, roof_rear, roof_front, y[1]),
        "car",
        pane=(0.07, 0.12),
    )
    for x in (-half, half):
        pillar = sorted((x * 0.80, x * 0.99))
        middle = (rear + front) / 2 - 0.1
        b.add_face(
            _flank(pillar[0] if x < 0 else pillar[1], middle, middle + 0.09, y[0], y[1] * 0.94),
            "car",
            out=LEFT if x < 0 else RIGHT,
            fine=True,
        )
        b.add_face(
            _flank(x * 1.08, front * 0.72, front * 0.95, y[0], y[0] + 0.15),
            "car",
            gain=0.8,
            out=LEFT if x < 0 else RIGHT,
            fine=True,
        )


@lru_cache(maxsize=1)
def cars() -> tuple[Mesh, ...]:
    """Return sedan, hatchback, station wagon, SUV and van."""
    return (
        _car(4.5, 1.82, 1.45, (-0.40, 0.20, -0.25, 0.06)),
        _car(4.0, 1.76, 1.50, (-0.47, 0.18, -0.40, 0.04)),
        _car(4.6, 1.84, 1.48, (-0.48, 0.20, -0.42, 0.06)),
        _car(4.6, 1.92, 1.74, (-0.47, 0.22, -0.41, 0.09)),
        _car(5.0, 1.98, 2.05, (-0.49, 0.36, -0.47, 0.22)),
    )


@lru_cache(maxsize=1)
def truck() -> tuple[Mesh, Mesh, Mesh]:
    """Return a cab, a box body and an open dump body.

    Bodies extend from z = −6 to 0 m, the cab from 0.1 to 2.2 m.
    """
    return _cab(), _cargo(dump_body=False), _cargo(dump_body=True)


def _cab() -> Mesh:
    b = MeshBuilder("truck")
    b.add_box((-1.2, 0.45, 0.1), (1.2, 1.5, 2.2), "truck")
    b.add_frustum(
        (-1.2, 1.2, 0.1, 2.2, 1.5), (-1.14, 1.14, 0.2, 2.0, 2.9), "truck", pane=(0.10, 0.16)
    )
    b.add_face(_rect(-0.8, 0.8, 0.75, 1.25, 2.215), "dark", out=FRONT)
    b.add_face(_rect(-1.2, 1.2, 0.35, 0.62, 2.215), "dark", out=FRONT, gain=1.4)
    for sign in (-1, 1):
        x0, x1 = sorted((sign * 0.85, sign * 1.12))
        b.add_face(_rect(x0, x1, 0.68, 0.95, 2.22), "head", out=FRONT)
        x0, x1 = sorted((sign * 1.22, sign * 1.45))
        b.add_face(_rect(x0, x1, 1.7, 2.3, 2.0), "dark", fine=True)
    _wheels(b, 1.2, 0.5, (1.2,), (2.1,))
    return b.build((1.2, 2.2, 0.4, 2.8))


def _cargo(*, dump_body: bool) -> Mesh:
    b = MeshBuilder("truck")
    top = 2.2 if dump_body else 3.5
    b.add_box((-1.0, 0.55, -5.9), (1.0, 1.0, 0.0), "dark")
    b.add_box(
        (-1.25, 0.95, -6.0),
        (1.25, top, 0.0),
        "truck",
        surface=Surface.SLATS if dump_body else Surface.PLAIN,
    )
    for z, out in ((-6.01, REAR), (0.01, FRONT)):
        b.add_face(_rect(-1.15, 1.15, 1.1, top - 0.12, z), "truck", out=out, gain=0.9)
        b.add_face(_rect(-0.02, 0.02, 1.1, top - 0.12, z * 1.001), "dark", out=out, fine=True)
    for x, out in ((-1.256, LEFT), (1.256, RIGHT)):
        b.add_face(_flank(x, -5.6, -0.4, top * 0.52, top * 0.70), "shop", out=out)
    b.add_face(_rect(-1.2, 1.2, 0.55, 0.75, -6.02), "dark", out=REAR)
    for sign in (-1, 1):
        x0, x1 = sorted((sign * 0.85, sign * 1.2))
        b.add_face(_rect(x0, x1, 0.76, 0.95, -6.03), "tail", out=REAR)
    b.add_face(_rect(-0.3, 0.3, 0.60, 0.74, -6.03), "plate", out=REAR, fine=True)
    _wheels(b, 1.24, 0.5, (-4.6, -3.4), (-5.6,))
    return b.build((1.25, 6.0, 0.5, top))


@lru_cache(maxsize=1)
def bus() -> Mesh:
    """Return a city bus, 11 m long, centered at z = 0."""
    return _coach("bus", 11.0, 1.27, 3.1, 0.35)


@lru_cache(maxsize=1)
def tram() -> Mesh:
    """Return a tram, 22 m long, centered at z = 0."""
    return _coach("tram", 22.0, 1.25, 3.4, 0.15)


def _coach(slot: str, length: float, half: float, height: float, floor: float) -> Mesh:
    b = MeshBuilder("train" if slot == "tram" else "bus")
    end = length / 2
    b.add_box((-half, floor, -end), (half, 1.25, end), slot, gain=0.95)
    b.add_box((-half, 1.25, -end), (half, height, end), slot)
    panes = round(length / 1.8)
    for x, out in ((-half * 1.004, LEFT), (half * 1.004, RIGHT)):
        for i in range(panes):
            z0 = -end + 0.25 + i * (length - 0.5) / panes
            door = out == RIGHT and i % 3 == 1
            low = floor + 0.15 if door else 1.32
            b.add_face(
                _flank(x, z0 + 0.06, z0 + (length - 0.5) / panes - 0.06, low, 2.5),
                "glass",
                out=out,
                surface=Surface.GLASS,
            )
        b.add_face(_flank(x, -end + 0.1, end - 0.1, floor, floor + 0.22), "dark", out=out, gain=1.2)
        b.add_face(_flank(x * 1.001, -end, end, 2.68, 2.8), "white", out=out)
    for z, out in ((-end - 0.01, REAR), (end + 0.01, FRONT)):
        low = 1.15 if out == FRONT else 1.5
        b.add_face(
            _rect(-half * 0.92, half * 0.92, low, 2.55, z), "glass", out=out, surface=Surface.GLASS
        )
        b.add_face(_rect(-half * 0.7, half * 0.7, 2.65, 2.95, z), "dark", out=out)
        b.add_face(
            _rect(-half * 0.4, half * 0.3, 2.71, 2.89, z * 1.001), "sign_yellow", out=out, fine=True
        )
        b.add_face(
            _rect(-half * 0.98, half * 0.98, floor, floor + 0.3, z), "dark", out=out, gain=1.3
        )
    _lamps(b, half, length, (0.75, 1.0), wide=0.22)
    axles = (-end * 0.62, end * 0.58)
    _wheels(b, half, 0.46 if slot == "bus" else 0.3, axles, (-end * 0.97, end * 0.97))
    return b.build((half, end, 0.3, height))
