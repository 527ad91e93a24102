"""What the light and the weather do to a scene: sky colours, sun or moon, grading, mist, rain and snow. Plain values,
colours 0 to 255."""

from dataclasses import dataclass

import numpy as np

from turbodiffusion.demo.factors import Factors
from turbodiffusion.demo.painting import Colour
from turbodiffusion.demo.scenes import SCENES

Grade = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """sky: (top, bottom), None for the scene's own; scene, subject: factors on the colours of the layers and of the
    subject; disc: colour of the sun or moon, its radius in units and the strength of its glow; low: the disc stands
    near the horizon; mist: colour and share."""

    sky: tuple[Colour, Colour] | None = None
    scene: Grade = (1.0, 1.0, 1.0)
    subject: Grade = (1.0, 1.0, 1.0)
    disc: Colour = (255, 236, 120)
    radius: float = 0.0
    glow: float = 0.0
    low: bool = False
    mist: tuple[Colour, float] = ((0, 0, 0), 0.0)
    stars: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    flecks: tuple[Colour, Colour] = ((0, 0, 0), (0, 0, 0))  # petals or leaves that fall, in colours between these
    fall: float = 0.0  # units a second that they fall, 0 where none do


LIGHTS: dict[str, Light] = {
    "": Light(),
    "sunny": Light(scene=(1.03, 1.02, 0.97), subject=(1.02, 1.01, 0.99), disc=(255, 228, 92), radius=0.17, glow=0.5),
    "sunset": Light(
        ((108, 84, 160), (255, 168, 92)), (1.04, 0.7, 0.6), (1.0, 0.84, 0.74), (255, 148, 70), 0.26, 0.75, low=True
    ),
    "night": Light(
        ((8, 12, 44), (44, 58, 116)), (0.3, 0.36, 0.62), (0.66, 0.7, 0.88), (244, 244, 224), 0.15, 0.25, stars=1.0
    ),
    "fog": Light(
        ((206, 212, 218), (228, 232, 236)), (0.9, 0.92, 0.94), (0.96, 0.97, 0.98), mist=((224, 229, 234), 0.8)
    ),
    "rain": Light(
        ((98, 110, 128), (156, 168, 182)),
        (0.62, 0.68, 0.77),
        (0.82, 0.86, 0.93),
        mist=((150, 162, 178), 0.25),
        rain=1.0,
    ),
    "snow": Light(
        ((178, 194, 216), (226, 233, 243)), (0.86, 0.9, 0.97), (0.95, 0.97, 1.0), mist=((236, 241, 248), 0.3), snow=1.0
    ),
    "petals": Light(
        ((150, 194, 246), (255, 226, 236)),
        (1.02, 0.97, 0.98),
        (1.01, 0.99, 1.0),
        (255, 236, 170),
        0.14,
        0.35,
        flecks=((250, 150, 186), (255, 226, 236)),
        fall=0.6,
    ),
    "leaves": Light(
        ((140, 178, 224), (252, 230, 196)),
        (1.06, 0.9, 0.68),
        (1.02, 0.97, 0.9),
        (255, 214, 120),
        0.15,
        0.45,
        flecks=((196, 62, 28), (250, 186, 52)),
        fall=0.8,
    ),
}
OWN: dict[str, Light] = {  # of scenes without sun and weather
    "underwater": Light(scene=(0.94, 1.0, 1.04), subject=(0.9, 0.98, 1.04), mist=((28, 110, 168), 0.22)),
    "neon": Light(subject=(1.0, 0.9, 0.98), mist=((150, 60, 130), 0.12)),
}


def light_row(factors: Factors, aspect: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The clip's light as float32 arrays, colours from 0 to 1."""
    scene = SCENES[factors.scene]
    light = OWN.get(factors.scene) or LIGHTS[factors.light]
    top, bottom = light.sky or scene.sky
    tone = rng.normal(0.0, 5.0, 3)
    height = min(scene.horizon, 0.5) - 0.28 if light.low else rng.uniform(-0.78, -0.5)
    place = (rng.choice((-1.0, 1.0)) * rng.uniform(0.35, 0.75) * aspect, height)
    values = {
        "sky_top": (np.asarray(top) + tone) / 255,
        "sky_bottom": (np.asarray(bottom) + tone) / 255,
        "scene": np.asarray(light.scene) * rng.uniform(0.95, 1.05),
        "subject": np.asarray(light.subject),
        "mist": np.asarray(light.mist[0]) / 255,
        "disc": np.asarray(light.disc) / 255,
        "place": np.asarray(place),
        "radius": light.radius * rng.uniform(0.9, 1.15),
        "glow": light.glow,
        "mist_share": light.mist[1] * rng.uniform(0.85, 1.1),
        "stars": light.stars,
        "rain": light.rain,
        "snow": light.snow,
        "fleck_dark": np.asarray(light.flecks[0]) / 255,
        "fleck_light": np.asarray(light.flecks[1]) / 255,
        "fall": light.fall,
        "sway": scene.sway,
        "clouds": scene.clouds,
        "horizon": min(scene.horizon, 1.2),
        "shadow": scene.shadow * (0.5 if factors.light in ("fog", "rain", "night") else 1.0),
    }
    return {key: np.asarray(value, np.float32) for key, value in values.items()}
