"""Where a subject is in each frame: paths in world units (the view is 2 high; x right, y down), and the camera's.

All curves are NumPy arrays over the frames of one clip; the renderer stacks them. Nothing here draws.
"""

from dataclasses import dataclass

import numpy as np

from turbodiffusion.demo.factors import Factors
from turbodiffusion.demo.scenes import SCENES

FPS = 16
SIZE = {
    "": 0.96,
    "small": 0.66,
    "big": 1.26,
}  # a subject's height and width in units: 33, 48 and 63 percent of the view's height
PACE = {"": 1.0, "slow": 0.55, "fast": 1.35}


@dataclass(frozen=True)
class Track:
    """One subject through one clip; arrays [F]. x, y: the middle of its lower edge. height: how far it is above the
    ground under it (its shadow). extent: the side of its square. angle: degrees, clockwise on the screen. stretch:
    height over width. flip: +1 as drawn, -1 mirrored. frame: which picture of its loop, a real number that grows by 1
    for each picture."""

    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    extent: np.ndarray
    angle: np.ndarray
    stretch: np.ndarray
    flip: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True)
class CameraTrack:
    """The camera: the point of the ground plane in the middle of the view, and the zoom; arrays [F]."""

    x: np.ndarray
    y: np.ndarray
    zoom: np.ndarray


def camera_track(camera: str, frames: int, rng: np.random.Generator) -> CameraTrack:
    """Pans by 0.9 of the view's height, tilts by 0.5, zooms by 1.5, evenly over the clip, with small differences from
    clip to clip."""
    t = np.linspace(0.0, 1.0, frames)
    x, y, zoom = np.full(frames, rng.uniform(-0.35, 0.35)), np.zeros(frames), np.ones(frames)
    strength = rng.uniform(0.85, 1.15)
    if camera in ("pan left", "pan right"):
        x = (t - 0.5) * 0.9 * strength * (1 if camera == "pan right" else -1)
    elif camera in ("tilt up", "tilt down"):
        y = (t - 0.5) * 0.5 * strength * (1 if camera == "tilt down" else -1)
    elif camera in ("zoom in", "zoom out"):
        zoom = 1.0 + 0.5 * strength * (t if camera == "zoom in" else 1.0 - t)
    return CameraTrack(x, y, zoom)


