"""The places of the demo world: procedural layers with parallax, each seed another garden, another forest.

A scene is four transparent layers over a plain sky: far, middle, ground (subjects stand on it) and front. Everything
that follows the light (sky colours, sun, moon, stars, rain, the grading) is added by the renderer.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from turbodiffusion.demo.landscapes import paint_cherry, paint_hill, paint_neon
from turbodiffusion.demo.painting import HALF_X, HALF_Y, Canvas, Colour, darker, lighter, mix, vary, waves
from turbodiffusion.demo.scenery import (
    WHITE,
    Rng,
    clouds,
    flowers,
    grass,
    house,
    palm,
    pine,
    round_tree,
    spread,
)

LAYERS = 4
PARALLAX = (0.15, 0.45, 1.0, 1.2)  # how far each layer follows the camera, far to front
Painter = Callable[[list[Canvas], Rng], None]


@dataclass(frozen=True)
class Scene:
    """A place: its painter, the height of its horizon, where feet stand (near and far), and the sky by day (top,
    bottom).

    lights: whether sun, night and weather exist here. shadow: strength of a subject's shadow on the ground, 0 where
    it floats. sway: how far the wind moves the middle layer's tops, in units; clouds: units a second that clouds drift.
    """

    paint: Painter
    horizon: float
    sky: tuple[Colour, Colour]
    lights: bool = True
    shadow: float = 0.35
    feet: tuple[float, float] = (0.62, 0.8)
    sway: float = 0.0
    clouds: float = 0.0

    @property
    def windy(self) -> bool:
        return bool(self.sway or self.clouds)


def paint_garden(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, front = layers
    green = vary((112, 196, 82), rng)
    clouds(far, rng, 6, -1.1, -0.55)
    far.ridge(waves(rng, 0.0, 0.1, 1.6), (150, 208, 160), (130, 196, 140))
    for x in spread(rng, 9):
        round_tree(middle, x, 0.24, rng.uniform(0.6, 0.85), vary((72, 164, 72), rng, 20))
    for x in spread(rng, 2):
        wall, roof = (
            vary((246, 226, 190), rng, 20),
            ((214, 84, 66), (92, 128, 196), (190, 120, 70))[int(rng.integers(3))],
        )
        house(middle, x, 0.26, rng.uniform(0.55, 0.75), wall, roof)
    ground.ridge(waves(rng, 0.2, 0.015, 2.0), lighter(green, 0.12), darker(green, 0.18))
    for x in np.arange(-HALF_X, HALF_X, 0.105):  # the white fence says "garden"
        ground.polygon(
            [(x, 0.3), (x, 0.09), (x + 0.03, 0.055), (x + 0.06, 0.09), (x + 0.06, 0.3)], WHITE, (226, 230, 238)
        )
    for y in (0.13, 0.22):
        ground.rectangle(-HALF_X, y, HALF_X, y + 0.03, (250, 250, 252), (222, 226, 236))
    grass(ground, rng, 0.32, green)
    flowers(ground, rng, 0.34, 90, 1.2)
    flowers(front, rng, 1.0, 14, 2.2)


def paint_meadow(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    green = vary((138, 204, 84), rng)
    clouds(far, rng, 7, -1.15, -0.5, 1.1)
    far.ridge(waves(rng, -0.1, 0.2, 1.2), (136, 176, 206), (168, 204, 206))
    middle.ridge(waves(rng, 0.06, 0.16, 1.5), (128, 196, 104), (96, 168, 84))
    middle.ridge(waves(rng, 0.2, 0.1, 1.9), (150, 210, 100), (112, 182, 80))
    ground.ridge(waves(rng, 0.3, 0.02, 1.3), lighter(green, 0.15), darker(green, 0.2))
    grass(ground, rng, 0.34, green, 700)


def paint_forest(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, front = layers
    leaf = vary((46, 122, 74), rng)
    floor = vary((124, 116, 66), rng, 8)
    far.ridge(waves(rng, -0.1, 0.08, 3.0), mix(leaf, (150, 196, 180), 0.6), mix(leaf, (150, 196, 180), 0.3))
    for x in spread(rng, 22):
        pine(far, x, 0.3, rng.uniform(1.0, 1.5), mix(leaf, (150, 196, 180), 0.45))
    for x in spread(rng, 15):
        pine(middle, x, 0.34, rng.uniform(1.1, 1.7), vary(leaf, rng, 12))
    ground.ridge(waves(rng, 0.26, 0.02, 2.0), lighter(floor, 0.12), darker(floor, 0.3))
    grass(ground, rng, 0.3, (84, 140, 62), 420)
    for x in spread(rng, 5):
        y = rng.uniform(0.4, 1.2)
        ground.rectangle(x - 0.02, y - 0.08, x + 0.02, y, (246, 236, 220), (214, 200, 180))
        ground.blobs([(x, y - 0.085, 0.06, 0.045)], (236, 92, 72), (190, 50, 48))
    for x in spread(rng, 5, gap=0.75):
        width = rng.uniform(0.07, 0.11)
        front.rectangle(x - width, -HALF_Y, x + width, 0.95 + rng.uniform(0, 0.15), (98, 68, 48), (72, 48, 34))


def paint_beach(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    sand = vary((244, 216, 152), rng, 9)
    clouds(far, rng, 5, -1.1, -0.5)
    far.rectangle(-HALF_X, -0.06, HALF_X, 0.4, (46, 140, 214), (84, 200, 220))
    starts = np.stack([rng.uniform(-HALF_X, HALF_X, 60), rng.uniform(-0.02, 0.28, 60)], 1)
    far.strokes(
        starts,
        starts + np.stack([rng.uniform(0.05, 0.16, 60), np.zeros(60)], 1),
        0.01,
        [(190, 232, 244), (120, 196, 232)],
    )
    ground.ridge(waves(rng, 0.3, 0.035, 2.2), (250, 252, 255), (226, 244, 250))
    ground.ridge(waves(rng, 0.36, 0.03, 2.2), darker(sand, 0.12), sand)
    ground.ridge(waves(rng, 0.44, 0.03, 1.9), lighter(sand, 0.2), darker(sand, 0.1))
    dots = np.stack([rng.uniform(-HALF_X, HALF_X, 260), rng.uniform(0.48, HALF_Y, 260)], 1)
    ground.dots(dots, rng.uniform(0.004, 0.01, 260), [darker(sand, 0.16), lighter(sand, 0.4)])
    for x in spread(rng, 4, gap=0.45):
        palm(middle, x, 0.5, rng.uniform(1.0, 1.25), rng.uniform(-0.35, 0.35))
    for x in spread(rng, 2):  # a parasol
        red = ((228, 70, 74), (250, 180, 50), (66, 150, 220))[int(rng.integers(3))]
        middle.rectangle(x - 0.012, 0.06, x + 0.012, 0.46, (240, 236, 228), (210, 204, 196))
        middle.polygon(
            [(x + 0.3 * np.cos(a), 0.13 - 0.26 * np.sin(a)) for a in np.linspace(0, np.pi, 24)],
            lighter(red, 0.15),
            darker(red, 0.1),
        )


def paint_sea(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, front = layers
    blue = vary((38, 118, 200), rng, 10)
    clouds(far, rng, 6, -1.1, -0.3, 1.1)
    middle.ridge(lambda x: np.full_like(x, 0.02), lighter(blue, 0.3), darker(blue, 0.1))
    for k, level in enumerate(np.linspace(0.1, 0.52, 6)):
        shade = mix(lighter(blue, 0.22), darker(blue, 0.12), k / 5)
        ground.ridge(waves(rng, level, 0.025, 7.0 - 0.6 * k), lighter(shade, 0.14), shade, base=level + 0.24)
    for k, level in enumerate(np.linspace(0.68, 1.2, 5)):  # before the subject: boats and whales sit in the water
        shade = mix(darker(blue, 0.04), darker(blue, 0.32), k / 4)
        front.ridge(waves(rng, level, 0.03, 5.5), lighter(shade, 0.2), darker(shade, 0.1))
    starts = np.stack([rng.uniform(-HALF_X, HALF_X, 70), rng.uniform(0.75, 1.35, 70)], 1)
    front.strokes(
        starts, starts + np.stack([rng.uniform(0.04, 0.12, 70), np.zeros(70)], 1), 0.012, [lighter(blue, 0.55)]
    )


def paint_desert(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    sand = vary((232, 172, 96), rng, 9)
    for x in spread(rng, 4):
        w, h = rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.6)
        far.polygon(
            [(x - w, 0.3), (x - 0.72 * w, 0.2 - h), (x + 0.72 * w, 0.2 - h), (x + w, 0.3)],
            (214, 130, 92),
            (196, 112, 84),
        )
    far.ridge(waves(rng, 0.12, 0.08, 1.4), lighter(sand, 0.25), lighter(sand, 0.1))
    middle.ridge(waves(rng, 0.2, 0.1, 1.8), lighter(sand, 0.16), darker(sand, 0.12))
    ground.ridge(waves(rng, 0.32, 0.035, 1.2), lighter(sand, 0.2), darker(sand, 0.16))
    for level in np.linspace(0.42, 1.3, 9).tolist():  # ripples
        ripple = np.linspace(-HALF_X, HALF_X, 60)
        line = np.stack([ripple, waves(rng, level, 0.02, 3.0)(ripple)], 1)
        ground.strokes(line[:-1], line[1:], 0.008, [darker(sand, 0.1)])
    green = vary((70, 150, 84), rng)
    for x in spread(rng, 6, gap=0.2):
        base, s = 0.36, rng.uniform(0.5, 0.85)
        for x0, y0, x1, y1 in (
            (-0.09, -0.95, 0.09, 0.0),
            (-0.34, -0.7, -0.22, -0.36),
            (0.2, -0.8, 0.32, -0.46),
            (-0.3, -0.46, 0, -0.34),
            (0, -0.56, 0.3, -0.44),
        ):
            middle.rounded(
                x + s * x0,
                base + s * y0,
                x + s * x1,
                base + s * y1,
                0.06 * s,
                lighter(green, 0.15),
                darker(green, 0.12),
            )


def paint_snow(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    for x in spread(rng, 7):
        w, h = rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.85)
        far.polygon([(x - w, 0.3), (x + w, 0.3), (x, 0.25 - h)], (132, 160, 204), (176, 198, 228))
        far.polygon(
            [
                (x - 0.38 * w, 0.27 - 0.62 * h),
                (x - 0.12 * w, 0.29 - 0.55 * h),
                (x + 0.1 * w, 0.24 - 0.66 * h),
                (x + 0.36 * w, 0.28 - 0.6 * h),
                (x, 0.25 - h),
            ],
            WHITE,
            (236, 242, 252),
        )
    for x in spread(rng, 9):
        pine(middle, x, 0.3, rng.uniform(0.5, 0.85), vary((62, 122, 100), rng, 12), snowy=True)
    middle.ridge(waves(rng, 0.24, 0.05, 1.5), (236, 243, 252), (214, 226, 244))
    ground.ridge(waves(rng, 0.32, 0.03, 1.3), WHITE, (206, 220, 242))
    for _ in range(10):
        x, y = rng.uniform(-HALF_X, HALF_X), rng.uniform(0.4, 1.2)
        ground.ellipse(x, y, rng.uniform(0.15, 0.35), 0.03, (228, 238, 250), (214, 227, 246))


def paint_city(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    x = -HALF_X
    while x < HALF_X:
        w, h = rng.uniform(0.2, 0.36), rng.uniform(0.5, 1.05)
        far.rectangle(x, 0.3 - h, x + w, 0.4, (150, 174, 206), (180, 200, 222))
        x += w
    palette: list[Colour] = [
        (208, 110, 92),
        (238, 202, 140),
        (120, 150, 190),
        (150, 188, 170),
        (200, 170, 200),
        (226, 150, 110),
    ]
    x = -HALF_X
    while x < HALF_X:
        w, h = rng.uniform(0.34, 0.55), rng.uniform(0.5, 0.95)
        wall = vary(palette[int(rng.integers(len(palette)))], rng, 10)
        middle.rectangle(x, 0.34 - h, x + w, 0.45, lighter(wall, 0.12), darker(wall, 0.1))
        columns = max(2, round(w / 0.14))
        for row in np.arange(0.42 - h, 0.1, 0.17):
            for k in range(columns):
                left = x + w * (k + 0.25) / columns
                middle.rectangle(left, row, left + 0.5 * w / columns, row + 0.1, (196, 226, 246), (140, 184, 220))
        middle.rectangle(x + 0.05, 0.2, x + w - 0.05, 0.4, (92, 104, 124), (120, 132, 150))
        x += w + 0.01
    ground.rectangle(-HALF_X, 0.36, HALF_X, 0.48, (196, 198, 204), (176, 178, 186))
    ground.rectangle(-HALF_X, 0.48, HALF_X, HALF_Y, (112, 116, 126), (84, 88, 98))
    ground.rectangle(-HALF_X, 0.48, HALF_X, 0.5, (140, 142, 150))
    for x in np.arange(-HALF_X, HALF_X, 0.5):
        ground.rectangle(x, 0.84, x + 0.28, 0.88, (246, 240, 220))


def paint_sky(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, front = layers
    clouds(far, rng, 8, -1.0, 0.9, 1.0)
    clouds(middle, rng, 5, -0.9, 1.1, 1.5)
    ground.ridge(waves(rng, 1.02, 0.06, 3.0), WHITE, (200, 220, 244))
    for x in spread(rng, 8):
        ground.blobs([(x, 1.05, rng.uniform(0.3, 0.45), rng.uniform(0.14, 0.24))], WHITE, (214, 230, 248))
    clouds(front, rng, 3, 0.95, 1.25, 2.0)


def paint_space(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, _ = layers
    points = np.stack([rng.uniform(-HALF_X, HALF_X, 420), rng.uniform(-HALF_Y, HALF_Y, 420)], 1)
    far.dots(points, rng.uniform(0.004, 0.014, 420), [WHITE, (255, 236, 190), (190, 214, 255), (200, 200, 220)])
    palette: list[Colour] = [(232, 140, 80), (110, 170, 230), (200, 110, 180), (130, 200, 160), (226, 200, 130)]
    for x in spread(rng, 4):
        colour, r = palette[int(rng.integers(5))], rng.uniform(0.14, 0.3)
        y = rng.choice((-0.75, -0.5, 0.6, 0.8)) + rng.uniform(-0.1, 0.1)
        middle.ellipse(x, y, r, r, lighter(colour, 0.3), darker(colour, 0.5))
        middle.ellipse(x - 0.3 * r, y - 0.35 * r, 0.22 * r, 0.16 * r, lighter(colour, 0.5), lighter(colour, 0.3))
        if rng.uniform() < 0.5:
            middle.polygon(
                [(x + 1.7 * r * np.cos(a), y + 0.28 * r * np.sin(a) + 0.1 * r) for a in np.linspace(0, np.pi, 20)]
                + [(x - 1.5 * r, y), (x, y + 0.18 * r), (x + 1.5 * r, y)],
                (240, 224, 190),
                (190, 160, 130),
            )
    grey = vary((150, 150, 164), rng, 8)
    ground.ridge(waves(rng, 0.86, 0.05, 1.5), lighter(grey, 0.15), darker(grey, 0.35))
    for x in spread(rng, 9):
        ground.ellipse(x, rng.uniform(0.98, 1.3), rng.uniform(0.08, 0.2), 0.035, darker(grey, 0.35), darker(grey, 0.1))


def paint_underwater(layers: list[Canvas], rng: Rng) -> None:
    far, middle, ground, front = layers
    far.ridge(waves(rng, 0.45, 0.22, 1.8), (30, 104, 158), (38, 120, 168))
    sand = vary((206, 196, 148), rng, 9)
    corals: list[Colour] = [(240, 110, 120), (250, 160, 90), (190, 110, 210), (250, 130, 180)]
    for x in spread(rng, 8):
        colour, s = corals[int(rng.integers(4))], rng.uniform(0.5, 0.9)
        for u, h in ((-0.2, 0.4), (-0.07, 0.62), (0.08, 0.5), (0.22, 0.34)):
            middle.rounded(
                x + s * (u - 0.055),
                0.78 - s * h,
                x + s * (u + 0.055),
                0.95,
                0.05 * s,
                lighter(colour, 0.1),
                darker(colour, 0.25),
            )
    ground.ridge(waves(rng, 0.76, 0.04, 1.6), lighter(sand, 0.1), darker(sand, 0.3))
    dots = np.stack([rng.uniform(-HALF_X, HALF_X, 160), rng.uniform(0.84, HALF_Y, 160)], 1)
    ground.dots(dots, rng.uniform(0.005, 0.012, 160), [darker(sand, 0.2), lighter(sand, 0.3)])
    for layer, count, height in ((ground, 10, 0.7), (front, 5, 0.6)):
        for x in spread(rng, count, gap=0.55 if layer is front else 0.0):
            t = np.linspace(0, 1, 16)
            sway = 0.05 * np.sin(7 * t + rng.uniform(0, 6)) * t
            base, h = (0.86, height) if layer is ground else (1.15, height)
            half = 0.035 * (1 - t) + 0.006
            curve = np.stack([x + sway, base - h * rng.uniform(0.7, 1.1) * t], 1)
            side = np.stack([half, np.zeros(16)], 1)
            layer.polygon(
                [tuple(p) for p in np.concatenate([curve - side, (curve + side)[::-1]])], (96, 196, 110), (26, 110, 84)
            )


SCENES: dict[str, Scene] = {
    "garden": Scene(paint_garden, 0.2, ((92, 168, 244), (206, 234, 252))),
    "meadow": Scene(paint_meadow, 0.3, ((80, 160, 242), (200, 230, 252))),
    "forest": Scene(paint_forest, 0.28, ((128, 196, 226), (220, 242, 232))),
    "beach": Scene(paint_beach, -0.06, ((70, 164, 246), (196, 234, 252))),
    "sea": Scene(paint_sea, 0.02, ((76, 160, 244), (204, 234, 252)), shadow=0.0, feet=(0.66, 0.74)),
    "desert": Scene(paint_desert, 0.3, ((96, 170, 236), (252, 228, 186))),
    "snow": Scene(paint_snow, 0.3, ((120, 176, 236), (222, 236, 250))),
    "city": Scene(paint_city, 0.3, ((112, 172, 236), (216, 232, 246))),
    "neon": Scene(paint_neon, 0.3, ((14, 8, 40), (92, 34, 92)), lights=False, shadow=0.5),
    "hill": Scene(paint_hill, 0.34, ((66, 150, 242), (190, 226, 252)), sway=0.14, clouds=0.9),
    "cherry": Scene(paint_cherry, 0.28, ((126, 190, 246), (238, 236, 248)), sway=0.05),
    "sky": Scene(paint_sky, 1.2, ((58, 136, 232), (178, 220, 252)), shadow=0.0),
    "space": Scene(paint_space, 1.2, ((10, 8, 34), (52, 28, 86)), lights=False, shadow=0.0),
    "underwater": Scene(paint_underwater, 1.2, ((64, 176, 222), (12, 70, 130)), lights=False, shadow=0.0),
}


def paint_scene(name: str, seed: int) -> np.ndarray:
    """uint8 [LAYERS, 4, HEIGHT, WIDTH], premultiplied: the layers of one instance of the place, the same for the same
    seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # another scene in the table changes no other
    layers = [Canvas() for _ in range(LAYERS)]
    SCENES[name].paint(layers, rng)
    return np.stack([layer.finish() for layer in layers])
