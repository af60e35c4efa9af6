"""The two domains: every parameter of palette, weather, lens and sensor.

The layout of a town does not depend on the appearance, so one seed gives the same label map in
both. `random_appearance` draws another appearance for every scene, for training on real footage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from fada_deploy.common.errors import UsageError

RGB = tuple[int, int, int]
Range = tuple[float, float]
Palette = Mapping[str, tuple[RGB, ...]]


@dataclass(frozen=True)
class Appearance:
    """The rendering parameters of one domain.

    Ranges are (low, high) and sampled once per scene or clip.

    `palette` lists the colors of each slot, and `jitter` is the relative spread of a thing's color.
    `haze` is the extinction per meter. `blur` is in pixels of an image 192 rows high, `noise` in
    gray levels of 255, `texture` relative to the color. `jpeg` is the quality; 0 skips the
    compression.
    """

    name: str
    palette: Palette
    jitter: float
    # Light: `sun` is 1 on a clear day and 0 under an overcast sky; `shadow` is how much a full
    # shadow darkens.
    sun: Range
    shadow: Range
    shadow_softness: float
    ambient: float
    haze: Range
    clouds: Range
    # Camera.
    exposure: Range
    warmth: Range
    contrast: Range
    saturation: Range
    texture: float
    blur: Range
    noise: Range
    vignette: Range
    jpeg: tuple[int, int]


_COMMON_PALETTE: Palette = {
    "skin": ((236, 196, 164), (198, 146, 110), (134, 92, 66)),
    "hair": ((58, 40, 30), (110, 76, 44), (30, 28, 28), (190, 180, 170)),
    "white": ((244, 244, 240),),
    "dark": ((44, 46, 52),),
}

_SOURCE_PALETTE: Palette = {
    **_COMMON_PALETTE,
    "road": ((104, 108, 122), (96, 102, 118), (112, 114, 124)),
    "marking": ((250, 250, 250),),
    "sidewalk": ((206, 198, 190), (214, 200, 186), (196, 196, 202)),
    "curb": ((232, 228, 222),),
    "terrain": ((126, 204, 84), (112, 196, 92), (146, 206, 88)),
    "leaf": ((44, 156, 62), (62, 172, 56), (30, 138, 72), (92, 180, 54)),
    "trunk": ((124, 82, 50),),
    "wall_building": (
        (246, 204, 132),
        (238, 142, 112),
        (164, 200, 226),
        (248, 232, 202),
        (226, 118, 100),
        (190, 216, 176),
        (240, 184, 172),
        (214, 198, 232),
    ),
    "roof": ((196, 82, 62), (150, 72, 66), (92, 104, 138), (212, 112, 70)),
    "window": ((92, 150, 196), (80, 132, 178)),
    "trim": ((252, 246, 234),),
    "door": ((126, 70, 48), (44, 94, 112), (160, 48, 48)),
    "shop": ((220, 60, 70), (46, 130, 170), (240, 170, 50), (60, 150, 100)),
    "wall": ((178, 170, 196), (190, 162, 150), (168, 176, 188)),
    "fence": ((214, 160, 96), (238, 230, 214), (186, 128, 82)),
    "pole": ((136, 142, 152), (116, 122, 134)),
    "lightbox": ((36, 40, 44),),
    "light_green": ((60, 250, 150),),
    "light_yellow": ((255, 210, 60),),
    "light_red": ((255, 60, 50),),
    "sign_red": ((226, 32, 44),),
    "sign_blue": ((32, 92, 214),),
    "sign_yellow": ((252, 206, 44),),
    "sign_green": ((28, 142, 84),),
    "car": (
        (226, 48, 48),
        (44, 106, 220),
        (248, 206, 52),
        (246, 246, 246),
        (64, 70, 84),
        (52, 176, 168),
        (250, 136, 40),
    ),
    "truck": ((240, 240, 236), (60, 120, 190), (220, 86, 52), (96, 168, 92)),
    "bus": ((250, 190, 40), (214, 44, 60), (56, 140, 214)),
    "tram": ((216, 44, 52), (46, 128, 102), (250, 222, 120)),
    "glass": ((58, 84, 110),),
    "tire": ((36, 36, 40),),
    "hub": ((186, 190, 198),),
    "plate": ((250, 244, 200),),
    "tail": ((255, 60, 60),),
    "head": ((255, 250, 200),),
    "top": (
        (240, 80, 80),
        (60, 130, 230),
        (250, 210, 70),
        (90, 200, 130),
        (240, 240, 240),
        (190, 90, 200),
    ),
    "trousers": ((50, 70, 130), (70, 70, 80), (150, 110, 70)),
    "helmet": ((250, 250, 250), (240, 200, 40), (230, 50, 60)),
    "bike": ((220, 50, 60), (40, 150, 210), (60, 190, 110), (40, 44, 52)),
    "sky_top": ((72, 150, 240), (58, 136, 232)),
    "sky_low": ((186, 224, 252), (206, 232, 250)),
    "cloud": ((255, 255, 255),),
}

_TARGET_PALETTE: Palette = {
    **_COMMON_PALETTE,
    "skin": ((206, 168, 144), (170, 128, 100), (112, 80, 62)),
    "white": ((206, 204, 198),),
    "dark": ((46, 44, 44),),
    "road": ((92, 87, 82), (82, 78, 76), (100, 94, 86)),
    "marking": ((196, 194, 186), (180, 178, 170)),
    "sidewalk": ((142, 136, 130), (130, 128, 124), (148, 138, 128)),
    "curb": ((160, 156, 150),),
    "terrain": ((118, 122, 78), (132, 124, 86), (104, 112, 70)),
    "leaf": ((72, 88, 56), (84, 92, 54), (60, 78, 58), (100, 98, 60)),
    "trunk": ((72, 62, 54),),
    "wall_building": (
        (142, 88, 72),
        (158, 106, 84),
        (166, 154, 136),
        (122, 112, 104),
        (186, 176, 158),
        (148, 138, 130),
        (128, 82, 70),
    ),
    "roof": ((96, 72, 66), (84, 82, 86), (112, 84, 70)),
    "window": ((74, 82, 90), (92, 100, 108), (58, 62, 68)),
    "trim": ((184, 178, 166),),
    "door": ((74, 58, 48), (52, 62, 66), (92, 46, 42)),
    "shop": ((132, 52, 52), (52, 84, 104), (150, 122, 70), (62, 86, 70)),
    "wall": ((136, 128, 118), (120, 104, 94), (146, 142, 136)),
    "fence": ((112, 92, 72), (150, 144, 134), (88, 78, 70)),
    "pole": ((98, 98, 98), (84, 88, 88), (116, 112, 106)),
    "lightbox": ((34, 36, 34),),
    "light_green": ((120, 230, 190),),
    "light_yellow": ((240, 206, 120),),
    "light_red": ((238, 92, 70),),
    "sign_red": ((172, 44, 46),),
    "sign_blue": ((50, 84, 146),),
    "sign_yellow": ((204, 170, 62),),
    "sign_green": ((46, 98, 76),),
    "car": (
        (38, 40, 44),
        (176, 178, 180),
        (214, 214, 212),
        (104, 108, 112),
        (112, 40, 40),
        (50, 64, 92),
        (72, 76, 78),
    ),
    "truck": ((194, 192, 186), (86, 100, 118), (128, 76, 58)),
    "bus": ((186, 152, 70), (142, 48, 50), (92, 112, 132)),
    "tram": ((140, 52, 52), (78, 102, 94), (186, 172, 124)),
    "glass": ((62, 70, 78),),
    "tire": ((34, 33, 34),),
    "hub": ((126, 128, 130),),
    "plate": ((206, 200, 170),),
    "tail": ((176, 48, 44),),
    "head": ((236, 232, 210),),
    "top": (
        (62, 64, 72),
        (110, 96, 84),
        (120, 60, 58),
        (74, 88, 110),
        (172, 168, 160),
        (86, 92, 76),
    ),
    "trousers": ((48, 54, 72), (52, 50, 52), (98, 86, 72)),
    "helmet": ((200, 200, 196), (60, 62, 66), (150, 60, 58)),
    "bike": ((96, 50, 50), (56, 78, 98), (42, 44, 46), (120, 122, 122)),
    "sky_top": ((176, 186, 198), (188, 192, 196), (160, 176, 196)),
    "sky_low": ((216, 216, 214), (208, 212, 216), (222, 216, 206)),
    "cloud": ((226, 226, 226), (196, 200, 206)),
}

# Names of all color slots; meshes refer to them by index.
SLOTS = tuple(sorted(_SOURCE_PALETTE))

_SOURCE_APPEARANCE = Appearance(
    name="source",
    palette=_SOURCE_PALETTE,
    jitter=0.05,
    sun=(0.85, 1.0),
    shadow=(0.28, 0.38),
    shadow_softness=0.0,
    ambient=0.80,
    haze=(0.0008, 0.0016),
    clouds=(0.1, 0.5),
    exposure=(0.97, 1.03),
    warmth=(0.0, 0.03),
    contrast=(1.0, 1.0),
    saturation=(1.0, 1.0),
    texture=0.0,
    blur=(0.0, 0.0),
    noise=(0.0, 0.0),
    vignette=(0.0, 0.0),
    jpeg=(0, 0),
)

_TARGET_APPEARANCE = Appearance(
    name="target",
    palette=_TARGET_PALETTE,
    jitter=0.10,
    sun=(0.0, 0.55),
    shadow=(0.12, 0.28),
    shadow_softness=0.6,
    ambient=0.72,
    haze=(0.004, 0.011),
    clouds=(0.3, 1.0),
    exposure=(0.92, 1.28),
    warmth=(-0.05, 0.09),
    contrast=(0.90, 1.12),
    saturation=(0.75, 1.0),
    texture=0.20,
    blur=(0.45, 0.85),
    noise=(2.0, 6.0),
    vignette=(0.10, 0.32),
    jpeg=(72, 92),
)

APPEARANCES: dict[str, Appearance] = {
    each.name: each for each in (_SOURCE_APPEARANCE, _TARGET_APPEARANCE)
}


def random_appearance(seed: int) -> Appearance:
    """Return an appearance with random colors, light, texture and camera; the same for a seed.

    Networks for real footage generalize better from many appearances than from one (Tobin et al.,
    2017, domain randomization).
    """
    rng = Random(f"random appearance:{seed}")
    return Appearance(
        name="random",
        palette={slot: _random_colors(slot, rng) for slot in SLOTS},
        jitter=rng.uniform(0.05, 0.15),
        sun=(0.0, 1.0),
        shadow=(0.1, 0.4),
        shadow_softness=rng.uniform(0.0, 0.8),
        ambient=rng.uniform(0.6, 0.85),
        haze=(0.0008, 0.011),
        clouds=(0.1, 1.0),
        exposure=(0.6, 1.3),
        warmth=(-0.08, 0.12),
        contrast=(0.85, 1.3),
        saturation=(0.4, 1.05),
        texture=rng.uniform(0.0, 0.35),
        blur=(0.0, 0.85),
        noise=(0.0, 6.0),
        vignette=(0.0, 0.32),
        jpeg=(72, 92),
    )


def _random_colors(slot: str, rng: Random) -> tuple[RGB, ...]:
    """Return the colors of a slot in one of the domains, changed in brightness and saturation."""
    palette = _SOURCE_PALETTE if rng.random() < 0.4 else _TARGET_PALETTE
    gain, gray = rng.uniform(0.7, 1.15), rng.uniform(0.0, 0.5)
    colors = []
    for color in palette[slot]:
        mean = sum(color) / 3
        red, green, blue = (
            min(255, round(gain * (gray * mean + (1 - gray) * value))) for value in color
        )
        colors.append((red, green, blue))
    return tuple(colors)


def get_appearance(appearance: str | Appearance) -> Appearance:
    """Return an appearance by name, or the given `Appearance` unchanged.

    Raise `UsageError` for an unknown name.
    """
    if isinstance(appearance, Appearance):
        return appearance
    if appearance not in APPEARANCES:
        raise UsageError(f"unknown appearance {appearance!r}; choose from {', '.join(APPEARANCES)}")
    return APPEARANCES[appearance]
