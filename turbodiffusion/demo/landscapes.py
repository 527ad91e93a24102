"""Places of the demo world that people ask for first: a street of neon signs, a windy hill, a park of cherry trees."""

from itertools import pairwise

import numpy as np

from turbodiffusion.demo.painting import HALF_X, HALF_Y, Canvas, Colour, darker, lighter, mix, vary, waves
from turbodiffusion.demo.scenery import Rng, blossom_tree, flowers, grass, round_tree, spread

NEON: tuple[Colour, ...] = (
    (255, 84, 148), (255, 170, 56), (255, 96, 72), (88, 226, 255), (255, 214, 96), (196, 110, 255), (255, 128, 60),
)  # fmt: skip
NIGHT_WALL: Colour = (48, 32, 74)
ROAD: Colour = (44, 34, 66)


def paint_hill(layers: list[Canvas], rng: Rng) -> None:
    """Bare hills, and trees that the wind bends; clouds are the renderer's, because they drift."""
    far, middle, ground, _ = layers
    green = vary((124, 198, 80), rng, 8)
    far.ridge(waves(rng, 0.02, 0.14, 1.3), (150, 194, 208), (170, 208, 190))
    far.ridge(waves(rng, 0.14, 0.1, 1.6), (138, 200, 130), (112, 182, 104))
    for x in spread(rng, 6):
        leaf = vary(((84, 168, 62), (120, 184, 64), (58, 148, 72))[int(rng.integers(3))], rng, 14)
        round_tree(middle, x, 0.42, rng.uniform(0.6, 0.9), leaf)
    ground.ridge(waves(rng, 0.34, 0.03, 1.1), lighter(green, 0.16), darker(green, 0.2))
    grass(ground, rng, 0.4, green, 700)
    flowers(ground, rng, 0.5, 30, 1.0)


def paint_cherry(layers: list[Canvas], rng: Rng) -> None:
    """A park path under cherry trees in blossom, petals on the grass."""
    far, middle, ground, _ = layers
    green, pink = vary((146, 200, 108), rng, 10), vary((255, 166, 196), rng, 8)
    far.ridge(waves(rng, 0.02, 0.08, 1.5), (196, 198, 226), (206, 216, 226))
    for x in spread(rng, 13):
        far.blobs(
            [(x, 0.2, 0.22, 0.2), (x + 0.16, 0.12, 0.18, 0.16)],
            mix(pink, (236, 226, 240), 0.5),
            mix(pink, (214, 190, 214), 0.5),
        )
    for x in spread(rng, 6):
        blossom_tree(middle, rng, x, 0.36, rng.uniform(0.95, 1.3), vary(pink, rng, 8))
    ground.ridge(waves(rng, 0.28, 0.015, 1.6), lighter(green, 0.18), darker(green, 0.14))
    ground.polygon([(-HALF_X, 0.5), (HALF_X, 0.5), (HALF_X, 0.86), (-HALF_X, 0.86)], (238, 224, 208), (224, 206, 188))
    grass(ground, rng, 0.34, green, 200)
    ground.rectangle(-HALF_X, 0.53, HALF_X, 0.86, (238, 224, 208), (226, 208, 190))
    for count, low, high in ((90, 0.32, 0.54), (160, 0.54, HALF_Y)):
        petals = np.stack([rng.uniform(-HALF_X, HALF_X, count), rng.uniform(low, high, count)], 1)
        ground.dots(petals, rng.uniform(0.007, 0.014, count), [(255, 192, 214), (255, 214, 228), (250, 160, 192)])


def paint_neon(layers: list[Canvas], rng: Rng) -> None:
    """A street at night that runs away from the viewer between shops, signs, lanterns, and a wet road that mirrors
    them."""
    far, middle, ground, front = layers
    for r, glow in ((0.9, (84, 34, 92)), (0.6, (128, 50, 98)), (0.36, (196, 92, 96)), (0.18, (255, 176, 110))):
        far.ellipse(0.0, 0.26, r, 0.75 * r, glow)
    x = -HALF_X
    while x < HALF_X:
        w, h = rng.uniform(0.16, 0.3), rng.uniform(0.3, 0.7)
        far.rectangle(x, 0.3 - h, x + w, 0.4, (40, 28, 72), (66, 38, 88))
        for _ in range(9):
            u, v = rng.uniform(x + 0.02, x + w - 0.04), rng.uniform(0.34 - h, 0.2)
            far.rectangle(u, v, u + 0.022, v + 0.03, (255, 214, 140) if rng.random() < 0.7 else (150, 210, 255))
        x += w + 0.02
    for side in (-1.0, 1.0):
        _street_side(middle, rng, side)
    ground.rectangle(-HALF_X, 0.3, HALF_X, HALF_Y, lighter(ROAD, 0.12), darker(ROAD, 0.45))
    for x in spread(rng, 44):  # reflections
        colour, length = NEON[int(rng.integers(len(NEON)))], rng.uniform(0.3, 0.95)
        w = rng.uniform(0.02, 0.06)
        for wide, share in ((1.0, 0.72), (0.5, 0.5)):
            ground.ellipse(
                x, 0.36 + 0.5 * length, wide * w, 0.5 * length, mix(colour, ROAD, share), mix(colour, ROAD, 0.95)
            )
    ground.rectangle(-HALF_X, 0.3, HALF_X, 0.37, (112, 84, 118), (70, 54, 88))
    starts = np.stack([rng.uniform(-HALF_X, HALF_X, 110), rng.uniform(0.4, HALF_Y, 110)], 1)
    ends = starts + np.stack([rng.uniform(0.05, 0.2, 110), np.zeros(110)], 1)
    ground.strokes(starts, ends, 0.01, [darker(ROAD, 0.25), lighter(ROAD, 0.16), darker(ROAD, 0.1)])
    for x in spread(rng, 11):  # paper lanterns on a string
        y = -0.92 + rng.uniform(-0.02, 0.05)
        front.rectangle(x - 0.004, -HALF_Y, x + 0.004, y - 0.09, (30, 20, 40))
        front.ellipse(x, y, 0.075, 0.095, (255, 150, 92), (226, 52, 44))
        front.ellipse(x, y + 0.01, 0.035, 0.05, (255, 214, 140), (255, 150, 92))
        for end in (-0.1, 0.085):
            front.rectangle(x - 0.035, y + end, x + 0.035, y + end + 0.016, (44, 26, 40))