def subject_track(factors: Factors, frames: int, aspect: float, camera: CameraTrack, rng: np.random.Generator) -> Track:
    """The path of a clip's subject on the ground plane of its scene; `aspect` is the view's width over its height."""
    t = np.linspace(0.0, 1.0, frames)
    seconds = np.arange(frames) / FPS
    scene, kind = SCENES[factors.scene], factors.manner
    one, zero = np.ones(frames), np.zeros(frames)
    size = SIZE[factors.size] * rng.uniform(0.93, 1.07)
    pace = PACE[factors.speed]
    swims_or_flies = kind in ("flyer", "craft", "swimmer", "floater") or factors.scene in ("sky", "space", "underwater")
    ground = rng.uniform(*scene.feet)
    level = size / 2 + rng.uniform(-0.12, 0.12) if swims_or_flies else ground
    side = rng.choice((-1.0, 1.0))
    x, y, sizes, angle, stretch = (
        zero + rng.uniform(-0.2, 0.2) * aspect,
        zero + level,
        one * size,
        zero.copy(),
        one.copy(),
    )
    heading, loops, lift = one * side, 1.0, zero.copy()

    if factors.motion in ("walk", "run") or (factors.motion == "fly" and factors.direction in ("left", "right")):
        way = -1.0 if factors.direction == "left" else 1.0
        reach = aspect * {"walk": 0.62, "run": 1.0, "fly": 0.8}[factors.motion] * min(pace, 1.2)
        x, heading, loops = way * reach * (2 * t - 1), one * way, 2.0 if factors.motion == "run" else 1.0
        loops *= pace
        lift, angle, stretch = _gait(factors, kind, t, pace, way)
    elif factors.motion == "fly":
        way = -1.0 if factors.direction == "up" else 1.0
        y = size / 2 + way * 0.68 * min(pace, 1.25) * (2 * t - 1)
        angle = one * side * (0.0 if factors.row.points else 16.0 * way)
    elif factors.motion == "jump":
        hops = {"": 3, "slow": 2, "fast": 4}[factors.speed]
        phase = (t * hops) % 1.0
        lift = 0.5 * rng.uniform(0.85, 1.1) * np.sin(np.pi * phase)
        stretch = 1.0 + 0.12 * np.cos(2 * np.pi * phase + np.pi) * np.minimum(1.0, 8 * t)
    elif factors.motion == "fall":
        landing = ground if scene.shadow else 1.9
        y = np.minimum(-1.0 + (landing + 1.05) * np.minimum(t / 0.8, 1.2) ** 1.7, landing)
        angle = side * 70.0 * np.maximum(0.0, (landing - y) / (landing + 1.0))
        lift = zero
    elif factors.motion == "spin":
        angle = side * 360.0 * (1.5 * t)
        y = zero + level if swims_or_flies else zero + ground - 0.1
    elif factors.motion == "circle":
        turn = 2 * np.pi * (t * 1.05 + rng.uniform()) * side
        x = x * 0.3 + 0.52 * aspect * np.cos(turn)
        deep = 0.16 if not swims_or_flies else 0.4
        y = (ground - 0.12 if not swims_or_flies else level) + deep * np.sin(turn)
        sizes = size * (0.85 + (0.0 if swims_or_flies else 0.16) * np.sin(turn))
        heading, loops = np.where(-np.sin(turn) * side >= 0, 1.0, -1.0), 1.5
    elif factors.motion in ("approach", "recede"):
        near = t if factors.motion == "approach" else 1.0 - t
        sizes = size * (0.3 + 1.0 * near**1.4)
        far_y = 0.12 if swims_or_flies else scene.horizon + 0.12
        y = far_y + ((sizes[near.argmax()] / 2 + 0.1 if swims_or_flies else 0.9) - far_y) * near**1.2
        x = x * near
    else:
        loops = 0.75
    if swims_or_flies and factors.motion not in ("fall",):
        lift = lift + 0.04 * np.sin(2 * np.pi * (0.8 * seconds + rng.uniform()))
    follows = factors.motion in ("walk", "run", "fly")  # a subject that crosses the view does so in a moving view too
    x = x + (camera.x if follows else camera.x[frames // 2])
    if not scene.shadow or swims_or_flies:
        y = y + (camera.y if follows else 0.0)
    # ground under a flyer is far below it: the shadow fades with the height
    height = lift + (np.maximum(0.0, ground - (y - lift)) if swims_or_flies else 0.0)
    flip = heading if factors.row.facing == "right" else -heading if factors.row.facing == "left" else one * side
    frame = rng.uniform(0, 48) + loops * FPS * seconds
    return Track(x, y - lift, height, sizes, angle + _nose(factors, heading), stretch, flip, frame)


def _gait(
    factors: Factors, kind: str, t: np.ndarray, pace: float, way: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lift, angle, stretch) of travelling: runners bound and lean, boats rock, vehicles hum, walkers sway a little."""
    zero, one = np.zeros_like(t), np.ones_like(t)
    runs = factors.motion == "run"
    if kind in ("boat", "paddler"):
        return 0.02 * np.sin(4 * np.pi * t), (3.0 + 2.0 * runs) * np.sin(3.2 * np.pi * t), one
    if kind == "vehicle":
        return 0.008 * np.abs(np.sin(14 * np.pi * t)), zero, one
    if kind == "ball":
        return 0.0 * t, way * (2 * t - 1) * (250.0 if runs else 160.0) * pace, one
    if kind == "walker" and runs:
        steps = 5 * np.pi * t * pace
        return 0.1 * np.abs(np.sin(steps)), way * (5.0 + 5.0 * np.sin(2 * steps)), 1.0 + 0.05 * np.cos(2 * steps)
    if kind == "walker":
        return 0.02 * np.abs(np.sin(6 * np.pi * t * pace)), 2.0 * np.sin(6 * np.pi * t * pace), one
    return 0.05 * np.sin(3 * np.pi * t), zero, one


def _nose(factors: Factors, heading: np.ndarray) -> np.ndarray:
    """Turn a drawing whose nose points upwards (a rocket) to where it goes: degrees clockwise."""
    points = factors.row.points
    if not points:
        return np.zeros_like(heading)
    target = {"up": 90.0, "down": -90.0, "left": 0.0, "right": 0.0}.get(
        factors.direction, 90.0 if factors.motion in ("still", "jump", "fall") else points
    )
    return heading * (points - target)
