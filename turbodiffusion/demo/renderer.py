"""Renders clips of the demo world with torch, the same on CPU and GPU: scenes in layers with parallax, one animated
subject, camera, light.

A World keeps the art as textures on its device; `render` samples them for a whole batch of clips at once
(grid_sample; no loop over frames). Everything about a clip follows from its Factors, so a seed fixes a data set and
nothing needs to be stored. Names: B clips, F frames, H and W pixels of the view; colours are premultiplied by alpha.
"""

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from turbodiffusion.demo.bake import CELL, COLUMNS, FRAMES
from turbodiffusion.demo.factors import NATURAL, Factors, sample_factors
from turbodiffusion.demo.light import light_row
from turbodiffusion.demo.motion import camera_track, subject_track
from turbodiffusion.demo.painting import HALF_X, HALF_Y
from turbodiffusion.demo.scenes import LAYERS, PARALLAX, SCENES, paint_scene
from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS
from turbodiffusion.errors import MissingFilesError, UserError

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
    "brown": ((48, 24, 10), (134, 82, 44), (226, 186, 150)),
}
LUMA = (0.299, 0.587, 0.114)
MIST_BY_LAYER = (1.0, 0.7, 0.35, 0.15)
TILE = 256  # pixels of the rain and snow tiles, which repeat


