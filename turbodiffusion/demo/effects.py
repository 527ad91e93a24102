"""Looks of the demo world's renderer: paints for subjects, tiles of stars, rain and snow, and drawing styles.

Names: B clips, F frames, C the side of a sprite; colours are premultiplied by alpha.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

# A paint's dark, middle and light tone: shadows, the colour itself, highlights.
PAINTS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((84, 6, 16), (226, 38, 44), (255, 176, 168)),
    "orange": ((110, 40, 4), (250, 132, 24), (255, 218, 168)),
    "yellow": ((120, 84, 0), (252, 212, 28), (255, 246, 190)),
    "green": ((8, 62, 26), (50, 176, 72), (190, 244, 184)),
    "blue": ((10, 22, 104), (38, 96, 230), (176, 212, 255)),
    "purple": ((48, 10, 92), (142, 62, 214), (226, 192, 255)),
    "pink": ((140, 30, 92), (255, 120, 184), (255, 218, 238)),
    "white": ((106, 108, 124), (226, 228, 236), (255, 255, 255)),
    "black": ((4, 4, 8), (44, 45, 54), (150, 152, 164)),
    "gray": ((34, 36, 44), (140, 143, 154), (226, 228, 236)),
    "brown": ((48, 24, 10), (134, 82, 44), (226, 186, 150)),
}
LUMA = (0.299, 0.587, 0.114)
TILE = 256  # pixels of the tiles, which repeat
TILES = ("stars", "rain", "snow", "fleck cover", "fleck light", "cloud cover", "cloud light")
BLOCK = 4  # pixels of a pixel of the pixel style


def column(values: Tensor) -> Tensor:
    """[B] or [B, 3] as [B, 1 or 3, 1, 1, 1], to meet pictures [B, 3, F, H, W]."""
    return values.view(values.shape[0], -1, 1, 1, 1)


def repaint(texture: Tensor, n: dict[str, Tensor], frames: int) -> Tensor:
    """Recolour sprites [B F, 4, C, C] of the painted clips: brightness chooses between the paint's dark, middle and
    light tone.

    What is far darker than the subject's middle brightness keeps its own colour (eyes, tyres, stripes), and so does
    the blue glass of vehicles.
    """

    def each(key: str) -> Tensor:
        return n[key].repeat_interleave(frames).view(-1, 1, 1, 1)

    alpha = texture[:, 3:].clamp_min(1e-4)
    straight = texture[:, :3] / alpha
    light = (straight * texture.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    middle = each("middle")
    level = light.clamp(1e-4, 1.0) ** (math.log(0.5) / middle.log())  # the middle brightness becomes one half
    dark, plain, bright = n["paint"].repeat_interleave(frames, 0).view(-1, 3, 3, 1, 1).unbind(1)
    tone = torch.where(level < 0.5, torch.lerp(dark, plain, level * 2), torch.lerp(plain, bright, (level - 0.5) * 2))
    ink = ((0.55 * middle - light) / (0.15 * middle)).clamp(0, 1)
    glass = ((straight[:, 2:] - straight[:, :1] - 0.2) / 0.1).clamp(0, 1) * each("glass")
    kept = torch.maximum(ink, glass)
    painted = torch.cat([torch.lerp(tone, straight, kept) * texture[:, 3:], texture[:, 3:]], 1)
    return torch.where(each("painted") > 0, painted, texture)


def middle_brightness(sheet: np.ndarray) -> float:
    """The median brightness of a subject, 0 to 1; sheet uint8 [K, 4, C, C]."""
    solid = sheet[0, 3] > 200
    light = (sheet[0, :3].astype(np.float32) * np.asarray(LUMA, np.float32)[:, None, None]).sum(0)[solid] / 255.0
    return float(np.clip(np.median(light), 0.08, 0.93))


def _luma(picture: Tensor) -> Tensor:
    """Brightness [B, 1, F, H, W] of [B, 3, F, H, W]."""
    return (picture * picture.new_tensor(LUMA).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)


def black_and_white(picture: Tensor) -> Tensor:
    """Grey film; pictures [B, 3, F, H, W] from 0 to 1, here and below."""
    return _luma(picture).expand(-1, 3, -1, -1, -1)


def pencil_sketch(picture: Tensor) -> Tensor:
    """Dark lines where the brightness changes, light shading between them, on white paper."""
    light = _luma(picture)
    across = torch.zeros_like(light)
    down = torch.zeros_like(light)
    across[..., 1:-1] = light[..., 2:] - light[..., :-2]
    down[..., 1:-1, :] = light[..., 2:, :] - light[..., :-2, :]
    lines = (4.5 * (across**2 + down**2).sqrt()).clamp(0, 0.85)
    return ((0.72 + 0.28 * light) * (1 - lines)).expand(-1, 3, -1, -1, -1)


def pixel_art(picture: Tensor) -> Tensor:
    """Blocks of BLOCK x BLOCK pixels in few colours."""
    b, c, f, h, w = picture.shape
    small = avg_pool2d(picture.transpose(1, 2).reshape(b * f, c, h, w), BLOCK)
    few = (small * 7).round() / 7
    return interpolate(few, scale_factor=float(BLOCK)).view(b, f, c, h, w).transpose(1, 2)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "black and white": black_and_white,
    "sketch": pencil_sketch,
    "pixel": pixel_art,
}


def weather_tiles() -> np.ndarray:
    """float32 [len(TILES), TILE, TILE], all repeating without a seam: stars, rain streaks, snow flakes; for falling
    petals and leaves, and for clouds, how much of a pixel they cover and how light it is."""
    rng = np.random.default_rng(7)
    tiles = np.zeros((len(TILES), TILE, TILE), np.float32)
    for x, y, power in zip(*rng.integers(0, TILE, (2, 110)), rng.uniform(0.4, 1.0, 110), strict=True):
        tiles[0, y, x] = power
        for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            tiles[0, (y + dy) % TILE, (x + dx) % TILE] += 0.35 * power
    for x, y, length in zip(*rng.integers(0, TILE, (2, 130)), rng.integers(12, 26, 130), strict=True):
        for k in range(length):
            tiles[1, (y + k) % TILE, (x - k // 5) % TILE] = 0.4 + 0.6 * k / length
    yy, xx = np.mgrid[-5:6, -5:6]
    for x, y, radius in zip(*rng.integers(0, TILE, (2, 90)), rng.uniform(1.3, 3.4, 90), strict=True):
        flake = np.clip(radius - np.hypot(xx, yy) + 0.5, 0, 1)
        rows, columns = (y + yy) % TILE, (x + xx) % TILE
        tiles[2, rows, columns] = np.maximum(tiles[2, rows, columns], flake)
    tiles[3:5] = _flecks(rng)
    tiles[5:7] = _clouds(rng)
    return tiles.clip(0, 1)


def _flecks(rng: np.random.Generator) -> np.ndarray:
    """[2, TILE, TILE]: cover and lightness of small pointed ovals, each turned and tinted another way."""
    cover, light = np.zeros((2, TILE, TILE), np.float32)
    yy, xx = np.mgrid[-8:9, -8:9].astype(np.float32)
    for x, y in rng.integers(0, TILE, (46, 2)):
        angle, half, slim, tone = rng.uniform(0, np.pi), rng.uniform(3.6, 6.0), rng.uniform(0.42, 0.7), rng.uniform()
        along = (xx * np.cos(angle) + yy * np.sin(angle)) / half
        across = (yy * np.cos(angle) - xx * np.sin(angle)) / (half * slim)
        shape = np.clip((1.0 - along**2 - np.abs(across) ** 1.5) * half * 0.6, 0, 1)
        rows, columns = (y + yy.astype(int)) % TILE, (x + xx.astype(int)) % TILE
        light[rows, columns] = np.where(shape > 0, np.clip(tone + 0.25 * along, 0, 1), light[rows, columns])
        cover[rows, columns] = np.maximum(cover[rows, columns], shape)
    return np.stack([cover, light])


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """[2, TILE, TILE]: cover and lightness of clouds, heaps of puffs on a flat base."""
    cover, light = np.zeros((TILE, TILE), np.float32), np.ones((TILE, TILE), np.float32)
    rows, columns = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    for x, y, wide in zip(
        (np.arange(11) + rng.uniform(0.1, 0.9, 11)) * TILE / 11,
        rng.permutation(11) * TILE / 11 + 10.0,
        rng.uniform(15, 28, 11),
        strict=True,
    ):
        down = (rows - y + TILE / 2) % TILE - TILE / 2
        over = (columns - x + TILE / 2) % TILE - TILE / 2
        shape = np.zeros_like(cover)
        for u, v, r in ((-1.0, 0.1, 0.42), (-0.45, 0.36, 0.58), (0.25, 0.46, 0.66), (0.95, 0.12, 0.46)):
            far = np.hypot(over - wide * u, (down + wide * v) / 0.85)
            shape = np.maximum(shape, np.clip((wide * r - far) / 1.6, 0, 1))
        shape *= np.clip((wide * 0.3 - down) / 3.0, 0, 1)
        light = np.where(shape > 0, np.clip(0.5 - 0.9 * down / wide, 0, 1), light)
        cover = np.maximum(cover, shape)
    return np.stack([cover, light])
