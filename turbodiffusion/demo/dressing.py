"""What baking does to a picture beside cutting it out: clothes in other colours, a skirt, a larger head, swaying.

People of the source wear the same shirt and trousers and there is no child that walks: a woman gets a red dress and a
black jacket, a girl the animated head of a girl on a smaller body. Plants stand still there: they sway. Frames are RGBA
pictures of one size, all of one animation.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from turbodiffusion.demo.effects import LUMA, PAINTS

Frames = list[Image.Image]
WAIST, HEM, NECK = 0.47, 0.86, 0.2  # shares of a person's height, from the top
BODY = 0.56  # height of a child's body with its neck, as a share of the whole child
HEAD = 0.64  # width of a child's head, as a share of the child's height


def paint_pixels(pixels: np.ndarray, colour: str) -> np.ndarray:
    """RGB [N, 3] from 0 to 255 in the tones of a paint: their brightness, against their middle one, is kept."""
    light = pixels @ np.asarray(LUMA) / 255.0
    level = np.clip(0.5 * light / max(float(np.median(light)), 0.05), 0.0, 1.0)[:, None]
    dark, plain, bright = (np.asarray(tone, np.float64) for tone in PAINTS[colour])
    low, high = dark + (plain - dark) * level * 2, plain + (bright - plain) * (level * 2 - 1)
    return np.where(level < 0.5, low, high)


def dress(frames: Frames, top: str, skirt: str, flare: float = 0.03) -> Frames:
    """A person in a purple shirt and grey trousers in a `top` and a `skirt` of those colours, shoes of the top's.

    The skirt covers what is between the outlines of both legs, so that it moves as they do; its hem is wider than its
    waist by `flare` of the person's height on each side.
    """
    return [_dress(frame, top, skirt, flare) for frame in frames]


def _dress(frame: Image.Image, top: str, skirt: str, flare: float) -> Image.Image:
    picture = np.asarray(frame).astype(np.float64)
    rgb, solid = picture[..., :3].copy(), picture[..., 3] > 128
    first, last = np.where(solid.any(1))[0][[0, -1]]
    height = last + 1 - first
    down = (np.arange(len(rgb)) - first)[:, None] / height
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    seen = picture[..., 3] > 0
    purple = seen & (blue > green + 18) & (blue > red + 4) & (down > NECK * 0.8)
    grey = seen & ~purple & (np.ptp(rgb, axis=-1) < 60) & (down > WAIST - 0.06) & (red < 200)
    plain, dark = np.asarray(PAINTS[skirt][1], np.float64), np.asarray(PAINTS[skirt][0], np.float64)
    if purple.any():
        rgb[purple] = paint_pixels(rgb[purple], top)
    if grey.any():
        rgb[grey] = paint_pixels(rgb[grey], skirt)
    alpha = picture[..., 3].copy()
    rows = np.arange(first + round(WAIST * height), first + round(HEM * height))
    known = rows[(grey[rows] & solid[rows]).any(1)]  # in a row without cloth a hand hangs before it
    if len(known) > len(rows) // 2:
        ends = np.array([np.where(grey[row] & solid[row])[0][[0, -1]] for row in known])
        left, right = (
            _outline(np.interp(rows, known, ends[:, k]), flare * height, way) for k, way in enumerate((-1, 1))
        )
        for row, x0, x1, share in zip(rows, left, right, np.linspace(0.0, 1.0, len(rows)), strict=True):
            x = np.arange(max(0, int(x0)), min(frame.width, int(np.ceil(x1)) + 1))
            across = ((x - x0) / (x1 - x0))[:, None]
            fold = 0.5 + 0.5 * np.cos(2 * np.pi * (across * 2.2 + 0.6 * share))
            shade = np.clip(0.08 + 0.7 * across**2 * (0.5 + 0.5 * share) + 0.16 * fold * share, 0.0, 0.85)
            hand = (solid[row, x] & ~grey[row, x])[:, None] & (share < 0.3)
            rgb[row, x] = np.where(hand, rgb[row, x], plain * (1 - shade) + dark * shade)
            cover = np.clip(np.minimum(x + 1 - x0, x1 + 1 - x), 0.0, 1.0)  # soft at both edges
            alpha[row, x] = np.maximum(alpha[row, x], 255.0 * cover)
    return Image.fromarray(np.dstack([rgb, alpha]).clip(0, 255).round().astype(np.uint8), "RGBA")


def _outline(edge: np.ndarray, flare: float, way: int) -> np.ndarray:
    """A skirt's left (way -1) or right (1) edge in each of its rows: it only widens towards the hem, by at least
    `flare`, and has no steps."""
    out = np.maximum.accumulate(way * edge)
    out = np.maximum(out, out[0] + flare * np.linspace(0.0, 1.0, len(out)))
    kernel = np.ones(9) / 9
    return way * np.convolve(np.pad(out, 4, mode="edge"), kernel, mode="valid")


def as_child(bodies: Sequence[Image.Image], heads: Sequence[Image.Image]) -> Frames:
    """A child: each body without its head, smaller, under the head of the same moment."""
    frames = []
    for body, head in zip(bodies, heads, strict=True):
        side = body.width
        box = body.getbbox()
        assert box is not None
        neck = box[1] + round(NECK * (box[3] - box[1]))
        below = body.crop((0, neck, side, box[3]))
        scale = BODY * side / (box[3] - neck)
        below = below.resize((round(below.width * scale), round(below.height * scale)), Image.Resampling.LANCZOS)
        small = head.resize((round(HEAD * side),) * 2, Image.Resampling.LANCZOS)
        child = Image.new("RGBA", (side, side))
        child.alpha_composite(below, (side // 2 - round((box[0] + box[2]) / 2 * scale), side - below.height))
        child.alpha_composite(small, (side // 2 - small.width // 2, side - below.height - round(0.8 * small.height)))
        frames.append(child)
    return frames


def sway(picture: Image.Image, count: int) -> Frames:
    """A plant in the wind: `count` frames of one loop, bent more towards the top, its edges trembling."""
    source = np.asarray(picture.convert("RGBa")).astype(np.float64)
    height, width = source.shape[:2]
    up = 1.0 - np.arange(height) / height
    across = np.arange(width)[None]
    frames = []
    for k in range(count):
        turn = 2 * np.pi * k / count
        bend = np.sin(2 * turn) + 0.35 * np.sin(4 * turn + 1.0)
        ripple = np.sin(6 * turn + 9.0 * up[:, None] + across / width * 7.0)
        shift = width * (0.12 * bend * up[:, None] ** 1.6 + 0.008 * ripple * up[:, None])
        place = np.clip(across - shift, 0, width - 1.001)
        low = np.floor(place).astype(int)
        part = (place - low)[..., None]
        rows = np.arange(height)[:, None]
        moved = source[rows, low] * (1 - part) + source[rows, low + 1] * part
        frames.append(Image.fromarray(moved.round().astype(np.uint8), "RGBa").convert("RGBA"))
    return frames
