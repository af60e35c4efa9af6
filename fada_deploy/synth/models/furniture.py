"""Buildings, walls, fences, ground, poles, lights and signs."""

from __future__ import annotations

from functools import lru_cache

from fada_deploy.synth.mesh import Mesh, MeshBuilder, Point, Surface, bar, disc

UP: Point = (0, 1, 0)
FLOOR_HEIGHT = 3.0


@lru_cache(maxsize=64)
def ground(slot: str, label: str, surface: Surface) -> Mesh:
    """Return a patch of ground of 1 × 1 m around its center, to be scaled."""
    b = MeshBuilder(label)
    b.add_face(
        [(-0.5, 0, -0.5), (0.5, 0, -0.5), (0.5, 0, 0.5), (-0.5, 0, 0.5)],
        slot,
        out=UP,
        surface=surface,
    )
    return b.build()


@lru_cache(maxsize=1)
def arrow() -> Mesh:
    """Return a lane arrow, 4 m long."""
    b = MeshBuilder("road")
    points: list[Point] = [
        (-0.08, 0, -2),
        (0.08, 0, -2),
        (0.08, 0, 0.6),
        (0.38, 0, 0.6),
        (0, 0, 2),
        (-0.38, 0, 0.6),
        (-0.08, 0, 0.6),
    ]
    b.add_face(points, "marking", surface=Surface.PAINT)
    return b.build()


@lru_cache(maxsize=1)
def manhole() -> Mesh:
    """Return a manhole cover."""
    b = MeshBuilder("road")
    b.add_face(
        [(x, 0.0, y) for x, y, _ in disc((0, 0, 0), 0.36)], "road", gain=0.66, surface=Surface.PAINT
    )
    return b.build()


@lru_cache(maxsize=16)
def building(surface: Surface, roof: str) -> Mesh:
    """Return a building of 1 × 1 × 1 m, to be scaled.

    `roof` is "flat", "gable" or "ridge" (the ridge runs along the street).
    """
    b = MeshBuilder("building")
    h = 0.5
    low = ((-h, -h), (h, -h), (h, h), (-h, h))
    outs: tuple[Point, ...] = ((0, 0, -1), (1, 0, 0), (0, 0, 1), (-1, 0, 0))
    for i, out in enumerate(outs):
        (x0, z0), (x1, z1) = low[i], low[(i + 1) % 4]
        side = [(x0, 0, z0), (x1, 0, z1), (x1, 1, z1), (x0, 1, z0)]
        kind = surface if out[0] else Surface.HOME if surface == Surface.HOME else Surface.FACADE
        b.add_face(side, "wall_building", out=out, surface=kind)
    if roof == "flat":
        for i, out in enumerate(outs):
            (x0, z0), (x1, z1) = low[i], low[(i + 1) % 4]
            lip = 1.03
            edge = [
                (x0 * lip, 0.97, z0 * lip),
                (x1 * lip, 0.97, z1 * lip),
                (x1 * lip, 1.01, z1 * lip),
                (x0 * lip, 1.01, z0 * lip),
            ]
            b.add_face(edge, "trim", out=out, gain=0.9)
    else:
        _pitched(b, along=roof == "ridge")
    return b.build((h, h, 0.0, 1.1))


def _pitched(b: MeshBuilder, *, along: bool) -> None:
    # The ridge runs along the street, or across it so that the gable faces the street.
    e, top, h = 0.55, 1.42, 0.5
    for s in (-1.0, 1.0):
        if along:
            slope: list[Point] = [(s * e, 0.97, -e), (s * e, 0.97, e), (0, top, e), (0, top, -e)]
            gable: list[Point] = [(-h, 0.99, s * h), (h, 0.99, s * h), (0, top - 0.05, s * h)]
            b.add_face(gable, "wall_building", out=(0, 0, s), gain=0.95)
            b.add_face(slope, "roof", out=(s, 1, 0), surface=Surface.TILES)
        else:
            slope = [(-e, 0.97, s * e), (e, 0.97, s * e), (e, top, 0), (-e, top, 0)]
            gable = [(s * h, 0.99, -h), (s * h, 0.99, h), (s * h, top - 0.05, 0)]
            b.add_face(gable, "wall_building", out=(s, 0, 0), gain=0.95)
            b.add_face(slope, "roof", out=(0, 1, s), surface=Surface.TILES)


@lru_cache(maxsize=1)
def chimney() -> Mesh:
    """Return a chimney, 1.2 m high."""
    b = MeshBuilder("building")
    b.add_box((-0.35, -0.5, -0.35), (0.35, 1.2, 0.35), "roof", gain=0.8)
    return b.build()


@lru_cache(maxsize=8)
def barrier(slot: str, label: str, surface: Surface) -> Mesh:
    """Return a wall or fence of 1 × 1 × 1 m, to be scaled."""
    b = MeshBuilder(label)
    b.add_box((-0.5, 0, -0.5), (0.5, 1, 0.5), slot, surface=surface)
    return b.build((0.5, 0.5, 0.0, 1.0))


