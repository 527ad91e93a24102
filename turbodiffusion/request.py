"""What a user may ask for (`Request`, checked once and used by every front end), what is reported while it is made
(`Progress`), and what comes back (`Result`).

A resolved request is complete: it is stored inside the video that it made and makes the same one again on the same
device.
"""

import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from turbodiffusion.config import ATTENTION_KINDS, LINEAR_KINDS, SPARSE_ATTENTION, TextConfig
from turbodiffusion.errors import RequestError
from turbodiffusion.presets import ModelPreset, size_for
from turbodiffusion.schedules import rcm_times

MAX_SEED = 2**32 - 1  # fits every language's JSON and a file name
MAX_FLOW_STEPS = 200
SIDES = (64, 1920)  # pixels
WAN_FRAMES = (33, 161)  # what Wan was trained for and what its users ask for
OWN_FRAMES = (5, 161)  # of a model that this package trained
SIDE_MULTIPLE = 16  # a latent pixel is 8 pixels and a token is 2 of them, in every Wan model

# Wan's own default (`sample_neg_prompt` of its release): a list of flaws.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Request:
    """One video to make. None and "auto" mean the model's own default; seed 0 draws one.

    Building one checks the types of its fields, `resolve` all the rest; both raise RequestError, one clear line.
    """

    prompt: str
    negative_prompt: str | None = None  # the undistilled teacher's only
    image: str | Path | None = None  # path of the first frame, for image to video
    model: str | None = None  # None: the model that the pipeline holds
    resolution: str | None = None  # a name that the model knows ("480p") or "WxH"
    aspect_ratio: str | None = None  # of a named resolution
    num_frames: int | None = None
    num_steps: int | None = None
    seed: int = 0
    sigma_max: float | None = None  # distilled models' first noise level
    guidance: float | None = None  # the teacher's
    shift: float | None = None  # of the teacher's times
    attention_type: str = "auto"
    sla_topk: float | None = None
    quant_linear: str = "auto"
    boundary: float | None = None  # flow time at which the low-noise expert takes over
    ode: bool = False
    adaptive_resolution: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.image, Path):
            object.__setattr__(self, "image", str(self.image))
        for name, hint in get_type_hints(type(self)).items():
            kinds, value = get_args(hint) or (hint,), getattr(self, name)
            if float in kinds and type(value) is int:
                object.__setattr__(self, name, float(value))
            elif type(value) not in kinds:
                raise RequestError(f"{name}: {_KIND_NAMES[kinds[0]]} is needed, not {value!r}")
            elif isinstance(value, float) and not math.isfinite(value):
                raise RequestError(f"{name}: a finite number is needed, not {value}")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finished video; of a resolved request only, and without `adaptive_resolution`."""
        assert self.resolution is not None
        return size_for(self.resolution, self.aspect_ratio or "")

    def resolve(self, preset: ModelPreset) -> "Request":
        """This request for one model, every field checked and filled; fields that the model does not use are None.

        Seed 0 becomes a drawn one. quant_linear "auto" and "on" stay: the pipeline knows the GPU. Resolving twice
        changes nothing. RequestError is one line with the nearest thing that works.
        """
        if not self.prompt.strip():
            raise RequestError('the prompt is empty; say what to see, as "an orange cat runs through a garden"')
        if preset.task == "i2v" and self.image is None:
            raise RequestError(f"{preset.name} starts from an image: give one with image, or take a t2v model")
        if preset.task == "t2v" and self.image is not None:
            raise RequestError(f"{preset.name} makes videos from text alone: leave the image out, or take an i2v model")
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed {self.seed}: 0 (draw one) to {MAX_SEED}")
        changes: dict[str, Any] = {
            "model": self.model or preset.name,
            "num_frames": _frames(self.num_frames, preset),
            "seed": self.seed or 1 + secrets.randbelow(MAX_SEED),
            **_size(self, preset),
            **_sampling(self, preset),
            **_kinds(self, preset),
        }
        if preset.experts == 2:
            changes["boundary"] = _boundary(self.boundary, preset)
        for name in self._unused(preset):
            changes[name] = False if name in _SWITCHES else None
        return replace(self, **changes)

    def notices(self, preset: ModelPreset) -> tuple[str, ...]:
        """What was asked for and this model does not use, one sentence each."""
        unused = self._unused(preset).items()
        return tuple(f"{name} is ignored: {why}" for name, why in unused if getattr(self, name) not in (None, False))

    def _unused(self, preset: ModelPreset) -> dict[str, str]:
        """The fields without a meaning for a model, and why."""
        unused: dict[str, str] = {}
        if preset.sampler == "rcm":
            reason = f"{preset.name} is distilled and runs without guidance"
            unused |= dict.fromkeys(("negative_prompt", "guidance", "shift"), reason)
        else:
            unused |= dict.fromkeys(("sigma_max", "ode"), f"{preset.name} is not distilled and follows the flow ODE")
        if preset.experts == 1:
            unused["boundary"] = f"{preset.name} has one network for all noise levels"
        if preset.task == "t2v":
            unused["adaptive_resolution"] = f"{preset.name} starts from no image whose shape could be followed"
        attention = _attention(self.attention_type, preset)
        if attention not in SPARSE_ATTENTION:
            unused["sla_topk"] = f"attention {attention!r} looks at every block"
        return unused

    def to_json(self) -> str:
        """Every field, in one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> "Request":
        """Back from `to_json`, or from what a JSON parser made of it. RequestError names unknown fields."""
        try:
            values = text if isinstance(text, Mapping) else json.loads(text)
        except ValueError as error:
            raise RequestError(f"not a request in JSON: {error}") from None
        if not isinstance(values, Mapping):
            raise RequestError(f"not a request in JSON: an object is needed, not {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise RequestError(f"unknown field {', '.join(unknown)}; a request has {', '.join(known)}")
        if "prompt" not in values:
            raise RequestError("prompt is missing")
        return cls(**values)


_SWITCHES = ("ode", "adaptive_resolution")


def made_size(width: int, height: int) -> tuple[int, int]:
    """The size that a model makes for a wanted one: sides at the next multiple of 16; the rest is cut at the centre."""
    return width + -width % SIDE_MULTIPLE, height + -height % SIDE_MULTIPLE


def _frames(num_frames: int | None, preset: ModelPreset) -> int:
    count = preset.num_frames if num_frames is None else num_frames
    low, high = WAN_FRAMES if preset.published else OWN_FRAMES
    step = preset.vae.time_factor
    nearest = min(max(round((count - 1) / step) * step + 1, low), high)
    if count != nearest:
        raise RequestError(f"{count} frames: {preset.name} makes {low} to {high}, {step}k+1; {nearest} is the nearest")
    return count


def _size(request: Request, preset: ModelPreset) -> dict[str, Any]:
    resolution = request.resolution or preset.resolution
    named = "x" not in resolution.lower()
    if not named and request.aspect_ratio:
        raise RequestError(
            f"aspect_ratio {request.aspect_ratio} goes with a named resolution (480p, 720p); {resolution} is a size: "
            "give the one you want as WxH"
        )
    aspect_ratio = request.aspect_ratio or preset.aspect_ratio if named else None
    width, height = size_for(resolution, aspect_ratio or "")
    low, high = SIDES
    if not (low <= width <= high and low <= height <= high):
        nearest = f"{min(max(width, low), high)}x{min(max(height, low), high)}"
        what = "small" if min(width, height) < low else "large"
        raise RequestError(f"{resolution} is too {what}: sides are {low} to {high} pixels; {nearest} is the nearest")
    return {"resolution": resolution.lower(), "aspect_ratio": aspect_ratio}


def _sampling(request: Request, preset: ModelPreset) -> dict[str, Any]:
    steps = preset.num_steps if request.num_steps is None else request.num_steps
    if preset.sampler == "rcm":
        sigma_max = preset.sigma_max if request.sigma_max is None else request.sigma_max
        assert sigma_max is not None
        try:
            rcm_times(steps, sigma_max)
        except ValueError as error:
            raise RequestError(f"{preset.name}: {error}") from None
        return {"num_steps": steps, "sigma_max": sigma_max}
    if not 1 <= steps <= MAX_FLOW_STEPS:
        raise RequestError(
            f"num_steps {steps}: {preset.name} takes 1 to {MAX_FLOW_STEPS}, {preset.num_steps} by default"
        )
    shift = preset.shift if request.shift is None else request.shift
    guidance = preset.guidance if request.guidance is None else request.guidance
    assert shift is not None and guidance is not None
    if not 0.1 <= shift <= 100:
        raise RequestError(f"shift {shift:g}: 0.1 to 100, {preset.shift:g} by default")
    if not 0 <= guidance <= 100:
        raise RequestError(f"guidance {guidance:g}: 0 to 100, {preset.guidance:g} by default; 1 is none")
    negative = request.negative_prompt
    if negative is None:
        # A model with its own small text encoder learned guidance from captions left out.
        negative = WAN_NEGATIVE_PROMPT if preset.text == TextConfig() else ""
    return {"num_steps": steps, "shift": shift, "guidance": guidance, "negative_prompt": negative}


def _attention(kind: str, preset: ModelPreset) -> str:
    if kind != "auto" and kind not in ATTENTION_KINDS:
        raise RequestError(f"attention_type {kind!r}: there are auto, {', '.join(ATTENTION_KINDS)}")
    return preset.transformer.attention_type if kind == "auto" else kind


def _kinds(request: Request, preset: ModelPreset) -> dict[str, Any]:
    topk = preset.transformer.sla_topk if request.sla_topk is None else request.sla_topk
    if not 0 < topk <= 1:
        raise RequestError(f"sla_topk {topk:g}: the part of the blocks that is kept, over 0 and up to 1, as 0.1")
    if request.quant_linear not in ("auto", "on", *LINEAR_KINDS):
        raise RequestError(f"quant_linear {request.quant_linear!r}: there are auto, on, {', '.join(LINEAR_KINDS)}")
    return {"attention_type": _attention(request.attention_type, preset), "sla_topk": topk}


def _boundary(boundary: float | None, preset: ModelPreset) -> float | None:
    value = preset.boundary if boundary is None else boundary
    if value is None or not 0.5 <= value <= 1:
        raise RequestError(
            f"boundary {value}: the time of the low-noise network is 0.5 to 1, {preset.boundary} by default"
        )
    return value


@dataclass(frozen=True)
class Progress:
    """`step` of `total` steps of a stage (load, text, image, diffusion, decode, encode) are done.

    seconds_left: of this stage, measured from its own steps; None until the first is done.
    """

    stage: str
    step: int
    total: int
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]