class World:
    """The demo world's textures on a device.

    atlas: the file that `turbodiffusion.demo.bake` wrote. size: (height, width) of the clips, multiples of 16;
    frames: 1 + 4 n. instances: how many versions of each scene are painted (each takes half a second on one core, 4
    MB).
    """

    def __init__(
        self,
        atlas: str | Path,
        device: str | torch.device = "cpu",
        size: tuple[int, int] = (256, 256),
        frames: int = 33,
        *,
        instances: int = 8,
        scene_names: Sequence[str] = tuple(SCENES),
    ) -> None:
        if not Path(atlas).is_file():
            raise MissingFilesError(
                f"no atlas at {atlas}: bake it with `python -m turbodiffusion.demo.bake --out {Path(atlas).parent}`"
            )
        if size[0] % 16 or size[1] % 16 or frames % 4 != 1:
            raise UserError(
                f"clips of {frames} frames at {size[1]}x{size[0]}: sides must be multiples of 16 "
                "and frames 1 more than a multiple of 4"
            )
        self.device = torch.device(device)
        self.size, self.frames, self.instances = size, frames, instances
        self.aspect = size[1] / size[0]
        sheets = _load_sheets(Path(atlas))
        self._index = {name: k for k, name in enumerate(sheets)}
        self._middle = {name: _middle_brightness(sheet) for name, sheet in sheets.items()}
        self._sprites = torch.from_numpy(np.stack(list(sheets.values()))).to(self.device)  # uint8 [N, K, 4, C, C]
        jobs = [(name, seed) for name in scene_names for seed in range(instances)]
        with ThreadPoolExecutor() as pool:
            painted = list(pool.map(lambda job: paint_scene(*job), jobs))
        self._places = {name: k * instances for k, name in enumerate(scene_names)}
        self._layers = torch.from_numpy(np.stack(painted)).to(self.device)  # uint8 [N, LAYERS, 4, h, w]
        self._tiles = torch.from_numpy(_weather_tiles()).to(self.device)  # float32 [3, TILE, TILE]: stars, rain, snow
        h, w = size
        self._v = ((torch.arange(h, device=self.device) + 0.5) / h * 2 - 1).view(1, 1, h, 1)
        self._u = ((torch.arange(w, device=self.device) + 0.5) / w * 2 - 1).view(1, 1, 1, w) * self.aspect

    def sample_factors(self, rng: np.random.Generator, count: int, held_out: bool = False) -> list[Factors]:
        """`count` random clips (factors.sample_factors)."""
        return sample_factors(rng, count, held_out)

    @torch.no_grad()
    def render(self, clips: Sequence[Factors], *, batch: int = 16) -> Tensor:
        """float32 video [B, 3, F, H, W] in [-1, 1], on the world's device; `batch` clips are drawn at a time."""
        size = batch if self.device.type == "cuda" else 1
        return torch.cat([self._render(clips[k : k + size]) for k in range(0, len(clips), size)])

    def _render(self, clips: Sequence[Factors]) -> Tensor:
        numbers = self._numbers(clips)
        camera = (numbers["camera_x"], numbers["camera_y"], numbers["zoom"])
        picture = self._sky(numbers, camera)
        places = [self._places[c.scene] + c.seed % self.instances for c in clips]
        textures = self._layers[torch.tensor(places, device=self.device)]
        for k in range(LAYERS):
            if k == LAYERS - 1:
                picture = self._shadow(picture, numbers, camera)
                picture = self._subject(picture, clips, numbers, camera)
            picture = self._layer(picture, textures[:, k], PARALLAX[k], MIST_BY_LAYER[k], numbers, camera)
        picture = self._weather(picture, numbers)
        grey = (picture * picture.new_tensor(LUMA).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)
        picture = torch.where(_column(numbers["grey"]) > 0, grey, picture)
        return picture.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)

    def _numbers(self, clips: Sequence[Factors]) -> dict[str, Tensor]:
        """Everything numeric about the clips, drawn on the CPU from their seeds: tensors [B, ...] on the device."""
        rows = []
        for clip in clips:
            rng = np.random.default_rng(clip.seed)
            row = light_row(clip, self.aspect, rng)
            camera = camera_track(clip.camera, self.frames, rng)
            track = subject_track(clip, self.frames, self.aspect, camera, rng)
            row |= {"camera_x": camera.x, "camera_y": camera.y, "zoom": camera.zoom, "drift": rng.uniform(0, 1, 2)}
            row |= {
                name: getattr(track, name)
                for name in ("x", "y", "height", "extent", "angle", "stretch", "flip", "frame")
            }
            row |= {
                "paint": np.asarray(PAINTS.get(clip.colour, PAINTS["red"])) / 255.0,
                "painted": np.asarray(clip.colour != NATURAL),
            }
            row |= {
                "middle": np.asarray(self._middle[clip.subject]),
                "glass": np.asarray(clip.row.glass),
                "grey": np.asarray(clip.style == "black and white"),
            }
            rows.append(row)
        stacked = {key: np.stack([np.asarray(row[key], np.float32) for row in rows]) for key in rows[0]}
        return {key: torch.from_numpy(value).to(self.device) for key, value in stacked.items()}

    def _world_xy(self, camera: tuple[Tensor, Tensor, Tensor], parallax: float) -> tuple[Tensor, Tensor]:
        """World coordinates of the pixels on a layer: x [B, F, 1, W] and y [B, F, H, 1]. Far layers pan and zoom
        less, tilt half."""
        x, y, zoom = (c[:, :, None, None] for c in camera)
        scale = zoom ** (0.3 + 0.7 * min(parallax, 1.0))
        return x * parallax + self._u / scale, y * (0.5 + 0.5 * parallax) + self._v / scale

    def _sky(self, n: dict[str, Tensor], camera: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y = self._world_xy(camera, 0.05)
        share = ((y + 1.1) / (n["horizon"].view(-1, 1, 1, 1) + 1.1)).clamp(0, 1)[:, None]
        picture = _column(n["sky_top"]) * (1 - share) + _column(n["sky_bottom"]) * share
        place = n["place"].view(-1, 2, 1, 1, 1)
        distance = ((x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2).sqrt()[:, None]
        radius = _column(n["radius"])
        glow = _column(n["glow"]) * torch.exp(-2.2 * distance)
        picture = picture + (_column(n["disc"]) - picture).clamp_min(-0.05) * glow
        if bool((n["stars"] > 0).any()):
            star = self._tile(0, x.expand(-1, -1, y.shape[2], -1), y.expand(-1, -1, -1, x.shape[3]), 1.3)
            picture = picture + 0.9 * _column(n["stars"]) * star
        disc = ((radius - distance) * 90.0).clamp(0, 1) * (radius > 0)
        return picture * (1 - disc) + (_column(n["disc"]) * 0.92 + 0.08) * disc

    def _layer(
        self,
        picture: Tensor,
        texture: Tensor,
        parallax: float,
        mist: float,
        n: dict[str, Tensor],
        camera: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        x, y = self._world_xy(camera, parallax)
        b, f, h, w = x.shape[0], x.shape[1], y.shape[2], x.shape[3]
        grid = torch.stack([(x / HALF_X).expand(b, f, h, w), (y / HALF_Y).expand(b, f, h, w)], -1).view(b, f * h, w, 2)
        drawn = grid_sample(texture.float() / 255.0, grid, padding_mode="border", align_corners=False).view(
            b, 4, f, h, w
        )
        share = _column(n["mist_share"]) * mist
        colour = drawn[:, :3] * (_column(n["scene"]) * (1 - share)) + drawn[:, 3:] * (_column(n["mist"]) * share)
        return picture * (1 - drawn[:, 3:]) + colour

    def _shadow(self, picture: Tensor, n: dict[str, Tensor], camera: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y = self._world_xy(camera, 1.0)
        size, height = n["extent"][:, :, None, None], n["height"][:, :, None, None]
        across = (x - n["x"][:, :, None, None]) / (size * (0.34 + 0.1 * height))
        along = (y - n["y"][:, :, None, None] - height + 0.02) / (size * (0.07 + 0.02 * height))
        strength = n["shadow"].view(-1, 1, 1, 1) * torch.exp(-1.4 * height)
        dark = strength * torch.exp(-((across**2 + along**2) ** 1.5))
        return picture * (1 - dark[:, None])

    def _subject(
        self, picture: Tensor, clips: Sequence[Factors], n: dict[str, Tensor], camera: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        b, f = n["frame"].shape
        h, w = self.size
        rows = torch.tensor([self._index[clip.subject] for clip in clips], device=self.device)
        frame = n["frame"].long() % self._sprites.shape[1]
        texture = (self._sprites[rows[:, None], frame].float() / 255.0).flatten(0, 1)  # [B F, 4, C, C]
        texture = _repaint(texture, n, f)
        shrunk = (
            n["extent"] * n["zoom"] * h / 2 < 0.6 * texture.shape[-1]
        )  # drawn far smaller than its picture: smooth it first
        smooth = interpolate(avg_pool2d(texture, 2), scale_factor=2.0, mode="bilinear")
        texture = torch.where(shrunk.view(-1, 1, 1, 1), smooth, texture)
        x, y = self._world_xy(camera, 1.0)
        half, tall = n["extent"] / 2, n["extent"] * n["stretch"] / 2
        dx = x - n["x"][:, :, None, None]
        dy = y - (n["y"] - tall)[:, :, None, None]
        angle = torch.deg2rad(n["angle"])
        cos, sin = angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]
        across = (dx * cos + dy * sin) * (n["flip"] / half)[:, :, None, None]
        along = (dy * cos - dx * sin) / tall[:, :, None, None]
        grid = torch.stack([across, along], -1).view(b * f, h, w, 2)
        drawn = grid_sample(texture, grid, align_corners=False).view(b, f, 4, h, w).transpose(1, 2)
        share = _column(n["mist_share"]) * 0.12
        colour = drawn[:, :3] * (_column(n["subject"]) * (1 - share)) + drawn[:, 3:] * (_column(n["mist"]) * share)
        return picture * (1 - drawn[:, 3:]) + colour

    def _weather(self, picture: Tensor, n: dict[str, Tensor]) -> Tensor:
        if not bool(((n["rain"] > 0) | (n["snow"] > 0)).any()):
            return picture
        seconds = torch.arange(self.frames, device=self.device).view(1, -1, 1, 1) / 16.0
        drift = n["drift"].view(-1, 2, 1, 1, 1)
        h, w = self.size
        u, v = self._u.expand(1, self.frames, h, w), self._v.expand(1, self.frames, h, w)
        rain = self._tile(1, u + 0.9 * seconds + drift[:, 0] * 2, v - 4.5 * seconds + drift[:, 1] * 2, 1.0)
        sway = 0.05 * torch.sin(2.0 * seconds + 3.0 * v)
        snow = self._tile(2, u + sway + drift[:, 0] * 2, v - 0.7 * seconds + drift[:, 1] * 2, 1.0)
        shine = (_column(n["rain"]) * 0.5 * rain + _column(n["snow"]) * 0.95 * snow).clamp(0, 1)
        return picture + (1.0 - picture) * shine

    def _tile(self, index: int, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """A repeating tile of 2 x 2 units, read at (x, y) * scale [B, F, H, W]: [B, 1, F, H, W]."""
        b, f, h, w = x.shape
        grid = torch.stack([torch.remainder(x * scale + 1, 2) - 1, torch.remainder(y * scale + 1, 2) - 1], -1)
        tile = self._tiles[index].expand(b, 1, TILE, TILE)
        return grid_sample(tile, grid.view(b, f * h, w, 2), padding_mode="border", align_corners=False).view(
            b, 1, f, h, w
        )


def _column(values: Tensor) -> Tensor:
    """[B] or [B, 3] as [B, 1 or 3, 1, 1, 1], to meet pictures [B, 3, F, H, W]."""
    return values.view(values.shape[0], -1, 1, 1, 1)


def _repaint(texture: Tensor, n: dict[str, Tensor], frames: int) -> Tensor:
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


def _middle_brightness(sheet: np.ndarray) -> float:
    """The median brightness of a subject, 0 to 1; sheet uint8 [K, 4, C, C]."""
    solid = sheet[0, 3] > 200
    light = (sheet[0, :3].astype(np.float32) * np.asarray(LUMA, np.float32)[:, None, None]).sum(0)[solid] / 255.0
    return float(np.clip(np.median(light), 0.08, 0.93))


def _load_sheets(atlas: Path) -> dict[str, np.ndarray]:
    """Each subject's frames as uint8 [K, 4, C, C], premultiplied, in the order of the table."""
    sheets = {}
    with np.load(atlas) as file:
        missing = [s.name for s in SUBJECTS if f"sheet/{s.name}" not in file]
        if missing:
            raise MissingFilesError(f"{atlas} lacks {missing[0]} and is older than the table: bake it again")
        for name in BY_NAME:
            sheet = np.asarray(Image.open(io.BytesIO(file[f"sheet/{name}"].tobytes())).convert("RGBA").convert("RGBa"))
            cells = sheet.reshape(FRAMES // COLUMNS, CELL, COLUMNS, CELL, 4).transpose(0, 2, 4, 1, 3)
            sheets[name] = cells.reshape(FRAMES, 4, CELL, CELL)
    return sheets


def _weather_tiles() -> np.ndarray:
    """float32 [3, TILE, TILE]: stars, rain streaks, snow flakes, all repeating without a seam."""
    rng = np.random.default_rng(7)
    tiles = np.zeros((3, TILE, TILE), np.float32)
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
    return tiles.clip(0, 1)
