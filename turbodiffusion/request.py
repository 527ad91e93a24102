"""What a user may ask for (`Request`, checked once and used by every front end) and what is reported while it is made
(`Progress`).

A resolved request is complete: it is stored inside the video that it made and makes the same one again on the same
device. Its fields describe themselves: `field_specs` is what the command line's options are made of.
"""

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from turbodiffusion.config import ATTENTION_KINDS, LINEAR_KINDS, SPARSE_ATTENTION, TextConfig
from turbodiffusion.errors import RequestError
from turbodiffusion.presets import MODELS, SAMPLER_FIELDS, SIZES, ModelPreset, size_for
from turbodiffusion.schedules import RCM_MID_ANGLES
from turbodiffusion.texts import Text, text

MAX_SEED = 2**32 - 1  # fits every language's JSON and a file name
MAX_FLOW_STEPS = 200
MAX_RCM_STEPS = len(RCM_MID_ANGLES) + 1
MIN_SIGMA_MAX = math.tan(RCM_MID_ANGLES[0])  # the noise level of the second step: the first is above it
MAX_SIGMA_MAX = 10_000.0
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
_HALVES = re.compile("[\ud800-\udfff]")  # how Python carries bytes that are no text
# What people type who know the options by other words.
_SAMPLER_WORDS = {"distilled": "rcm", "turbo": "rcm", "lcm": "rcm", "teacher": "flow", "unipc": "flow", "euler": "flow"}
_QUANT_WORDS = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "none": "off", "0": "off"}


@dataclass(frozen=True)
class FieldSpec:
    """What a front end says of one field: an option's help, a form's control, a schema's entry.

    group: "what" to make, "how" to make it, where to "run" it. applies: "all" models, or "distilled", "teacher",
    "two_experts", "teacher_experts" (both), "image" (image to video), "sparse" (sparse attention). low and high are
    the widest that any model takes; `Request.resolve` checks a model's own.
    """

    name: str
    type: type  # str, int, float or bool
    default: Any  # dataclasses.MISSING: it must be given
    help: Text
    group: str
    applies: str = "all"
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    placeholder: str = ""  # what stands for a value in a help line or an empty form: FILE, WxH

    @property
    def model_defaults(self) -> dict[str, Any]:
        """The default of each named model that has one, where the request's own is the model's."""
        values = {name: getattr(preset, self.name, None) for name, preset in MODELS.items()}
        return {name: value for name, value in values.items() if value is not None}


def about(help: str, group: str, applies: str = "all", **rest: Any) -> dict[str, Any]:
    """Return the metadata of a field: the code of its help, and what FieldSpec says of `rest`."""
    return {"help": text(help), "group": group, "applies": applies, **rest}


