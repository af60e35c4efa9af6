"""One draw from a look's ranges: the light, the air and the camera of a scene or clip."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fada_deploy.synth.looks import Appearance, Range


@dataclass(frozen=True)
class Weather:
    """Values of one scene; units as in `Appearance`. `seed` decides clouds and noise."""

    sun: float
    shadow: float
    haze: float
    clouds: float
    exposure: float
    warmth: float
    contrast: float
    saturation: float
    blur: float
    noise: float
    vignette: float
    jpeg: int
    seed: int

    @classmethod
    def draw(cls, look: Appearance, seed: int) -> Weather:
        """Draw the weather of a scene; the same look and seed give the same weather."""
        rng = Random(f"{look.name}:{seed}")

        def pick(limits: Range) -> float:
            return rng.uniform(*limits)

        return cls(
            sun=pick(look.sun),
            shadow=pick(look.shadow),
            haze=pick(look.haze),
            clouds=pick(look.clouds),
            exposure=pick(look.exposure),
            warmth=pick(look.warmth),
            contrast=pick(look.contrast),
            saturation=pick(look.saturation),
            blur=pick(look.blur),
            noise=pick(look.noise),
            vignette=pick(look.vignette),
            jpeg=rng.randint(*look.jpeg),
            seed=rng.getrandbits(30),
        )
