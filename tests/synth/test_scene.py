"""Rendered scenes against a ray caster, against each other and against class fractions."""

from __future__ import annotations

import math
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.synth.appearances import APPEARANCES, random_appearance
from fada_deploy.synth.camera import Camera
from fada_deploy.synth.scene import place_camera, render, render_raster
from fada_deploy.synth.shade import shade
from fada_deploy.synth.town import Town, build_town
from fada_deploy.synth.weather import Weather

SIZE = (192, 320)


def scene(seed: int, size_hw: tuple[int, int] = SIZE) -> tuple[Town, Camera]:
    town = build_town(seed)
    return town, place_camera(town, size_hw, Random(seed * 2))


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Return which points (N, 2) lie in a polygon (K, 2), by the even-odd rule."""
    result = np.zeros(len(points), bool)
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        between = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = a[0] + (points[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
        result ^= between & (points[:, 0] < x)
    return result


def cast_rays(town: Town, camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Return the class of the nearest face along the ray of each pixel (N, 2): row, column."""
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
            # Details on a surface are in front of it: lamps on a car, markings on a road.
            near = np.flatnonzero((t > 0.5) & (t <= best + 0.06 + 0.003 * best))
            if near.size:
                axes = np.delete(np.arange(3), np.abs(normal).argmax())
                hit = near[inside((eye + rays[near] * t[near, None])[:, axes], corners[:, axes])]
                best[hit] = np.minimum(best[hit], t[hit])
                label[hit] = mesh.labels[f]
    return label


@pytest.mark.parametrize("seed", [3, 100, 107])
def test_labels_are_classes_of_nearest_faces(seed: int) -> None:
    town, camera = scene(seed)
    labels = render_raster(town, camera)[0].labels
    # Away from edges, where rays and filled polygons may round differently.
    interior = np.ones(SIZE, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            interior &= np.roll(labels, step, axis) == labels
    interior[[0, -1]] = interior[:, [0, -1]] = False
    rng = np.random.default_rng(seed)
    pixels = rng.permutation(np.argwhere(interior))[:600]
    equal = cast_rays(town, camera, pixels) == labels[tuple(pixels.T)]
    assert equal.mean() > 0.99


@pytest.mark.parametrize("appearance", APPEARANCES)
def test_image_edges_coincide_with_label_edges(appearance: str) -> None:
    contrast = dict.fromkeys((-2, -1, 0, 1, 2), 0.0)
    for seed in range(4):
        town, camera = scene(seed)
        raster, shadow = render_raster(town, camera)
        image = shade(
            raster,
            shadow,
            APPEARANCES[appearance],
            Weather.sample(APPEARANCES[appearance], seed),
            town.sun,
        )
        across = np.abs(np.diff(image, axis=1)).mean(2)
        edges = np.argwhere(np.diff(raster.labels.astype(int), axis=1) != 0)
        edges = edges[(edges[:, 1] > 2) & (edges[:, 1] < SIZE[1] - 5)]
        for step in contrast:
            contrast[step] += across[edges[:, 0], edges[:, 1] + step].mean()
    assert max(contrast, key=contrast.__getitem__) == 0
    # Approximately symmetric: antialiasing does not shift the image to one side.
    assert contrast[-1] == pytest.approx(contrast[1], rel=0.1)


@pytest.mark.parametrize("appearance", APPEARANCES)
def test_seed_determines_every_bit(appearance: str) -> None:
    image, labels = render(appearance, 5)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    assert labels.shape == SIZE and labels.dtype == np.uint8
    other_image, other_labels = render(appearance, 6)
    assert (other_labels != labels).mean() > 0.1
    assert (other_image != image).mean() > 0.5
    again = render(appearance, 5)
    assert np.array_equal(again[0], image) and np.array_equal(again[1], labels)


def test_other_processes_render_identical_bits() -> None:
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


def test_appearance_does_not_change_labels() -> None:
    for seed in range(3):
        source, source_labels = render("source", seed)
        target, target_labels = render("target", seed)
        assert np.array_equal(source_labels, target_labels)
        assert np.abs(source.astype(int) - target).mean() > 20
        # The source is more saturated than the target.
        assert np.ptp(source, axis=2).mean() > 1.5 * np.ptp(target, axis=2).mean()


def test_source_sky_is_blue_and_terrain_green() -> None:
    image, labels = render("source", 6)
    red, green, blue = np.moveaxis(image.astype(int), 2, 0)
    sky, grass = (labels == CITYSCAPES_19.index_of(n) for n in ("sky", "terrain"))
    assert (blue >= red)[sky].mean() > 0.95
    assert grass.mean() > 0.01 and (green > blue)[grass].mean() > 0.95


def test_every_class_except_train_is_frequent_enough_to_learn() -> None:
    scenes = 40
    maps = [render_raster(*scene(1000 + i))[0].labels for i in range(scenes)]
    counts = np.bincount(np.concatenate(maps, None), minlength=256)
    fractions = counts[:19] / counts.sum()
    assert counts[19:].sum() == 0
    assert (fractions > 0.01).sum() >= 10
    for name, fraction in zip(CITYSCAPES_19.names, fractions, strict=True):
        if name != "train":
            assert fraction > 0.001, name


@pytest.mark.parametrize("size_hw", [(32, 32), (96, 256), (257, 129)])
def test_renders_any_size(size_hw: tuple[int, int]) -> None:
    image, labels = render("target", 2, size_hw)
    assert image.shape == (*size_hw, 3) and labels.shape == size_hw


def test_unknown_appearance_raises() -> None:
    with pytest.raises(UsageError, match=r"'dusk'.*source, target"):
        render("dusk", 0)


def test_random_scenes_depend_on_the_seed_alone_and_differ_in_look_and_view() -> None:
    first, again = (render("random", 5, (96, 128)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert random_appearance(5) == random_appearance(5) != random_appearance(6)
    images, labels = zip(*(render("random", seed, (96, 128)) for seed in range(12)), strict=True)
    means = np.array([image.mean((0, 1)) for image in images])
    source = np.array([render("source", seed, (96, 128))[0].mean((0, 1)) for seed in range(12)])
    # Brightness and color vary more than those of the source domain.
    assert (means.std(0) > 1.5 * source.std(0)).all()
    # The camera differs too, so the horizon does: the highest row with road pixels.
    rows = [int(np.flatnonzero((map_ == 0).any(1))[0]) for map_ in labels]
    assert np.std(rows) > 4
    assert all(
        color in range(256)
        for values in random_appearance(1).palette.values()
        for rgb in values
        for color in rgb
    )