@dataclass(frozen=True)
class Request:
    """One video to make. None and "auto" mean the model's own default; seed 0 draws one.

    Building one checks the types of its fields and that there is a prompt, `resolve` all the rest; both raise
    RequestError, one clear line.
    attention_type "dense" becomes "original", its name in files.
    """

    prompt: str = field(metadata=about("field.prompt", "what"))
    negative_prompt: str | None = field(default=None, metadata=about("field.negative_prompt", "what", "teacher"))
    image: str | Path | Any | None = field(
        default=None, metadata=about("field.image", "what", "image", placeholder="FILE")
    )  # path of the first frame, or a picture of PIL's or an array [H, W, 3], which becomes a file
    model: str | None = field(
        default=None, metadata=about("field.model", "what", placeholder="NAME")
    )  # None: the model that the pipeline holds
    resolution: str | None = field(
        default=None, metadata=about("field.resolution", "what", placeholder="SIZE")
    )  # a name that the model knows ("480p") or "WxH"
    aspect_ratio: str | None = field(
        default=None, metadata=about("field.aspect_ratio", "what", choices=tuple(SIZES["480p"]), placeholder="W:H")
    )  # of a named resolution
    num_frames: int | None = field(
        default=None, metadata=about("field.num_frames", "what", low=OWN_FRAMES[0], high=OWN_FRAMES[1])
    )
    num_steps: int | None = field(default=None, metadata=about("field.num_steps", "how", low=1, high=MAX_FLOW_STEPS))
    sampler: str | None = field(
        default=None, metadata=about("field.sampler", "how", choices=tuple(SAMPLER_FIELDS))
    )  # None: as the model was trained, or as its files let one guess
    seed: int = field(default=0, metadata=about("field.seed", "what", low=0, high=MAX_SEED))
    sigma_max: float | None = field(
        default=None, metadata=about("field.sigma_max", "how", "distilled", low=0, high=MAX_SIGMA_MAX)
    )  # distilled models' first noise level
    guidance: float | None = field(default=None, metadata=about("field.guidance", "how", "teacher", low=0, high=100))
    guidance_low: float | None = field(
        default=None, metadata=about("field.guidance_low", "how", "teacher_experts", low=0, high=100)
    )  # of the low-noise expert; `guidance` is the high-noise one's
    shift: float | None = field(default=None, metadata=about("field.shift", "how", "teacher", low=0.1, high=100))
    attention_type: str = field(
        default="auto", metadata=about("field.attention_type", "how", choices=("auto", *ATTENTION_KINDS))
    )
    sla_topk: float | None = field(default=None, metadata=about("field.sla_topk", "how", "sparse", low=0, high=1))
    quant_linear: str = field(
        default="auto", metadata=about("field.quant_linear", "how", choices=("auto", "on", *LINEAR_KINDS))
    )
    boundary: float | None = field(
        default=None, metadata=about("field.boundary", "how", "two_experts", low=0.5, high=1)
    )  # flow time at which the low-noise expert takes over
    ode: bool = field(default=False, metadata=about("field.ode", "how", "distilled"))
    adaptive_resolution: bool = field(default=False, metadata=about("field.adaptive_resolution", "what", "image"))

    def __post_init__(self) -> None:
        if isinstance(self.image, Path):
            object.__setattr__(self, "image", str(self.image))
        for spec in field_specs(Request):
            self._check_type(spec, getattr(self, spec.name))
        for name in ("prompt", "negative_prompt"):
            if _HALVES.search(getattr(self, name) or ""):
                raise RequestError("request.not_text", field=name)
        if not self.prompt.strip():
            raise RequestError("request.prompt_empty")
        if self.attention_type == "dense":
            object.__setattr__(self, "attention_type", "original")

    def _check_type(self, spec: FieldSpec, value: Any) -> None:
        if value is None and spec.default is None:
            return
        if spec.name == "image" and in_memory(value):
            return
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            value = value.item()  # np.int64(42) is 42
            object.__setattr__(self, spec.name, value)
        if isinstance(value, int) and abs(value) >= 2**63:
            raise RequestError("request.number_too_large", field=spec.name)
        if spec.type is float and type(value) is int:
            object.__setattr__(self, spec.name, float(value))
        elif type(value) is not spec.type:
            known = text(f"type.{spec.type.__name__}")
            raise RequestError("request.type", field=spec.name, type=known, value=_shortened(value))
        elif isinstance(value, float) and not math.isfinite(value):
            raise RequestError("request.not_finite", field=spec.name, value=value)
        elif value == "" and spec.name in ("image", "model", "resolution", "aspect_ratio"):
            raise RequestError("request.empty", field=spec.name)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finished video; of a resolved request only, and without `adaptive_resolution`."""
        assert self.resolution is not None
        return size_for(self.resolution, self.aspect_ratio or "")

    @property
    def guided(self) -> bool:
        """Whether some step takes two forwards, for the prompt and the negative prompt; of a resolved request."""
        return any(scale not in (None, 1) for scale in (self.guidance, self.guidance_low))

    def resolve(self, preset: ModelPreset) -> "Request":
        """This request for one model, every field checked and filled; fields that the model does not use are None.

        Seed 0 becomes a drawn one. quant_linear "auto" and "on" stay: the pipeline knows the GPU. Resolving twice
        changes nothing. RequestError is one line with the nearest thing that works.
        """
        preset = self._with_sampler(preset)
        if preset.task == "i2v" and self.image is None:
            raise RequestError("request.image_missing", model=preset.name)
        if preset.task == "t2v" and self.image is not None:
            raise RequestError("request.image_unused", model=preset.name)
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError("request.seed", value=self.seed, high=MAX_SEED)
        changes: dict[str, Any] = {
            "model": self.model or preset.name,
            "num_frames": _frames(self.num_frames, preset),
            "sampler": preset.sampler,
            "seed": self.seed or 1 + secrets.randbelow(MAX_SEED),
            **_size(self, preset),
            **_sampling(self, preset),
            **_kinds(self, preset),
        }
        if preset.experts == 2:
            changes["boundary"] = _boundary(self.boundary, preset)
        for spec, _ in self._unused(preset):
            changes[spec.name] = spec.default
        return replace(self, **changes)

    def notices(self, preset: ModelPreset) -> tuple[Text, ...]:
        """Return what was asked for and this model does not use, and what is assumed of it, one sentence each."""
        assumed = [told for name, told in preset.assumed if getattr(self, name, None) is None]
        preset = self._with_sampler(preset)
        unused = [
            text("request.ignored", field=spec.name, reason=reason)
            for spec, reason in self._unused(preset)
            if getattr(self, spec.name) != spec.default
        ]
        return (*assumed, *unused, *filter(None, [_not_named(self.resolution), self._unguided(preset)]))

    def _unguided(self, preset: ModelPreset) -> Text | None:
        """Tell who gives a negative prompt that guidance 1 has no use for it."""
        guidance = preset.guidance if self.guidance is None else self.guidance
        if preset.sampler == "rcm" or self.negative_prompt in (None, "", WAN_NEGATIVE_PROMPT) or guidance != 1:
            return None
        default = preset.guidance if preset.guidance not in (None, 1) else 5.0
        reason = text("request.no_guidance", default=default)
        return text("request.ignored", field="negative_prompt", reason=reason)

    def _with_sampler(self, preset: ModelPreset) -> ModelPreset:
        if self.sampler is not None and self.sampler not in SAMPLER_FIELDS:
            raise unknown_choice("sampler", self.sampler, tuple(SAMPLER_FIELDS), _SAMPLER_WORDS)
        return preset.with_sampler(self.sampler)

    def _unused(self, preset: ModelPreset) -> list[tuple[FieldSpec, Text]]:
        """Return the fields without a meaning for a model, and why."""
        reasons: dict[str, Text] = {}
        if preset.sampler == "rcm":
            reasons["teacher"] = text("request.distilled", model=preset.name)
        else:
            reasons["distilled"] = text("request.not_distilled", model=preset.name)
        if preset.experts == 1:
            reasons["two_experts"] = text("request.one_expert", model=preset.name)
        if either := reasons.get("teacher") or reasons.get("two_experts"):
            reasons["teacher_experts"] = either
        if preset.task == "t2v":
            reasons["image"] = text("request.no_image", model=preset.name)
        attention = _attention(self.attention_type, preset)
        if attention not in SPARSE_ATTENTION:
            reasons["sparse"] = text("request.not_sparse", attention=attention)
        return [(spec, reasons[spec.applies]) for spec in field_specs(Request) if spec.applies in reasons]

    def to_json(self) -> str:
        """Every field, in one line. Raises RequestError for an image in memory, which has no place in it."""
        if in_memory(self.image):
            raise RequestError("request.image_in_memory")
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> "Request":
        """Back from `to_json`, or from what a JSON parser made of it. RequestError names unknown fields."""
        try:
            values = source if isinstance(source, Mapping) else json.loads(source)
        except (ValueError, RecursionError) as error:
            raise RequestError("request.not_json", reason=error) from None
        if not isinstance(values, Mapping):
            raise RequestError("request.not_object", type=type(values).__name__)
        known = [f.name for f in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise RequestError("request.unknown_field", fields=unknown, known=known)
        if "prompt" not in values:
            raise RequestError("request.prompt_missing")
        return cls(**values)


def in_memory(image: Any) -> bool:
    """Whether an image is a picture of PIL's or an array, not the path of a file."""
    return hasattr(image, "__array_interface__") or hasattr(image, "__array__")


