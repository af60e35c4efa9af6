"""Weather: light, haze and camera settings of one scene or clip, sampled from an appearance."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fada_deploy.synth.appearances import Appearance, Range


@dataclass(frozen=True)
class Weather:
    """Values of one scene, in the units of `Appearance`; `seed` selects clouds and noise."""

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
    def sample(cls, appearance: Appearance, seed: int) -> Weather:
        """Sample the weather of a scene; the same appearance and seed give the same weather."""
        rng = Random(f"{appearance.name}:{seed}")

        def pick(limits: Range) -> float:
            return rng.uniform(*limits)

        return cls(
            sun=pick(appearance.sun),
            shadow=pick(appearance.shadow),
            haze=pick(appearance.haze),
            clouds=pick(appearance.clouds),
            exposure=pick(appearance.exposure),
            warmth=pick(appearance.warmth),
            contrast=pick(appearance.contrast),
            saturation=pick(appearance.saturation),
            blur=pick(appearance.blur),
            noise=pick(appearance.noise),
            vignette=pick(appearance.vignette),
            jpeg=rng.randint(*appearance.jpeg),
            seed=rng.getrandbits(30),
        )
