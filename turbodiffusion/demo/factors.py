"""What a clip of the demo world is made of: the factors, their words' keys, the draw, and the combinations held out
for evaluation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from turbodiffusion.demo.scenes import SCENES
from turbodiffusion.demo.subjects import BY_NAME, CHASERS, PREY, SUBJECTS, Subject

COLOURS: tuple[str, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "white",
    "black",
    "brown",
    "gray",
)
NATURAL = "natural"
MOTIONS: tuple[str, ...] = ("walk", "run", "jump", "fly", "fall", "spin", "circle", "approach", "recede", "still")
TRAVELS = ("walk", "run", "fly")
SPEEDS: tuple[str, ...] = ("", "slow", "fast")
SIZES: tuple[str, ...] = ("", "small", "big")
LIGHTS: tuple[str, ...] = ("sunny", "sunset", "night", "fog", "rain", "snow", "petals", "leaves")
CAMERAS: tuple[str, ...] = ("", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")
STYLES: tuple[str, ...] = ("", "pixel", "sketch", "black and white")
GREY_STYLES = ("sketch", "black and white")  # no colour can be told, and a sunset cannot be seen
WOODED = ("garden", "meadow", "forest", "city", "hill", "cherry")
HELD_OUT_SHARE = 0.04  # of the combinations subject x colour x motion


# What people ask for first, drawn as often as two further subjects.
WISHED = 0.05
WISHES: tuple[dict[str, Any], ...] = (
    {"subject": "woman", "motion": "walk", "scene": "neon", "light": "", "style": ""},
    {"subject": "cat", "motion": "run", "scene": "garden", "light": "sunny", "style": "", "second": "butterfly"},
    {"subject": "girl", "motion": "still", "scene": "cherry", "light": "petals", "style": "", "camera": "zoom in"},
    {"subject": "tree", "motion": "still", "scene": "hill", "light": "sunny", "style": ""},
)


@dataclass(frozen=True)
class Factors:
    """One clip in words. "" stands for nothing special (normal speed, normal size, a still camera, the 3D cartoon
    style).

    subject: a name of the table; colour: "natural" or a word of COLOURS; direction: "left", "right", "up", "down"
    where the motion has one, else "". light: "" only where the scene has none (space, under water). seed: everything
    else (which garden, where, phase).
    second: another subject that does the same beside it, in its own paint, or ""; chased: how many of the second are
    there, small, fleeing from the first, 0 where they go side by side.
    """

    subject: str
    colour: str
    motion: str
    direction: str
    speed: str
    size: str
    scene: str
    light: str
    camera: str
    style: str
    seed: int
    second: str = ""
    chased: int = 0

    @property
    def row(self) -> Subject:
        return BY_NAME[self.subject]

    @property
    def manner(self) -> str:
        """How the subject moves here: its kind, but a walker at sea paddles."""
        return "paddler" if self.scene == "sea" and self.row.kind == "walker" else self.row.kind

    @property
    def colour_word(self) -> str:
        """The colour that a person would name; "" for a subject of several colours in its own paint or a grey style."""
        if self.style in GREY_STYLES:
            return ""
        return self.row.colour if self.colour == NATURAL else self.colour


def is_held_out(factors: Factors) -> bool:
    """Whether this subject x colour x motion is kept out of training. Fixed by a hash of the three words: the same
    everywhere, for ever."""
    key = f"{factors.subject}|{factors.colour_word}|{factors.motion}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < HELD_OUT_SHARE * 2**64


def sample_factors(
    rng: np.random.Generator, count: int, held_out: bool = False, subjects: Sequence[Subject] = SUBJECTS
) -> list[Factors]:
    """`count` random clips of `subjects`, none of a held-out combination, or with `held_out` all of them of one (and
    then with one subject only, so that what a clip shows can be told)."""
    chosen: list[Factors] = []
    while len(chosen) < count:
        factors = _draw(rng, subjects)
        if is_held_out(factors) == held_out and not (held_out and factors.second):
            chosen.append(factors)
    return chosen


def _draw(rng: np.random.Generator, subjects: Sequence[Subject]) -> Factors:
    wishes = [wish for wish in WISHES if BY_NAME[wish["subject"]] in subjects] if rng.random() < WISHED else []
    wish = wishes[int(rng.integers(len(wishes)))] if wishes else {}
    if wish.get("second", "") not in ("", *(row.name for row in subjects)):
        wish = {}
    factors = _draw_freely(rng, (BY_NAME[wish["subject"]],) if wish else subjects)
    if not wish:
        return factors
    direction = _pick(rng, tuple(way for way in directions(wish["motion"]) if way not in ("up", "down")))
    chased = 1 + int(rng.random() < 0.5) if "second" in wish else 0
    plain: dict[str, Any] = {
        "colour": NATURAL,
        "size": "",
        "second": "",
        "speed": "",
        "direction": direction,
        "chased": chased,
    }
    return replace(factors, **(plain | wish))


def _draw_freely(rng: np.random.Generator, subjects: Sequence[Subject]) -> Factors:
    subject = subjects[int(rng.integers(len(subjects)))]
    motion = _pick(rng, subject.motions)
    scene = _pick(rng, subject.habitat)
    colour, style, second, size, chased = NATURAL, "", "", "", 0
    if subject.paintable and rng.random() < 0.5:
        colour = _pick(rng, tuple(word for word in COLOURS if word != subject.colour))
    elif rng.random() < 0.16:
        style = _pick(rng, STYLES[1:])
    direction = _pick(rng, directions(motion))
    company = rng.random()
    if company < 0.06:
        others = (row for row in subjects if row.kind == subject.kind and row is not subject and scene in row.habitat)
        second = _pick(rng, tuple(row.name for row in others) or ("",))
    elif company < 0.2 and motion in CHASERS.get(subject.kind, ()) and direction in ("left", "right"):
        names = {row.name for row in subjects if scene in row.habitat and row is not subject}
        second = _pick(rng, tuple(name for name in PREY if name in names) or ("",))
        chased = (1 + int(rng.random() < 0.5)) * bool(second)
    elif motion not in ("approach", "recede") and rng.random() < 0.25:
        size = _pick(rng, ("small", "big"))
    return Factors(
        subject=subject.name,
        colour=colour,
        motion=motion,
        direction=direction,
        speed=_pick(rng, ("slow", "fast")) if motion in ("walk", "run", "fly", "jump") and rng.random() < 0.25 else "",
        size=size,
        scene=scene,
        light=_pick(rng, lights(style, scene)) if SCENES[scene].lights else "",
        camera=_pick(rng, CAMERAS[1:]) if motion not in ("approach", "recede") and rng.random() < 0.25 else "",
        style=style,
        seed=int(rng.integers(2**31)),
        second=second,
        chased=chased,
    )


def is_wished(factors: Factors) -> bool:
    """Whether a clip is one of WISHES."""
    return any(all(getattr(factors, key) == value for key, value in wish.items()) for wish in WISHES)


def lights(style: str, scene: str = "garden") -> tuple[str, ...]:
    """The lights that can be seen in a style and a scene, sunny most often.

    A sunset needs colours; drops, flakes and petals would be larger than lines and blocks. Petals and leaves fall where
    trees are near, petals most under cherry trees.
    """
    falling = ("rain", "snow", "petals", "leaves")
    hidden = {"sketch": ("sunset", *falling), "black and white": ("sunset", "petals", "leaves"), "pixel": falling}
    barred = set(hidden.get(style, ())) | (set() if scene in WOODED else {"petals", "leaves"})
    often = ("sunny", "sunny", "sunny", *(("petals",) * 5 if scene == "cherry" else ()))
    return tuple(light for light in (*often, *LIGHTS) if light not in barred)


def directions(motion: str) -> tuple[str, ...]:
    """The directions that a motion can have; ("",) if it has none."""
    if motion in ("walk", "run"):
        return ("left", "right")
    if motion == "fly":
        return ("left", "left", "right", "right", "up", "down")
    return ("",)


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


# The questions that the probe of training/metrics.py answers about a clip, and their possible answers.
CLASSES: dict[str, tuple[str, ...]] = {
    "subject": tuple(subject.name for subject in SUBJECTS),
    "colour": (NATURAL, *COLOURS),
    "motion": (
        *MOTIONS[2:3],
        *MOTIONS[4:],
        *(f"{go} {way}" for go in ("walk", "run") for way in ("left", "right")),
        *(f"fly {way}" for way in ("left", "right", "up", "down")),
    ),
    "scene": tuple(SCENES),
    "light": ("", *LIGHTS),
    "camera": CAMERAS,
}


def labels(factors: Factors) -> dict[str, int]:
    """The right answers: question -> index into CLASSES[question]."""
    answers = {
        "subject": factors.subject,
        "colour": factors.colour_word or NATURAL,
        "motion": f"{factors.motion} {factors.direction}".strip(),
        "scene": factors.scene,
        "light": factors.light,
        "camera": factors.camera,
    }
    return {question: CLASSES[question].index(answer) for question, answer in answers.items()}