def _shortened(value: Any) -> Any:
    """A value as an error shows it; one without end is cut."""
    try:
        words = repr(value)
    except Exception:  # whatever a foreign object's does
        return object.__repr__(value)
    return value if len(words) <= 200 else f"{words[:100]}..."


@cache
def field_specs(cls: type = Request) -> tuple[FieldSpec, ...]:
    """Return the specification of each field of a dataclass whose fields carry `about` as metadata."""
    hints = get_type_hints(cls)
    return tuple(
        FieldSpec(f.name, (get_args(hints[f.name]) or (hints[f.name],))[0], f.default, **f.metadata)
        for f in fields(cls)
    )


def made_size(width: int, height: int) -> tuple[int, int]:
    """The size that a model makes for a wanted one: sides at the next multiple of 16; the rest is cut at the centre."""
    return width + -width % SIDE_MULTIPLE, height + -height % SIDE_MULTIPLE


def _frames(num_frames: int | None, preset: ModelPreset) -> int:
    count = preset.num_frames if num_frames is None else num_frames
    low, high = WAN_FRAMES if preset.published else OWN_FRAMES
    step = preset.vae.time_factor
    nearest = min(max(round((count - 1) / step) * step + 1, low), high)
    if count != nearest:
        raise RequestError(
            "request.num_frames", value=count, model=preset.name, low=low, high=high, step=step, nearest=nearest
        )
    return count


