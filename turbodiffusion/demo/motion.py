"""Where a subject is in each frame: paths in world units (the view is 2 high; x right, y down), and the camera's.

All curves are NumPy arrays over the frames of one clip; the renderer stacks them. Nothing here draws.
"""

from dataclasses import dataclass, replace

import numpy as np

from turbodiffusion.demo.factors import Factors
from turbodiffusion.demo.scenes import SCENES

FPS = 16
SIZE = {
    "": 0.96,
    "small": 0.72,
    "big": 1.26,
}  # a subject's height and width in units: 36, 48 and 63 percent of the view's height
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


@dataclass
class _Draft:
    """A track while it is being made: as in Track, with `lift` the height of a hop, `heading` +1 right or -1 left, and
    `loops` the speed of its loop."""

    x: np.ndarray
    y: np.ndarray
    lift: np.ndarray
    extent: np.ndarray
    angle: np.ndarray
    stretch: np.ndarray
    heading: np.ndarray
    loops: float = 1.0


def subject_track(factors: Factors, frames: int, aspect: float, camera: CameraTrack, rng: np.random.Generator) -> Track:
    """The path of a clip's subject on the ground plane of its scene; `aspect` is the view's width over its height."""
    t, zero, one = np.linspace(0.0, 1.0, frames), np.zeros(frames), np.ones(frames)
    seconds = np.arange(frames) / FPS
    scene, motion = SCENES[factors.scene], factors.motion
    floats = factors.manner in ("flyer", "craft", "swimmer", "floater") or scene.horizon > 1  # it stands on no ground
    size, ground = SIZE[factors.size] * rng.uniform(0.93, 1.07), rng.uniform(*scene.feet)
    level = size / 2 + rng.uniform(-0.12, 0.12) if floats else ground
    side, place = float(rng.choice((-1.0, 1.0))), rng.uniform(-0.2, 0.2) * aspect
    d = _Draft(zero + place, zero + level, zero, one * size, zero, one, one * side)
    follows = motion in ("walk", "run", "fly")  # a subject that crosses the view does so in a moving view too
    if motion in ("walk", "run") or factors.direction in ("left", "right"):
        _travel(d, factors, t, aspect)
    elif motion == "fly":
        _climb(d, factors, t, size, side)
    elif motion == "jump":
        _hop(d, factors, t, rng.uniform(0.42, 0.55))
    elif motion == "fall":
        _fall(d, t, ground if scene.shadow else 1.9, side)
    elif motion == "spin":
        d.angle = side * 540.0 * t
        d.y = d.y - (0.0 if floats else 0.1)
    elif motion == "circle":
        _circle(d, 2 * np.pi * (1.05 * t + rng.uniform()) * side, side, aspect, floats)
    elif motion in ("approach", "recede"):
        _come_or_go(d, t if motion == "approach" else 1.0 - t, scene.horizon, floats)
    else:
        d.loops = 0.75
    if floats and motion != "fall":
        d.lift = d.lift + 0.04 * np.sin(2 * np.pi * (0.8 * seconds + rng.uniform()))
    d.x = d.x + (camera.x if follows else camera.x[frames // 2])
    if follows and (floats or not scene.shadow):
        d.y = d.y + camera.y
    # the ground is far below a flyer: its shadow fades with the height
    height = d.lift + (np.maximum(0.0, ground - (d.y - d.lift)) if floats else 0.0)
    flip = {"right": d.heading, "left": -d.heading, "front": one * side}[factors.row.facing]
    frame = rng.uniform(0, 48) + d.loops * FPS * seconds
    angle = d.angle + _nose(factors, d.heading)
    return Track(d.x, d.y - d.lift, height, d.extent, angle, d.stretch, flip, frame)


def _travel(d: _Draft, factors: Factors, t: np.ndarray, aspect: float) -> None:
    """Across the view, left or right, in the gait of its kind."""
    pace, way = PACE[factors.speed], -1.0 if factors.direction == "left" else 1.0
    reach = aspect * min(1.05, pace * {"walk": 0.62, "run": 1.0, "fly": 0.8}[factors.motion])
    if factors.camera in ("zoom in", "zoom out"):
        reach *= 0.75  # or it would be outside the view where the zoom is near
    d.x = way * reach * (2 * t - 1)
    d.heading = np.full_like(t, way)
    d.loops = pace * (2.0 if factors.motion == "run" else 1.0)
    d.lift, d.angle, d.stretch = _gait(factors, factors.manner, t, pace, way)


def _climb(d: _Draft, factors: Factors, t: np.ndarray, size: float, side: float) -> None:
    """Up or down through the view, the nose a little up or down."""
    way = -1.0 if factors.direction == "up" else 1.0
    d.y = size / 2 + way * 0.68 * min(PACE[factors.speed], 1.25) * (2 * t - 1)
    d.angle = np.full_like(t, 0.0 if factors.row.points else side * 16.0 * way)


def _hop(d: _Draft, factors: Factors, t: np.ndarray, height: float) -> None:
    """Hops on the spot, stretched on the way and squashed on the ground."""
    phase = (t * {"": 3, "slow": 2, "fast": 4}[factors.speed]) % 1.0
    d.lift = height * np.sin(np.pi * phase)
    d.stretch = 1.0 - 0.12 * np.cos(2 * np.pi * phase) * np.minimum(1.0, 8 * t)


def _fall(d: _Draft, t: np.ndarray, landing: float, side: float) -> None:
    """From above the view down to `landing`, turning upright; it lies still for the last fifth."""
    d.y = np.minimum(-0.75 + (landing + 0.75) * (t / 0.8) ** 1.5, landing)
    d.angle = side * 70.0 * (landing - d.y) / (landing + 0.75)


def _circle(d: _Draft, turn: np.ndarray, side: float, aspect: float, floats: bool) -> None:
    """Once around, facing the way it goes; on the ground the circle is flat and its far side smaller."""
    d.x = 0.3 * d.x + 0.52 * aspect * np.cos(turn)
    d.y = d.y - (0.0 if floats else 0.12) + (0.4 if floats else 0.16) * np.sin(turn)
    d.extent = d.extent * (0.85 + (0.0 if floats else 0.16) * np.sin(turn))
    d.heading = np.where(-np.sin(turn) * side >= 0, 1.0, -1.0)
    d.loops = 1.5


def _come_or_go(d: _Draft, near: np.ndarray, horizon: float, floats: bool) -> None:
    """From the horizon to the viewer as `near` goes from 0 to 1; in the air, towards the middle of the view."""
    d.extent = d.extent * (0.3 + 1.0 * near**1.4)
    far_y, near_y = (0.12, d.extent.max() / 2 + 0.1) if floats else (horizon + 0.12, 0.9)
    d.y = far_y + (near_y - far_y) * near**1.2
    d.x = d.x * near


def side_by_side(first: Track, second: Track) -> tuple[Track, Track]:
    """Two tracks drawn from the same numbers, moved apart and made a little smaller; the first is in front."""
    share, apart = 0.8, 0.5 * first.extent * np.where(first.flip.mean() > 0, 1.0, -1.0) * 0.8
    return (
        replace(first, extent=first.extent * share, x=first.x + apart),
        replace(second, extent=second.extent * share, x=second.x - apart, y=second.y - 0.06, frame=second.frame + 17.0),
    )


def chase(
    first: Factors, prey: Factors, track: Track, aspect: float, rng: np.random.Generator
) -> tuple[Track, list[Track]]:
    """The track of a subject that runs after others, and theirs: smaller, ahead of it, flying up and down or bounding.

    Both stay in the view longer than one alone would.
    """
    way = -1.0 if first.direction == "left" else 1.0
    t, one = np.linspace(0.0, 1.0, len(track.x)), np.ones_like(track.x)
    middle = track.x.mean()
    track = replace(track, extent=0.84 * track.extent, x=middle + 0.62 * (track.x - middle) - 0.34 * way * aspect)
    flies = prey.row.kind in ("flyer", "swimmer")
    tracks = []
    for k in range(first.chased):
        extent = track.extent * (0.46 if flies else 0.5) * rng.uniform(0.9, 1.1)
        phase = rng.uniform(0, 2 * np.pi)
        ahead = 0.5 * track.extent + 0.6 * extent + 0.08 + 0.07 * np.sin(5.0 * t + phase) + 0.24 * k
        ground = track.y + track.height
        if flies:
            flutter = 0.09 * np.sin(2 * np.pi * 2.2 * t + phase) + 0.05 * np.sin(2 * np.pi * 3.7 * t)
            up = track.extent * (0.62 + 0.4 * k) + flutter
            shadow = up if prey.row.kind == "flyer" else track.height
        else:
            up = 0.12 * np.abs(np.sin(6 * np.pi * t + phase)) + 0.04 * k
            shadow = up
        angle = way * 160.0 * (2 * t - 1) if prey.row.kind == "ball" else 8.0 * np.sin(2 * np.pi * 2.2 * t + phase)
        flip = {"right": way, "left": -way, "front": 1.0}[prey.row.facing] * one
        frame = rng.uniform(0, 48) + 1.8 * FPS * 2.0 * t
        x = track.x + way * ahead
        tracks.append(Track(x, ground - up, shadow, extent, angle, one, flip, frame))
    return track, tracks


def _gait(
    factors: Factors, kind: str, t: np.ndarray, pace: float, way: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lift, angle, stretch) of travelling: runners bound and lean, boats rock, vehicles hum, walkers sway a little."""
    zero, one = np.zeros_like(t), np.ones_like(t)
    runs = factors.motion == "run"
    if kind in ("boat", "paddler"):
        return 0.02 * np.sin(4 * np.pi * t), (3.0 + 2.0 * runs) * np.sin(3.2 * np.pi * t), one
    if kind == "head":  # hops along
        hops = (5 if runs else 4) * np.pi * t * min(pace, 1.2)
        return 0.16 * np.abs(np.sin(hops)), 4.0 * np.sin(hops), 1.0 + 0.06 * np.cos(2 * hops + np.pi)
    if kind in ("vehicle", "cycle", "skier"):
        return 0.008 * np.abs(np.sin(14 * np.pi * t)), zero, one
    if kind == "ball":
        return 0.0 * t, way * (2 * t - 1) * (250.0 if runs else 160.0) * pace, one
    if kind in ("walker", "person", "dancer", "child") and runs:
        steps = 5 * np.pi * t * pace
        return 0.1 * np.abs(np.sin(steps)), way * (5.0 + 5.0 * np.sin(2 * steps)), 1.0 + 0.05 * np.cos(2 * steps)
    if kind in ("walker", "person", "dancer", "child"):
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