@lru_cache(maxsize=1)
def lamp() -> Mesh:
    """Return a street lamp whose arm reaches along +x."""
    b = MeshBuilder("pole")
    b.add_face(bar((0, 0), (0, 6.4), (0.22, 0.13)), "pole")
    b.add_face(bar((0, 0), (0, 0.9), (0.32, 0.26)), "pole", gain=0.85)
    b.add_face(bar((-0.04, 6.3), (1.3, 6.7), (0.11, 0.09)), "pole", gain=0.9)
    b.add_face(bar((1.1, 6.66), (1.9, 6.66), (0.18, 0.12)), "pole", gain=0.75)
    return b.build((0.1, 0.1, 0.0, 6.4))


@lru_cache(maxsize=1)
def bollard() -> Mesh:
    """Return a bollard."""
    b = MeshBuilder("pole")
    b.add_face(bar((0, 0), (0, 0.95), (0.17, 0.15)), "pole", gain=0.8)
    b.add_face(bar((0, 0.72), (0, 0.86), (0.16, 0.16)), "marking")
    return b.build((0.08, 0.08, 0.0, 0.9))


def _signal(b: MeshBuilder, x: float, y: float, lit: int, scale: float = 1.0) -> None:
    half, tall = 0.22 * scale, 0.60 * scale
    b.add_face(
        [
            (x - half, y - tall, 0),
            (x + half, y - tall, 0),
            (x + half, y + tall, 0),
            (x - half, y + tall, 0),
        ],
        "lightbox",
        label="traffic light",
    )
    for i, slot in enumerate(("light_green", "light_yellow", "light_red")):
        center = (x, y + (i - 1) * 0.37 * scale, 0.0)
        b.add_face(
            disc(center, 0.15 * scale, sides=10),
            slot,
            gain=1.0 if i == lit else 0.28,
            label="traffic light",
        )


@lru_cache(maxsize=1)
def signals() -> tuple[tuple[Mesh, ...], ...]:
    """Return traffic lights by lit color (green, yellow, red).

    Each is a pair: on a post, and with an arm that reaches along +x.
    """
    result = []
    for lit in range(3):
        post, arm = MeshBuilder("pole"), MeshBuilder("pole")
        post.add_face(bar((0, 0), (0, 3.4), (0.18, 0.15)), "pole")
        _signal(post, 0.0, 2.9, lit)
        arm.add_face(bar((0, 0), (0, 5.6), (0.26, 0.16)), "pole")
        arm.add_face(bar((0, 5.5), (3.6, 5.75), (0.16, 0.11)), "pole", gain=0.9)
        _signal(arm, 3.3, 5.5, lit, 1.15)
        _signal(arm, 0.05, 2.9, lit)
        result.append((post.build((0.1, 0.1, 0.0, 3.4)), arm.build((0.12, 0.12, 0.0, 5.6))))
    return tuple(result)


@lru_cache(maxsize=1)
def signs() -> tuple[Mesh, ...]:
    """Return traffic signs on posts: limit, stop, yield, duty, crossing, priority, direction."""
    white, sign = "white", "traffic sign"
    discs: list[list[tuple[list[Point], str]]] = [
        [
            (disc((0, 2.5, 0), 0.46, sides=16), "sign_red"),
            (disc((0, 2.5, 0), 0.33, sides=14), white),
            (bar((0, 2.36), (0, 2.64), (0.14, 0.14)), "dark"),
        ],
        [
            (disc((0, 2.5, 0), 0.48, sides=8), "sign_red"),
            (bar((-0.3, 2.5), (0.3, 2.5), (0.15, 0.15)), white),
        ],
        [
            ([(-0.56, 2.85, 0), (0.56, 2.85, 0), (0, 1.95, 0)], "sign_red"),
            ([(-0.32, 2.72, 0), (0.32, 2.72, 0), (0, 2.22, 0)], white),
        ],
        [
            (disc((0, 2.5, 0), 0.46, sides=16), "sign_blue"),
            (bar((0, 2.25), (0, 2.72), (0.13, 0.05)), white),
        ],
        [
            ([(-0.44, 2.1, 0), (0.44, 2.1, 0), (0.44, 2.98, 0), (-0.44, 2.98, 0)], "sign_blue"),
            ([(-0.32, 2.22, 0), (0.32, 2.22, 0), (0, 2.84, 0)], white),
        ],
        [
            (disc((0, 2.5, 0), 0.56, sides=4), white),
            (disc((0, 2.5, 0), 0.44, sides=4), "sign_yellow"),
        ],
    ]
    result = []
    for shapes in discs:
        b = MeshBuilder("pole")
        b.add_face(bar((0, 0), (0, 2.9), (0.11, 0.10)), "pole")
        for points, slot in shapes:
            b.add_face(points, slot, label=sign)
        result.append(b.build((0.06, 0.06, 0.0, 2.6)))
    b = MeshBuilder("pole")
    for x in (-0.9, 0.9):
        b.add_face(bar((x, 0), (x, 3.6), (0.14, 0.12)), "pole")
    b.add_face(
        [(-1.5, 2.3, 0), (1.5, 2.3, 0), (1.5, 3.7, 0), (-1.5, 3.7, 0)], "sign_green", label=sign
    )
    for y in (2.7, 3.25):
        b.add_face(bar((-1.2, y), (0.7, y), (0.16, 0.16)), white, label=sign)
    b.add_face([(0.95, 2.65, 0), (1.25, 2.65, 0), (1.1, 3.4, 0)], white, label=sign)
    result.append(b.build((1.2, 0.1, 2.3, 3.6)))
    return tuple(result)