def _street_side(layer: Canvas, rng: Rng, side: float) -> None:
    """The shops of one side, far to near: walls towards the vanishing point, lit windows and fronts, and signs."""
    depths = np.array([4.0, 2.6, 1.8, 1.28, 0.92, 0.66, 0.47, 0.33])
    for z0, z1 in pairwise(depths.tolist()):
        far_x, near_x = side * 0.85 / z0, side * 0.85 / z1
        h = rng.uniform(0.75, 1.25)
        wall = vary(mix(NIGHT_WALL, (104, 52, 110), 0.25 * min(z0, 2.4)), rng, 8)
        layer.polygon(
            [(far_x, 0.24 - h / z0), (near_x, 0.24 - h / z1), (near_x, 0.6), (far_x, 0.6)],
            darker(wall, 0.25),
            lighter(wall, 0.1),
        )

        def place(
            u: float, v: float, a: float = far_x, b: float = near_x, z0: float = z0, z1: float = z1
        ) -> tuple[float, float]:
            """A point of the wall: u from its far to its near edge, v up from the ground in heights at depth 1."""
            z = 1.0 / (1.0 / z0 + u * (1.0 / z1 - 1.0 / z0))
            return a + u * (b - a), 0.28 - v / z

        front = [place(0.06, 0.0), place(0.06, 0.16), place(0.94, 0.16), place(0.94, 0.0)]
        layer.polygon(front, (255, 226, 160), (255, 160, 84))
        awning = NEON[int(rng.integers(len(NEON)))]
        layer.polygon(
            [place(0.03, 0.16), place(0.03, 0.22), place(0.97, 0.22), place(0.97, 0.16)], awning, darker(awning, 0.35)
        )
        for v in np.arange(0.34, h - 0.12, 0.17):
            for u in (0.14, 0.58):
                lit = (255, 206, 130) if rng.random() < 0.45 else (78, 62, 120)
                layer.polygon(
                    [place(u, v), place(u, v + 0.09), place(u + 0.26, v + 0.09), place(u + 0.26, v)],
                    lit,
                    darker(lit, 0.2),
                )
        u, low = rng.uniform(0.3, 0.7), rng.uniform(0.24, 0.4)
        x, y = place(u, low)
        tall, wide = (0.3 + 0.25 * rng.random()) * abs(x) / 0.85, 0.1 * abs(x) / 0.85
        _sign(layer, rng, x - side * 0.8 * wide, y - tall, 2 * wide, tall)


def _sign(layer: Canvas, rng: Rng, x: float, y: float, wide: float, tall: float) -> None:
    """An upright sign board from (x, y) downwards: a glow, a lit frame, and strokes like written characters."""
    colour = NEON[int(rng.integers(len(NEON)))]
    filled = rng.random() < 0.5
    for grow, share in ((0.3, 0.78), (0.16, 0.5)):
        g = grow * wide
        layer.rounded(
            x - g,
            y - g,
            x + wide + g,
            y + tall + g,
            0.35 * wide,
            mix(colour, NIGHT_WALL, share),
            mix(colour, NIGHT_WALL, share),
        )
    layer.rounded(x, y, x + wide, y + tall, 0.22 * wide, lighter(colour, 0.25), colour)
    inner, ink = (
        (colour, (255, 250, 226)) if filled else (darker(mix(colour, NIGHT_WALL, 0.7), 0.4), lighter(colour, 0.45))
    )
    layer.rounded(
        x + 0.1 * wide, y + 0.1 * wide, x + 0.9 * wide, y + tall - 0.1 * wide, 0.15 * wide, inner, darker(inner, 0.15)
    )
    count = max(2, round(tall / (0.95 * wide)))
    step = (tall - 0.24 * wide) / count
    for k in range(count):
        top = y + 0.12 * wide + k * step
        for v in (0.22, 0.5, 0.78):
            a, b = sorted(rng.uniform(0.2, 0.8, 2))
            layer.rectangle(x + min(a, 0.4) * wide, top + v * step, x + max(b, 0.6) * wide, top + (v + 0.1) * step, ink)
        u = rng.uniform(0.35, 0.6)
        layer.rectangle(x + u * wide, top + 0.14 * step, x + (u + 0.1) * wide, top + 0.9 * step, ink)
