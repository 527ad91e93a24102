"""Renders clips of the demo world with torch, the same on CPU and GPU: scenes in layers with parallax, one animated
subject, camera, light.

A World keeps the art as textures on its device; `render` samples them for a whole batch of clips at once
(grid_sample; no loop over frames). Everything about a clip follows from its Factors, so a seed fixes a data set and
nothing needs to be stored. Names: B clips, F frames, H and W pixels of the view; colours are premultiplied by alpha.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, max_pool2d

from turbodiffusion.demo.atlas import SHEET, open_atlas, sheet_of, subjects_in
from turbodiffusion.demo.bake import CELL, COLUMNS, FRAMES
from turbodiffusion.demo.effects import PAINTS, STYLES, TILE, column, middle_brightness, repaint, weather_tiles
from turbodiffusion.demo.factors import NATURAL, TRAVELS, Factors, sample_factors
from turbodiffusion.demo.light import light_row
from turbodiffusion.demo.motion import FPS, Track, camera_track, chase, side_by_side, subject_track
from turbodiffusion.demo.painting import HALF_X, HALF_Y
from turbodiffusion.demo.scenes import LAYERS, PARALLAX, SCENES, paint_scene
from turbodiffusion.demo.subjects import BY_NAME
from turbodiffusion.errors import UserError

Numbers = dict[str, Tensor]
MIST_BY_LAYER = (1.0, 0.7, 0.35, 0.15)
SWAYING = 1  # the layer with trees
STANDING = "standing/"  # before the name of a subject whose sheet shows it standing
MASK_CELL = 8  # pixels: a side of what a number of `render_with_masks` stands for


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
        if size[0] % 16 or size[1] % 16 or frames % 4 != 1:
            raise UserError(
                f"clips of {frames} frames at {size[1]}x{size[0]}: sides must be multiples of 16 "
                "and frames 1 more than a multiple of 4"
            )
        self.device = torch.device(device)
        self.size, self.frames, self.instances = size, frames, instances
        self.aspect = size[1] / size[0]
        sheets = _load_sheets(Path(atlas))
        self.subjects = tuple(BY_NAME[name] for name in sheets if name in BY_NAME)
        self._index = {name: k for k, name in enumerate(sheets)}
        self._middle = {name: middle_brightness(sheet) for name, sheet in sheets.items()}
        self._sprites = torch.from_numpy(np.stack(list(sheets.values()))).to(self.device)  # uint8 [N, K, 4, C, C]
        jobs = [(name, seed) for name in scene_names for seed in range(instances)]
        with ThreadPoolExecutor() as pool:
            painted = list(pool.map(lambda job: paint_scene(*job), jobs))
        self._places = {name: k * instances for k, name in enumerate(scene_names)}
        self._layers = torch.from_numpy(np.stack(painted)).to(self.device)  # uint8 [N, LAYERS, 4, h, w]
        self._tiles = torch.from_numpy(weather_tiles()).to(self.device)  # float32 [len(TILES), TILE, TILE]
        h, w = size
        self._v = ((torch.arange(h, device=self.device) + 0.5) / h * 2 - 1).view(1, 1, h, 1)
        self._u = ((torch.arange(w, device=self.device) + 0.5) / w * 2 - 1).view(1, 1, 1, w) * self.aspect

    def sample_factors(self, rng: np.random.Generator, count: int, held_out: bool = False) -> list[Factors]:
        """`count` random clips of the atlas's subjects (factors.sample_factors)."""
        return sample_factors(rng, count, held_out, self.subjects)

    @torch.no_grad()
    def render(self, clips: Sequence[Factors], *, batch: int = 16) -> Tensor:
        """float32 video [B, 3, F, H, W] in [-1, 1], on the world's device; `batch` clips are drawn at a time."""
        return self.render_with_masks(clips, batch=batch)[0]

    @torch.no_grad()
    def render_with_masks(self, clips: Sequence[Factors], *, batch: int = 16) -> tuple[Tensor, Tensor]:
        """`render`, and where the subjects are: float32 [B, F, H/8, W/8], the largest alpha of 8x8 pixels."""
        b = batch if self.device.type == "cuda" else 1
        # Still cameras together, and in them still air: what does not move is drawn once.
        order = sorted(range(len(clips)), key=lambda k: (clips[k].camera, SCENES[clips[k].scene].windy))
        video = torch.empty(len(clips), 3, self.frames, *self.size, device=self.device)
        masks = torch.empty(len(clips), self.frames, *(side // MASK_CELL for side in self.size), device=self.device)
        for k in range(0, len(order), b):
            part = order[k : k + b]
            video[part], masks[part] = self._render([clips[m] for m in part])
        return video, masks

    def _render(self, clips: Sequence[Factors]) -> tuple[Tensor, Tensor]:
        scene, casts = self._numbers(clips)
        # With still cameras one frame of the scene serves the whole clip, but for what the wind moves.
        if not any(clip.camera for clip in clips):
            scene |= {key: scene[key][:, :1] for key in ("camera_x", "camera_y", "zoom")}
        sways, drifts = (any(getattr(SCENES[clip.scene], key) for clip in clips) for key in ("sway", "clouds"))
        picture = self._sky(scene)
        if drifts:
            picture = self._clouds(picture, scene)
        places = [self._places[c.scene] + c.seed % self.instances for c in clips]
        textures = self._layers[torch.tensor(places, device=self.device)]
        for k in range(LAYERS - 1):
            picture = self._layer(picture, textures[:, k], k, scene, swaying=sways and k == SWAYING)
        picture = picture.expand(-1, -1, self.frames, -1, -1).clone()
        mask = torch.zeros(len(clips), self.frames, *(side // MASK_CELL for side in self.size), device=self.device)
        for members, cast in casts:
            numbers = {key: scene[key][members] for key in scene} | cast
            picture[members], alpha = self._subject(picture[members], numbers)
            mask[members] = torch.maximum(mask[members], max_pool2d(alpha, MASK_CELL))
        picture = self._layer(picture, textures[:, -1], LAYERS - 1, scene)
        wet = [k for k, clip in enumerate(clips) if clip.light in ("rain", "snow")]
        if wet:
            picture[wet] = self._weather(picture[wet], {key: scene[key][wet] for key in scene})
        strewn = [k for k, clip in enumerate(clips) if clip.light in ("petals", "leaves")]
        if strewn:
            picture[strewn] = self._flecks(picture[strewn], {key: scene[key][strewn] for key in scene})
        picture.clamp_(0.0, 1.0)
        for style, draw in STYLES.items():
            members = [k for k, clip in enumerate(clips) if clip.style == style]
            if members:
                picture[members] = draw(picture[members])
        return picture.mul_(2.0).sub_(1.0), mask

    def _numbers(self, clips: Sequence[Factors]) -> tuple[Numbers, list[tuple[list[int], Numbers]]]:
        """Everything numeric about the clips, drawn on the CPU from their seeds, as tensors [B, ...] on the device: the
        scenes', and, back to front, the other subjects' and the first ones' with the clips that they are in."""
        scenes: list[dict[str, Any]] = []
        firsts: list[tuple[int, dict[str, Any]]] = []
        seconds: list[tuple[int, dict[str, Any]]] = []
        thirds: list[tuple[int, dict[str, Any]]] = []
        for k, clip in enumerate(clips):
            rng = np.random.default_rng(clip.seed)
            camera = camera_track(clip.camera, self.frames, rng)
            row = light_row(clip, self.aspect, rng) | {"drift": rng.uniform(0, 1, 2)}
            scenes.append(row | {"camera_x": camera.x, "camera_y": camera.y, "zoom": camera.zoom})
            path = int(rng.integers(2**31))  # both subjects draw the same numbers: they move alike
            track = subject_track(clip, self.frames, self.aspect, camera, np.random.default_rng(path))
            if clip.second:
                other = replace(clip, subject=clip.second, colour=NATURAL, second="", chased=0)
                if clip.chased:
                    track, fleeing = chase(clip, other, track, self.aspect, np.random.default_rng(path))
                else:
                    beside = subject_track(other, self.frames, self.aspect, camera, np.random.default_rng(path))
                    track, beside = side_by_side(track, beside)
                    fleeing = [beside]
                for layer, beside in zip((seconds, thirds), fleeing, strict=False):
                    layer.append((k, self._cast(other, beside)))
            firsts.append((k, self._cast(clip, track)))
        casts = [cast for cast in (thirds, seconds, firsts) if cast]
        return self._stack(scenes), [([k for k, _ in cast], self._stack([row for _, row in cast])) for cast in casts]

    def _cast(self, clip: Factors, track: Track) -> dict[str, Any]:
        """The numbers of one subject of one clip."""
        standing, stays = f"{STANDING}{clip.subject}", clip.motion not in (*TRAVELS, "circle")
        return vars(track) | {
            "sprite": self._index[standing if stays and standing in self._index else clip.subject],
            "middle": self._middle[clip.subject],
            "glass": clip.row.glass,
            "painted": clip.colour != NATURAL,
            "paint": np.asarray(PAINTS.get(clip.colour, PAINTS["red"])) / 255.0,
        }

    def _stack(self, rows: Sequence[dict[str, Any]]) -> Numbers:
        stacked = {key: np.stack([np.asarray(row[key], np.float32) for row in rows]) for key in rows[0]}
        return {key: torch.from_numpy(value).to(self.device) for key, value in stacked.items()}

    def _world_xy(self, n: Numbers, parallax: float) -> tuple[Tensor, Tensor]:
        """World coordinates of the pixels on a layer: x [B, F, 1, W] and y [B, F, H, 1]. Far layers pan and zoom
        less, tilt half."""
        x, y, zoom = (n[key][:, :, None, None] for key in ("camera_x", "camera_y", "zoom"))
        scale = zoom ** (0.3 + 0.7 * min(parallax, 1.0))
        return x * parallax + self._u / scale, y * (0.5 + 0.5 * parallax) + self._v / scale

    def _sky(self, n: Numbers) -> Tensor:
        x, y = self._world_xy(n, 0.05)
        share = ((y + 1.1) / (n["horizon"].view(-1, 1, 1, 1) + 1.1)).clamp(0, 1)[:, None]
        picture = column(n["sky_top"]) * (1 - share) + column(n["sky_bottom"]) * share
        place = n["place"].view(-1, 2, 1, 1, 1)
        distance = ((x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2).sqrt()[:, None]
        radius = column(n["radius"])
        glow = column(n["glow"]) * torch.exp(-2.2 * distance)
        picture = picture + (column(n["disc"]) - picture).clamp_min(-0.05) * glow
        if bool((n["stars"] > 0).any()):
            star = _tile(self._tiles, 0, x.expand(-1, -1, y.shape[2], -1), y.expand(-1, -1, -1, x.shape[3]), 1.3)
            picture = picture + 0.9 * column(n["stars"]) * star
        disc = ((radius - distance) * 90.0).clamp(0, 1) * (radius > 0)
        return picture * (1 - disc) + (column(n["disc"]) * 0.92 + 0.08) * disc

    def _clouds(self, picture: Tensor, n: Numbers) -> Tensor:
        """Clouds that drift across the sky, where the scene has wind."""
        x, y = self._world_xy(n, 0.1)
        b, f, h, w = x.shape[0], self.frames, y.shape[2], x.shape[3]
        speed = n["clouds"].view(-1, 1, 1, 1)
        drift = n["drift"].view(-1, 2, 1, 1, 1)
        x = (x + 3.0 * drift[:, 0] - speed * self._seconds()).expand(b, f, h, w)
        y = (y + 2.0 * drift[:, 1]).expand(b, f, h, w)
        cover, light = _tile(self._tiles, 5, x, y, 0.5, channels=2).split(1, 1)
        cover = cover * (speed > 0)[:, None] * 0.95
        colour = (0.74 + 0.26 * light) * (column(n["scene"]).clamp(0, 1) * 0.75 + 0.25 * column(n["sky_bottom"]))
        return picture * (1 - cover) + colour * cover

    def _seconds(self) -> Tensor:
        """The time of each frame, [1, F, 1, 1]."""
        return torch.arange(self.frames, device=self.device).view(1, -1, 1, 1) / FPS

    def _layer(self, picture: Tensor, texture: Tensor, layer: int, n: Numbers, swaying: bool = False) -> Tensor:
        x, y = self._world_xy(n, PARALLAX[layer])
        if swaying:  # tops more than trunks, each tree in its own time, and a little trembling of the leaves
            time, up = self._seconds(), (0.42 - y).clamp_min(0)
            wave = torch.sin(2 * math.pi * 0.85 * time + 2.6 * x) + 0.3 * torch.sin(2 * math.pi * 2.3 * time + 9.0 * x)
            tremble = torch.sin(2 * math.pi * 2.9 * time + 23.0 * x) * torch.sin(17.0 * y + 6.0 * time)
            x = x - n["sway"].view(-1, 1, 1, 1) * (wave * up**1.3 + 0.12 * tremble * up.clamp_max(1))
        b, f, h, w = x.shape[0], x.shape[1], y.shape[2], x.shape[3]
        grid = torch.stack([(x / HALF_X).expand(b, f, h, w), (y / HALF_Y).expand(b, f, h, w)], -1).view(b, f * h, w, 2)
        drawn = grid_sample(texture.float() / 255.0, grid, padding_mode="border", align_corners=False).view(
            b, 4, f, h, w
        )
        share = column(n["mist_share"]) * MIST_BY_LAYER[layer]
        colour = drawn[:, :3] * (column(n["scene"]) * (1 - share)) + drawn[:, 3:] * (column(n["mist"]) * share)
        return picture * (1 - drawn[:, 3:]) + colour

    def _subject(self, picture: Tensor, n: Numbers) -> tuple[Tensor, Tensor]:
        """One subject of each clip, and its shadow on the ground under it; the subject's alpha [B, F, H, W]."""
        b, f = n["frame"].shape
        h, w = self.size
        x, y = self._world_xy(n, 1.0)
        picture = picture * (1 - _shadow(x, y, n))
        frame = n["frame"].long() % self._sprites.shape[1]
        texture = (self._sprites[n["sprite"].long()[:, None], frame].float() / 255.0).flatten(0, 1)  # [B F, 4, C, C]
        texture = repaint(texture, n, f)
        shrunk = n["extent"] * n["zoom"] * h / 2 < 0.6 * texture.shape[-1]  # much smaller than its picture: smooth it
        smooth = interpolate(avg_pool2d(texture, 2), scale_factor=2.0, mode="bilinear")
        texture = torch.where(shrunk.view(-1, 1, 1, 1), smooth, texture)
        half, tall = n["extent"] / 2, n["extent"] * n["stretch"] / 2
        dx = x - n["x"][:, :, None, None]
        dy = y - (n["y"] - tall)[:, :, None, None]
        angle = torch.deg2rad(n["angle"])
        cos, sin = angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]
        across = (dx * cos + dy * sin) * (n["flip"] / half)[:, :, None, None]
        along = (dy * cos - dx * sin) / tall[:, :, None, None]
        grid = torch.stack([across, along], -1).view(b * f, h, w, 2)
        drawn = grid_sample(texture, grid, align_corners=False).view(b, f, 4, h, w).transpose(1, 2)
        share = column(n["mist_share"]) * 0.12
        colour = drawn[:, :3] * (column(n["subject"]) * (1 - share)) + drawn[:, 3:] * (column(n["mist"]) * share)
        return picture * (1 - drawn[:, 3:]) + colour, drawn[:, 3]

    def _weather(self, picture: Tensor, n: Numbers) -> Tensor:
        seconds = self._seconds()
        drift = n["drift"].view(-1, 2, 1, 1, 1)
        h, w = self.size
        u, v = self._u.expand(1, self.frames, h, w), self._v.expand(1, self.frames, h, w)
        rain = _tile(self._tiles, 1, u + 0.9 * seconds + drift[:, 0] * 2, v - 4.5 * seconds + drift[:, 1] * 2, 1.0)
        sway = 0.05 * torch.sin(2.0 * seconds + 3.0 * v)
        snow = _tile(self._tiles, 2, u + sway + drift[:, 0] * 2, v - 0.7 * seconds + drift[:, 1] * 2, 1.0)
        shine = (column(n["rain"]) * 0.5 * rain + column(n["snow"]) * 0.95 * snow).clamp(0, 1)
        return picture + (1.0 - picture) * shine

    def _flecks(self, picture: Tensor, n: Numbers) -> Tensor:
        """Petals or leaves that fall slantwise in the wind: small ones far away, then large ones before the viewer."""
        seconds, drift = self._seconds(), n["drift"].view(-1, 2, 1, 1, 1)
        h, w = self.size
        u, v = self._u.expand(1, self.frames, h, w), self._v.expand(1, self.frames, h, w)
        for near, scale in ((0.6, 1.25), (1.0, 0.72)):
            fall = (n["fall"] * near).view(-1, 1, 1, 1) * seconds
            sway = 0.06 * near * torch.sin(2.4 * seconds + 2.0 * v + 7.0 * near)
            x, y = u + sway - 0.6 * fall + drift[:, 0] * 2 + near, v - fall + drift[:, 1] * 2
            cover, light = _tile(self._tiles, 3, x, y, scale, channels=2).split(1, 1)
            colour = torch.lerp(column(n["fleck_dark"]), column(n["fleck_light"]), light)
            picture = picture + (colour - picture) * cover
        return picture


def _shadow(x: Tensor, y: Tensor, n: Numbers) -> Tensor:
    """How dark the ground is under the subject, [B, 1, F, H, W] for pixels at x and y."""
    extent, height = n["extent"][:, :, None, None], n["height"][:, :, None, None]
    across = (x - n["x"][:, :, None, None]) / (extent * (0.34 + 0.1 * height))
    along = (y - n["y"][:, :, None, None] - height + 0.02) / (extent * (0.07 + 0.02 * height))
    strength = n["shadow"].view(-1, 1, 1, 1) * torch.exp(-1.4 * height)
    return (strength * torch.exp(-((across**2 + along**2) ** 1.5)))[:, None]


def _tile(tiles: Tensor, index: int, x: Tensor, y: Tensor, scale: float, channels: int = 1) -> Tensor:
    """A repeating tile of 2 x 2 units and the next ones, read at (x, y) * scale [B, F, H, W]: [B, channels, F, H,
    W]."""
    b, f, h, w = x.shape
    grid = torch.stack([torch.remainder(x * scale + 1, 2) - 1, torch.remainder(y * scale + 1, 2) - 1], -1)
    tile = tiles[index : index + channels].expand(b, channels, TILE, TILE)
    return grid_sample(tile, grid.view(b, f * h, w, 2), padding_mode="border", align_corners=False).view(
        b, channels, f, h, w
    )


def _load_sheets(atlas: Path) -> dict[str, np.ndarray]:
    """The frames of each subject in the atlas as uint8 [K, 4, C, C], premultiplied, in the order of the table; those of
    one that stands follow under another name."""
    sheets: dict[str, np.ndarray] = {}
    with open_atlas(atlas) as file:
        names = subjects_in(file, atlas)
        for prefix, key in ((SHEET, ""), (STANDING, STANDING)):
            for name in names:
                if f"{prefix}{name}" in file:
                    sheet = np.asarray(sheet_of(file, f"{prefix}{name}").convert("RGBA").convert("RGBa"))
                    cells = sheet.reshape(FRAMES // COLUMNS, CELL, COLUMNS, CELL, 4).transpose(0, 2, 4, 1, 3)
                    sheets[f"{key}{name}"] = cells.reshape(FRAMES, 4, CELL, CELL)
    return sheets