def _size(request: Request, preset: ModelPreset) -> dict[str, Any]:
    resolution = request.resolution or preset.resolution
    named = "x" not in resolution.lower()
    if not named and request.aspect_ratio:
        raise RequestError("request.aspect_ratio", value=request.aspect_ratio, resolution=resolution)
    aspect_ratio = request.aspect_ratio or preset.aspect_ratio if named else None
    width, height = size_for(resolution, aspect_ratio or "")
    low, high = SIDES
    if not (low <= width <= high and low <= height <= high):
        nearest = f"{min(max(width, low), high)}x{min(max(height, low), high)}"
        code = "request.too_small" if min(width, height) < low else "request.too_large"
        raise RequestError(code, resolution=resolution, low=low, high=high, nearest=nearest)
    return {"resolution": resolution.lower(), "aspect_ratio": aspect_ratio}


def _not_named(resolution: str | None) -> Text | None:
    """Tell who asks for 854x480 what the models call 480p; None for a size that is not nearly a named one."""
    if resolution is None or "x" not in resolution.lower():
        return None
    width, height = size_for(resolution, "")
    for name, sizes in SIZES.items():
        for aspect_ratio, (w, h) in sizes.items():
            near = max(abs(width - w) / w, abs(height - h) / h)
            if 0 < near <= 0.03:
                made = "x".join(map(str, made_size(width, height)))
                return text(
                    "request.not_named",
                    size=resolution,
                    name=name,
                    aspect_ratio=aspect_ratio,
                    named_size=f"{w}x{h}",
                    made=made,
                )
    return None


