"""Trees with and without leaves, conifers, bushes and hedges: flat figures that face the camera."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

from fada_deploy.synth.mesh import Mesh, MeshBuilder, Point, Surface, bar


def _blob(rng: Random, x: float, y: float, rx: float, ry: float) -> list[Point]:
    """Return the outline of a tree crown: a circle with bumps."""
    count = 26
    bumps = [(rng.uniform(0.03, 0.09), k, rng.uniform(0, 6.28)) for k in (3, 5, 8, 11)]
    points: list[Point] = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        radius = 1 + sum(a * math.sin(k * angle + p) for a, k, p in bumps)
        points.append((x + rx * radius * math.cos(angle), y + ry * radius * math.sin(angle), 0.0))
    return points


def _leafy(rng: Random) -> Mesh:
    b = MeshBuilder("vegetation")
    base, radius = rng.uniform(2.0, 2.8), rng.uniform(1.5, 2.3)
    top = base + radius * rng.uniform(1.7, 2.4)
    middle = (base + top) / 2
    b.add_face(bar((0, 0), (0.05, base + 0.8), (0.34, 0.22)), "trunk")
    b.add_face(bar((0, base - 0.2), (-0.6, base + 0.9), (0.16, 0.10)), "trunk", gain=0.9)
    b.add_face(bar((0, base - 0.1), (0.7, base + 1.0), (0.16, 0.10)), "trunk", gain=0.85)
    tall = (top - base) / 2
    b.add_face(_blob(rng, 0, middle, radius, tall), "leaf", gain=0.70, surface=Surface.LEAF)
    for _ in range(5):
        angle, away = rng.uniform(0, 6.28), rng.uniform(0.35, 0.6)
        x, y = math.cos(angle) * away * radius, middle + math.sin(angle) * away * tall
        gain = 0.86 + 0.22 * (y - middle) / tall
        size = rng.uniform(0.42, 0.6)
        b.add_face(
            _blob(rng, x, y, radius * size, tall * size * 0.9),
            "leaf",
            gain=gain,
            surface=Surface.LEAF,
        )
    x = -radius * 0.2
    b.add_face(
        _blob(rng, x, middle + tall * 0.38, radius * 0.5, tall * 0.42),
        "leaf",
        gain=1.14,
        surface=Surface.LEAF,
    )
    return b.build((radius * 0.9, radius * 0.9, base, top))


def _branch(
    b: MeshBuilder, rng: Random, foot: tuple[float, float], angle: float, size: float, depth: int
) -> None:
    tip = (foot[0] + math.sin(angle) * size, foot[1] + math.cos(angle) * size)
    width = 0.055 * size + 0.02
    b.add_face(
        bar(foot, tip, (width * 1.5, width)), "trunk", gain=0.8 + 0.1 * (3 - depth), fine=depth == 0
    )
    if depth:
        for turn in (-0.55, 0.0, 0.5):
            _branch(
                b,
                rng,
                tip,
                angle + turn + rng.uniform(-0.2, 0.2),
                size * rng.uniform(0.58, 0.8),
                depth - 1,
            )


def _leafless(rng: Random) -> Mesh:
    b = MeshBuilder("vegetation")
    b.add_face(bar((0, 0), (0, 2.0), (0.32, 0.24)), "trunk")
    for angle in (-0.6, -0.1, 0.45):
        _branch(b, rng, (0, 1.9), angle + rng.uniform(-0.1, 0.1), rng.uniform(1.3, 1.7), 2)
    return b.build((0.7, 0.7, 2.5, 5.0))


def _conifer(rng: Random) -> Mesh:
    b = MeshBuilder("vegetation")
    top, radius = rng.uniform(5.5, 8.0), rng.uniform(1.2, 1.7)
    b.add_face(bar((0, 0), (0, 1.2), (0.3, 0.25)), "trunk")
    layers = 5
    for i in range(layers):
        low = 0.8 + (top - 1.6) * i / layers
        wide = radius * (1 - 0.8 * i / layers)
        peak = min(top, low + (top - 0.8) * 0.42)
        teeth: list[Point] = [
            (wide * (2 * t / 6 - 1), low + (0.18 if t % 2 else 0.0) * wide, 0.0) for t in range(7)
        ]
        b.add_face([*teeth, (0.0, peak, 0.0)], "leaf", gain=0.62 + 0.07 * i, surface=Surface.LEAF)
    return b.build((radius * 0.7, radius * 0.7, 0.8, top * 0.8))


def _bush(rng: Random) -> Mesh:
    b = MeshBuilder("vegetation")
    b.add_face(_blob(rng, 0, 0.55, 0.9, 0.62), "leaf", gain=0.76, surface=Surface.LEAF)
    b.add_face(_blob(rng, -0.25, 0.75, 0.5, 0.40), "leaf", gain=0.98, surface=Surface.LEAF)
    b.add_face(_blob(rng, 0.35, 0.62, 0.42, 0.34), "leaf", gain=0.9, surface=Surface.LEAF)
    return b.build((0.8, 0.8, 0.0, 1.0))


@lru_cache(maxsize=1)
def trees() -> dict[str, tuple[Mesh, ...]]:
    """Return the variants of each kind of plant."""
    rng = Random(7)
    return {
        "leafy": tuple(_leafy(rng) for _ in range(8)),
        "leafless": tuple(_leafless(rng) for _ in range(4)),
        "conifer": tuple(_conifer(rng) for _ in range(4)),
        "bush": tuple(_bush(rng) for _ in range(4)),
    }


@lru_cache(maxsize=1)
def hedge() -> Mesh:
    """Return a hedge of 1 × 1 × 1 m, to be scaled."""
    b = MeshBuilder("vegetation")
    b.add_box((-0.5, 0, -0.5), (0.5, 1, 0.5), "leaf", gain=0.9, surface=Surface.LEAF)
    return b.build((0.5, 0.5, 0.0, 1.0))


@lru_cache(maxsize=1)
def woods() -> Mesh:
    """Return a distant line of trees, 1 m wide and high, to be scaled."""
    b, rng = MeshBuilder("vegetation"), Random(3)
    for gain, low in ((0.72, 0.62), (0.86, 0.42)):
        steps, height, ridge = 40, low, []
        for i in range(steps + 1):
            height = min(max(height + rng.uniform(-0.14, 0.14), low), low + 0.36)
            ridge.append((i / steps - 0.5, height, 0.0))
        b.add_face([(-0.5, 0, 0), *ridge, (0.5, 0, 0)], "leaf", gain=gain, surface=Surface.LEAF)
    return b.build()
