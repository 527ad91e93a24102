"""A canvas for the procedural scenes: shaded shapes in world units, drawn at twice the size and averaged down.

World units: the view is 2 high, x to the right, y down, (0, 0) its centre; a canvas spans [-HALF_X, HALF_X] x
[-HALF_Y, HALF_Y], wider than any view so that the camera can pan and tilt.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]  # 0 to 255
Points = Sequence[tuple[float, float]]
Pixels = list[tuple[float, float]]

WIDTH, HEIGHT = 704, 384
HALF_Y = 1.4
HALF_X = HALF_Y * WIDTH / HEIGHT
SUPERSAMPLE = 2
SCALE = SUPERSAMPLE * HEIGHT / (2 * HALF_Y)  # drawn pixels a unit


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b, the rest a."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def lighter(colour: Colour, share: float) -> Colour:
    return mix(colour, (255, 255, 255), share)


def darker(colour: Colour, share: float) -> Colour:
    return mix(colour, (0, 0, 0), share)


def vary(colour: Colour, rng: np.random.Generator, amount: float = 14.0) -> Colour:
    """The colour moved a little, in brightness and in each channel."""
    shift = rng.normal(0.0, amount * 0.6) + rng.normal(0.0, amount * 0.5, 3)
    r, g, b = np.clip(np.asarray(colour) + shift, 0, 255)
    return (float(r), float(g), float(b))


class Canvas:
    """One transparent layer to paint on."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (WIDTH * SUPERSAMPLE, HEIGHT * SUPERSAMPLE))

    def _shade(
        self, pixels: Pixels, top: Colour, bottom: Colour, draw: Callable[[ImageDraw.ImageDraw, Pixels], None]
    ) -> None:
        """Fill what `draw` draws with a vertical gradient over the shape's own height."""
        array = np.asarray(pixels)
        x0, y0 = np.floor(array.min(0)).astype(int)
        x1, y1 = np.ceil(array.max(0)).astype(int) + 1
        left, right = max(x0, 0), min(x1, self.image.width)
        if left >= right or y1 <= 0 or y0 >= self.image.height:
            return
        mask = Image.new("L", (int(right - left), int(y1 - y0)))
        draw(ImageDraw.Draw(mask), [(float(x - left), float(y - y0)) for x, y in pixels])
        ramp = np.linspace(0.0, 1.0, mask.height)[:, None]
        column = np.concatenate(
            [np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp, np.full_like(ramp, 255.0)], 1
        )
        fill = Image.fromarray(column[:, None].round().astype(np.uint8), "RGBA").resize(mask.size)
        self.image.paste(fill, (int(left), int(y0)), mask)

    @staticmethod
    def _pixels(points: Points) -> Pixels:
        return [((x + HALF_X) * SCALE, (y + HALF_Y) * SCALE) for x, y in points]

    def polygon(self, points: Points, top: Colour, bottom: Colour | None = None) -> None:
        self._shade(self._pixels(points), top, bottom or top, lambda draw, p: draw.polygon(p, fill=255))

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, top: Colour, bottom: Colour | None = None) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], top, bottom)

    def rounded(self, x0: float, y0: float, x1: float, y1: float, radius: float, top: Colour, bottom: Colour) -> None:
        def draw(pen: ImageDraw.ImageDraw, p: Pixels) -> None:
            pen.rounded_rectangle((*p[0], *p[1]), radius * SCALE, fill=255)

        self._shade(self._pixels([(x0, y0), (x1, y1)]), top, bottom, draw)

    def blobs(self, circles: Sequence[tuple[float, float, float, float]], top: Colour, bottom: Colour) -> None:
        """Ellipses (x, y, half width, half height) that share one gradient: a tree's crown, a cloud."""
        corners = [corner for x, y, a, b in circles for corner in ((x - a, y - b), (x + a, y + b))]

        def draw(pen: ImageDraw.ImageDraw, p: Pixels) -> None:
            for k in range(0, len(p), 2):
                pen.ellipse((*p[k], *p[k + 1]), fill=255)

        self._shade(self._pixels(corners), top, bottom, draw)

    def ellipse(self, x: float, y: float, a: float, b: float, top: Colour, bottom: Colour | None = None) -> None:
        self.blobs([(x, y, a, b)], top, bottom or top)

    def ridge(
        self, height: Callable[[np.ndarray], np.ndarray], top: Colour, bottom: Colour, base: float = HALF_Y
    ) -> None:
        """Everything under the curve y = height(x), down to `base`."""
        x = np.linspace(-HALF_X, HALF_X, 200)
        points = list(zip(x.tolist(), height(x).tolist(), strict=True))
        self.polygon([*points, (HALF_X, base), (-HALF_X, base)], top, bottom)

    def dots(self, points: np.ndarray, radius: np.ndarray, colours: Sequence[Colour]) -> None:
        """Many small flat circles: points [N, 2] and radius [N] in units; colours are taken in turn."""
        pen = ImageDraw.Draw(self.image)
        for k, ((x, y), r) in enumerate(zip(points, radius * SCALE, strict=True)):
            cx, cy = (x + HALF_X) * SCALE, (y + HALF_Y) * SCALE
            colour = colours[k % len(colours)]
            pen.ellipse(
                (cx - r, cy - r, cx + r, cy + r), fill=(round(colour[0]), round(colour[1]), round(colour[2]), 255)
            )

    def strokes(self, starts: np.ndarray, ends: np.ndarray, width: float, colours: Sequence[Colour]) -> None:
        """Many short lines: starts, ends [N, 2] and width in units."""
        pen = ImageDraw.Draw(self.image)
        pixels = max(1, round(width * SCALE))
        for k, line in enumerate(zip(starts, ends, strict=True)):
            colour = colours[k % len(colours)]
            (x0, y0), (x1, y1) = ((point + np.array([HALF_X, HALF_Y])) * SCALE for point in line)
            pen.line((x0, y0, x1, y1), fill=(round(colour[0]), round(colour[1]), round(colour[2]), 255), width=pixels)

    def finish(self) -> np.ndarray:
        """uint8 [4, HEIGHT, WIDTH], colour premultiplied by alpha."""
        small = self.image.convert("RGBa").reduce(SUPERSAMPLE)
        return np.asarray(small).reshape(HEIGHT, WIDTH, 4).transpose(2, 0, 1).copy()


def waves(
    rng: np.random.Generator, level: float, amplitude: float, frequency: float
) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random curve around `level`: three sines with random phases."""
    phase = rng.uniform(0.0, 2 * np.pi, 3)
    speed = frequency * rng.uniform(0.8, 1.2, 3) * (1.0, 1.9, 3.1)
    weight = np.array([0.6, 0.3, 0.15]) * amplitude

    def height(x: np.ndarray) -> np.ndarray:
        return level + (weight[:, None] * np.sin(speed[:, None] * x[None] + phase[:, None])).sum(0)

    return height
