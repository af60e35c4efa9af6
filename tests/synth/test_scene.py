"""Scenes against a ray caster, against each other, and against what a street must hold."""

from __future__ import annotations

import math
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.synth.camera import Camera
from fada_deploy.synth.looks import LOOKS
from fada_deploy.synth.scene import render, sketch, stand
from fada_deploy.synth.shade import shade
from fada_deploy.synth.town import Town, build_town
from fada_deploy.synth.weather import Weather

SIZE = (192, 320)


def scene(seed: int, size_hw: tuple[int, int] = SIZE) -> tuple[Town, Camera]:
    town = build_town(seed)
    return town, stand(town, size_hw, Random(seed * 2))


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Tell which points (N, 2) lie in a polygon (K, 2), by counting crossings."""
    result = np.zeros(len(points), bool)
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        between = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = a[0] + (points[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
        result ^= between & (points[:, 0] < x)
    return result


def cast_rays(town: Town, camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Return the class nearest along the ray of each pixel (N, 2): row, column."""
    right = (pixels[:, 1] - camera.center[0]) / camera.focal
    up = (camera.center[1] - pixels[:, 0]) / camera.focal
    sin, cos = math.sin(camera.heading), math.cos(camera.heading)
    rays = np.stack((cos * right + sin, up, cos - sin * right), 1)
    eye = np.array([camera.x + town.bend.shift_at(camera.z), camera.y, camera.z])
    plain = np.where(up < 0, -camera.y / np.minimum(up, -1e-9), np.inf)
    best, label = (
        plain.copy(),
        np.where(up < 0, CITYSCAPES_19.index_of("terrain"), CITYSCAPES_19.index_of("sky")),
    )
    for thing in town.things:
        mesh = thing.meshes[thing.seed % len(thing.meshes)]
        yaw = camera.heading if thing.facing else thing.yaw
        local = mesh.corners * (thing.sx, thing.sy, thing.sz)
        z = local[:, 2] * math.cos(yaw) - local[:, 0] * math.sin(yaw) + thing.z
        x = local[:, 0] * math.cos(yaw) + local[:, 2] * math.sin(yaw) + thing.x
        world = np.stack((x + town.bend.amplitude * np.sin(z / town.bend.length + town.bend.phase),
                          local[:, 1] + thing.y, z), 1)  # fmt: skip
        for f in range(len(mesh)):
            corners = world[mesh.starts[f] : mesh.starts[f + 1]]
            normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
            distance = float((corners[0] - eye) @ normal)
            if mesh.solid[f] and distance >= 0:
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                t = distance / (rays @ normal)
            # What lies on a surface wins over it: lamps on a car, paint on a road.
            near = np.flatnonzero((t > 0.5) & (t <= best + 0.06 + 0.003 * best))
            if near.size:
                axes = np.delete(np.arange(3), np.abs(normal).argmax())
                hit = near[inside((eye + rays[near] * t[near, None])[:, axes], corners[:, axes])]
                best[hit] = np.minimum(best[hit], t[hit])
                label[hit] = mesh.labels[f]
    return label


@pytest.mark.parametrize("seed", [3, 100, 107])
def test_labels_are_those_of_the_nearest_thing(seed: int) -> None:
    town, camera = scene(seed)
    labels = sketch(town, camera)[0].labels
    # Away from edges, where a ray and a filled polygon may round differently.
    calm = np.ones(SIZE, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            calm &= np.roll(labels, step, axis) == labels
    calm[[0, -1]] = calm[:, [0, -1]] = False
    rng = np.random.default_rng(seed)
    pixels = rng.permutation(np.argwhere(calm))[:600]
    agree = cast_rays(town, camera, pixels) == labels[tuple(pixels.T)]
    assert agree.mean() > 0.99


@pytest.mark.parametrize("look", LOOKS)
def test_edges_of_the_picture_lie_on_edges_of_the_labels(look: str) -> None:
    contrast = dict.fromkeys((-2, -1, 0, 1, 2), 0.0)
    for seed in range(4):
        town, camera = scene(seed)
        drawing, shadow = sketch(town, camera)
        picture = shade(drawing, shadow, LOOKS[look], Weather.draw(LOOKS[look], seed), town.sun)
        across = np.abs(np.diff(picture, axis=1)).mean(2)
        edges = np.argwhere(np.diff(drawing.labels.astype(int), axis=1) != 0)
        edges = edges[(edges[:, 1] > 2) & (edges[:, 1] < SIZE[1] - 5)]
        for step in contrast:
            contrast[step] += across[edges[:, 0], edges[:, 1] + step].mean()
    assert max(contrast, key=contrast.__getitem__) == 0
    # Symmetric within reason: the antialiasing does not push the picture to one side.
    assert contrast[-1] == pytest.approx(contrast[1], rel=0.1)


@pytest.mark.parametrize("look", LOOKS)
def test_same_seed_same_bits_and_other_seeds_other_towns(look: str) -> None:
    picture, labels = render(look, 5)
    assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
    assert labels.shape == SIZE and labels.dtype == np.uint8
    other_picture, other_labels = render(look, 6)
    assert (other_labels != labels).mean() > 0.1
    assert (other_picture != picture).mean() > 0.5
    again = render(look, 5)
    assert np.array_equal(again[0], picture) and np.array_equal(again[1], labels)


def test_another_process_renders_the_same_bits() -> None:
    code = (
        "import zlib; from fada_deploy.synth.scene import render;"
        "print(zlib.crc32(b''.join(a.tobytes() for a in render('target', 11, (64, 96)))))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": h}, check=True, capture_output=True
        ).stdout
        for h in ("1", "2")
    }
    assert len(runs) == 1


def test_looks_differ_in_appearance_alone() -> None:
    for seed in range(3):
        source, source_labels = render("source", seed)
        target, target_labels = render("target", seed)
        assert np.array_equal(source_labels, target_labels)
        assert np.abs(source.astype(int) - target).mean() > 20
        # The game is more colorful, the camera noisier.
        assert np.ptp(source, axis=2).mean() > 1.5 * np.ptp(target, axis=2).mean()


def test_plain_colors_tell_the_classes_of_a_game() -> None:
    picture, labels = render("source", 6)
    red, green, blue = np.moveaxis(picture.astype(int), 2, 0)
    sky, grass = (labels == CITYSCAPES_19.index_of(n) for n in ("sky", "terrain"))
    assert (blue >= red)[sky].mean() > 0.95
    assert grass.mean() > 0.01 and (green > blue)[grass].mean() > 0.95


def test_every_class_but_trains_is_common_enough_to_learn() -> None:
    scenes = 40
    maps = [sketch(*scene(1000 + i))[0].labels for i in range(scenes)]
    counts = np.bincount(np.concatenate(maps, None), minlength=256)
    shares = counts[:19] / counts.sum()
    assert counts[19:].sum() == 0
    assert (shares > 0.01).sum() >= 10
    for name, share in zip(CITYSCAPES_19.names, shares, strict=True):
        if name != "train":
            assert share > 0.001, name


@pytest.mark.parametrize("size_hw", [(32, 32), (96, 256), (257, 129)])
def test_any_size(size_hw: tuple[int, int]) -> None:
    picture, labels = render("target", 2, size_hw)
    assert picture.shape == (*size_hw, 3) and labels.shape == size_hw


def test_an_unknown_look_is_named() -> None:
    with pytest.raises(UsageError, match=r"no look 'dusk'; there are source, target"):
        render("dusk", 0)