def _sampling(request: Request, preset: ModelPreset) -> dict[str, Any]:
    steps = preset.num_steps if request.num_steps is None else request.num_steps
    if preset.sampler == "rcm":
        sigma_max = preset.sigma_max if request.sigma_max is None else request.sigma_max
        assert sigma_max is not None
        if not 1 <= steps <= MAX_RCM_STEPS:
            raise RequestError("request.num_steps_distilled", value=steps, model=preset.name, high=MAX_RCM_STEPS)
        low, default = MIN_SIGMA_MAX if steps > 1 else 0.0, preset.sigma_max
        if sigma_max <= low:
            raise RequestError("request.sigma_max_small", value=sigma_max, model=preset.name, low=low, default=default)
        if sigma_max > MAX_SIGMA_MAX:
            high = MAX_SIGMA_MAX
            raise RequestError(
                "request.sigma_max_large", value=sigma_max, model=preset.name, high=high, default=default
            )
        return {"num_steps": steps, "sigma_max": sigma_max}
    if not 1 <= steps <= MAX_FLOW_STEPS:
        raise RequestError(
            "request.num_steps", value=steps, model=preset.name, high=MAX_FLOW_STEPS, default=preset.num_steps
        )
    shift = preset.shift if request.shift is None else request.shift
    guidance = preset.guidance if request.guidance is None else request.guidance
    assert shift is not None and guidance is not None
    if not 0.1 <= shift <= 100:
        raise RequestError("request.shift", value=shift, default=preset.shift)
    guided = {"guidance": guidance}
    if preset.experts == 2:
        guided["guidance_low"] = _guidance_low(request, preset, guidance)
    for name, value in guided.items():
        if not 0 <= value <= 100:
            raise RequestError("request.guidance", field=name, value=value, default=preset.guidance)
    negative = request.negative_prompt
    if negative is None:
        # A model with its own small text encoder learned guidance from captions left out.
        negative = WAN_NEGATIVE_PROMPT if preset.text == TextConfig() else ""
    return {"num_steps": steps, "shift": shift, **guided, "negative_prompt": negative}


def _guidance_low(request: Request, preset: ModelPreset, guidance: float) -> float:
    """Of the low-noise expert: what is given, else what is given for the other, else the model's own."""
    if request.guidance_low is not None:
        return request.guidance_low
    return guidance if request.guidance is not None or preset.guidance_low is None else preset.guidance_low


def _attention(kind: str, preset: ModelPreset) -> str:
    if kind != "auto" and kind not in ATTENTION_KINDS:
        raise unknown_choice("attention_type", kind, ("auto", *ATTENTION_KINDS))
    return preset.transformer.attention_type if kind == "auto" else kind


def _kinds(request: Request, preset: ModelPreset) -> dict[str, Any]:
    topk = preset.transformer.sla_topk if request.sla_topk is None else request.sla_topk
    if not 0 < topk <= 1:
        raise RequestError("request.sla_topk", value=topk)
    known = ("auto", "on", *LINEAR_KINDS)
    if request.quant_linear not in known:
        raise unknown_choice("quant_linear", request.quant_linear, known, _QUANT_WORDS)
    return {"attention_type": _attention(request.attention_type, preset), "sla_topk": topk}


def unknown_choice(
    name: str, value: str, known: Sequence[str], other_words: Mapping[str, str] | None = None
) -> RequestError:
    """Return the error of a word that is none of `known`: it names the nearest, or what `other_words` has for it."""
    near = (other_words or {}).get(value.lower()) or next(iter(get_close_matches(value.lower(), known, n=1)), None)
    if near is None:
        return RequestError("request.choice", field=name, value=value, choices=known)
    return RequestError("request.choice_near", field=name, value=value, choices=known, near=near)


def _boundary(boundary: float | None, preset: ModelPreset) -> float | None:
    value = preset.boundary if boundary is None else boundary
    if value is None or not 0.5 <= value <= 1:
        raise RequestError("request.boundary", value=value, default=preset.boundary)
    return value


@dataclass(frozen=True)
class Progress:
    """`step` of `total` steps of a stage are done.

    stage: load, download, text_encode, image_encode, denoise, vae_decode or mp4_encode. seconds_left: of this stage,
    measured from its own steps; None until the first is done.
    """

    stage: str
    step: int
    total: int
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]
