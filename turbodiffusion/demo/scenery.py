"""What the places of the demo world are furnished with: clouds, trees, houses, grass and flowers, on a layer."""

import numpy as np

from turbodiffusion.demo.painting import HALF_X, HALF_Y, Canvas, Colour, darker, lighter

Rng = np.random.Generator
WHITE: Colour = (255, 255, 255)


def clouds(layer: Canvas, rng: Rng, count: int, low: float, high: float, size: float = 1.0) -> None:
    """Puffs with a flat base, white above and a little blue below."""
    for x in np.linspace(-HALF_X, HALF_X, count, endpoint=False) + rng.uniform(0, 2 * HALF_X / count, count):
        y, w = rng.uniform(low, high), size * rng.uniform(0.16, 0.3)
        puffs = [
            (x + w * u, y - w * h, w * r, w * r * 0.85)
            for u, h, r in ((-1, 0.1, 0.42), (-0.4, 0.34, 0.6), (0.3, 0.42, 0.66), (0.95, 0.12, 0.45))
        ]
        layer.blobs(puffs, WHITE, (205, 222, 242))


def round_tree(layer: Canvas, x: float, base: float, size: float, leaf: Colour) -> None:
    layer.rectangle(x - 0.05 * size, base - 0.5 * size, x + 0.05 * size, base, (134, 92, 58), (96, 62, 40))
    crown = [
        (x + size * u, base - size * v, size * r, size * r)
        for u, v, r in ((-0.25, 0.62, 0.26), (0.25, 0.62, 0.26), (0, 0.9, 0.3), (0, 0.66, 0.3))
    ]
    layer.blobs(crown, lighter(leaf, 0.18), darker(leaf, 0.28))
    layer.ellipse(x - 0.1 * size, base - 0.98 * size, 0.1 * size, 0.08 * size, lighter(leaf, 0.4), lighter(leaf, 0.16))


def pine(layer: Canvas, x: float, base: float, size: float, leaf: Colour, snowy: bool = False) -> None:
    layer.rectangle(x - 0.045 * size, base - 0.2 * size, x + 0.045 * size, base, (112, 76, 50), (84, 56, 38))
    for k, (y, w) in enumerate(((0.12, 0.34), (0.42, 0.27), (0.72, 0.2))):
        points = [(x - w * size, base - y * size), (x + w * size, base - y * size), (x, base - (y + 0.46) * size)]
        layer.polygon(points, lighter(leaf, 0.1 + 0.05 * k), darker(leaf, 0.25))
        if snowy:
            cap = [
                (x - w * 0.45 * size, base - (y + 0.25) * size),
                (x + w * 0.45 * size, base - (y + 0.25) * size),
                points[2],
            ]
            layer.polygon(cap, WHITE, (225, 235, 248))


def palm(layer: Canvas, x: float, base: float, size: float, lean: float) -> None:
    t = np.linspace(0, 1, 12)
    centre = np.stack([x + lean * size * t**2, base - size * t], 1)
    half = (0.05 * (1 - 0.5 * t) * size)[:, None] * (1, 0)
    layer.polygon(
        [tuple(p) for p in np.concatenate([centre - half, (centre + half)[::-1]])], (176, 128, 82), (120, 84, 52)
    )
    top = centre[-1]
    for angle in np.radians([-160, -125, -55, -20, 15, 165]):
        u = np.linspace(0, 1, 8)
        spine = top + np.stack([np.cos(angle) * u, np.sin(angle) * u + 0.55 * u**2], 1) * 0.55 * size
        width = (np.sin(np.pi * (0.15 + 0.85 * u)) * 0.075 * size)[:, None] * (0, 1)
        layer.polygon(
            [tuple(p) for p in np.concatenate([spine - width, (spine + width)[::-1]])], (96, 190, 90), (38, 130, 66)
        )


def house(layer: Canvas, x: float, base: float, size: float, wall: Colour, roof: Colour) -> None:
    layer.rectangle(x - 0.4 * size, base - 0.55 * size, x + 0.4 * size, base, lighter(wall, 0.2), darker(wall, 0.08))
    layer.polygon(
        [(x - 0.52 * size, base - 0.53 * size), (x + 0.52 * size, base - 0.53 * size), (x, base - 0.98 * size)],
        lighter(roof, 0.1),
        darker(roof, 0.15),
    )
    layer.rectangle(x - 0.09 * size, base - 0.3 * size, x + 0.09 * size, base, (134, 88, 56), (104, 66, 42))
    for u in (-0.26, 0.26):
        layer.rectangle(
            x + (u - 0.09) * size,
            base - 0.42 * size,
            x + (u + 0.09) * size,
            base - 0.24 * size,
            (175, 220, 245),
            (130, 185, 225),
        )


def grass(layer: Canvas, rng: Rng, top: float, colour: Colour, count: int = 420) -> None:
    """Blades all over the ground, larger towards the viewer."""
    x = rng.uniform(-HALF_X, HALF_X, count)
    y = top + (HALF_Y - top) * rng.uniform(0, 1, count) ** 0.8
    length = 0.02 + 0.05 * (y - top)
    lean = rng.normal(0, 0.3, count) * length
    shades = [darker(colour, 0.14), lighter(colour, 0.16), darker(colour, 0.08), lighter(colour, 0.08)]
    layer.strokes(np.stack([x, y], 1), np.stack([x + lean, y - length], 1), 0.012, shades)


def flowers(layer: Canvas, rng: Rng, top: float, count: int, size: float = 1.0) -> None:
    """Five petals and a yellow heart each."""
    palette: list[Colour] = [(236, 72, 106), (255, 255, 255), (250, 200, 60), (168, 96, 220), (255, 140, 180)]
    for _ in range(count):
        x, y = rng.uniform(-HALF_X, HALF_X), top + (HALF_Y - top) * rng.uniform(0.02, 1)
        r = size * (0.012 + 0.02 * (y - top))
        angle = rng.uniform(0, 2 * np.pi) + np.arange(5) * 2 * np.pi / 5
        petals = np.stack([x + r * np.cos(angle), y + 0.8 * r * np.sin(angle)], 1)
        layer.dots(petals, np.full(5, 0.75 * r), [palette[int(rng.integers(5))]])
        layer.dots(np.array([[x, y]]), np.array([0.6 * r]), [(255, 205, 70)])


def spread(rng: Rng, count: int, gap: float = 0.0) -> list[float]:
    """x positions over the canvas's width, one in each equal strip; strips around the middle of the view are left out
    with `gap`."""
    step = 2 * HALF_X / count
    return [float(x) for x in -HALF_X + step * (np.arange(count) + rng.uniform(0.15, 0.85, count)) if abs(x) >= gap]


def blossom_tree(layer: Canvas, rng: Rng, x: float, base: float, size: float, leaf: Colour) -> None:
    """A leaning trunk with two boughs under a wide crown of many puffs, dotted with lighter blossoms."""
    lean = rng.uniform(-0.12, 0.12) * size
    for u, top, width in ((0.0, 0.75, 0.06), (-0.3, 0.72, 0.035), (0.3, 0.74, 0.035)):
        foot = 0.0 if u == 0 else 0.36
        x0, x1 = x + lean * foot, x + lean + u * size
        layer.polygon(
            [
                (x0 - width * size, base - foot * size),
                (x0 + width * size, base - foot * size),
                (x1 + 0.4 * width * size, base - top * size),
                (x1 - 0.4 * width * size, base - top * size),
            ],
            (122, 84, 76),
            (74, 48, 48),
        )
    for shade, spread_x, lift in ((darker(leaf, 0.2), 1.0, -0.05), (leaf, 0.94, 0.0), (lighter(leaf, 0.3), 0.72, 0.08)):
        puffs = [
            (x + lean + size * spread_x * u, base - size * (v + lift), size * r, size * r * 0.85)
            for u, v, r in (
                (-0.46, 0.74, 0.17), (-0.24, 0.92, 0.22), (0.02, 1.0, 0.24), (0.27, 0.9, 0.22), (0.47, 0.74, 0.17),
                (-0.2, 0.72, 0.2), (0.16, 0.72, 0.22),
            )
        ]  # fmt: skip
        layer.blobs(puffs, lighter(shade, 0.12), darker(shade, 0.06))
    angle, far = rng.uniform(0, 2 * np.pi, 40), rng.uniform(0, 1, 40) ** 0.5
    dots = np.stack(
        [x + lean + 0.52 * size * far * np.cos(angle), base - size * (0.85 + 0.24 * far * np.sin(angle))], 1
    )
    layer.dots(dots, rng.uniform(0.008, 0.018, 40) * size, [lighter(leaf, 0.7), darker(leaf, 0.12), lighter(leaf, 0.5)])
