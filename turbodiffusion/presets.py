"""The models that have a name, at their real sizes and with the defaults they are run with; recipes; video sizes.

Sources: the Wan reports (arXiv 2503.20314) and TurboDiffusion (arXiv 2512.16093) with the files published beside them.
The demo model is inside this package; its folder's model.json is the truth about it once it is loaded.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.errors import RequestError
from turbodiffusion.memory.weights import text_bytes, transformer_bytes, vae_bytes
from turbodiffusion.texts import Text, text

# width, height
SIZES = {
    "480p": {"16:9": (832, 480), "9:16": (480, 832), "4:3": (640, 480), "3:4": (480, 640), "1:1": (640, 640)},
    "720p": {"16:9": (1280, 720), "9:16": (720, 1280), "4:3": (960, 720), "3:4": (720, 960), "1:1": (960, 960)},
}

SAMPLER_FIELDS = {"rcm": ("sigma_max",), "flow": ("shift", "guidance")}  # what each sampler cannot do without

WAN_REPO = "Wan-AI/Wan2.1-T2V-1.3B"  # VAE, text encoder and tokenizer are the same for all Wan models here
VAE_PATH = "Wan2.1_VAE.pth"
TEXT_PATH = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_PATH = "google/umt5-xxl/spiece.model"
TOKENIZER_BYTES = 4_500_000  # the one size that no configuration gives


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository: `repo` "owner/name", `path` inside it, `role` in the model, `bytes` its size."""

    repo: str
    path: str
    role: str
    bytes: int


@dataclass(frozen=True)
class ModelPreset:
    """A model by name, with what a request takes from it where it says nothing. None: the model has no such thing.

    Attention kind, topk and linears are those of `transformer`. Raises ValueError for fields that exclude each other.
    """

    name: str
    title: str
    file_name: str  # in the names of videos
    task: str  # "t2v" | "i2v"
    transformer: WanConfig
    vae: VAEConfig
    text: TextConfig
    sampler: str  # "rcm": distilled, no guidance; "flow": the teacher
    num_steps: int
    resolution: str  # a name in SIZES, or "WxH"
    aspect_ratio: str = "16:9"
    num_frames: int = 81
    fps: int = 16
    experts: int = 1  # 2: a network for high noise and one for low
    sigma_max: float | None = None  # of rcm
    shift: float | None = None  # of flow
    guidance: float | None = None  # of flow, of two experts the high-noise one's; 1: a single forward a step
    guidance_low: float | None = None  # of flow, the low-noise expert's; None: that of `guidance`
    boundary: float | None = None  # flow time at which the second expert takes over
    subjects: tuple[str, ...] = ()  # of the demo world, that the model draws; a prompt beyond gets a notice
    published: tuple[tuple[str, str], ...] = ()  # resolution and hub repository; the first is the default
    # What a foreign file did not tell: a notice each, by the field of a request that says it (or by no field).
    assumed: tuple[tuple[str, Text], ...] = ()

    def __post_init__(self) -> None:
        if self.task not in ("t2v", "i2v"):
            raise ValueError(f"task must be t2v or i2v, got {self.task!r}")
        if self.sampler not in SAMPLER_FIELDS:
            raise ValueError(f"sampler must be rcm or flow, got {self.sampler!r}")
        for name in SAMPLER_FIELDS[self.sampler]:
            if getattr(self, name) is None:
                raise ValueError(f"sampler {self.sampler} needs {name}")
        if self.experts not in (1, 2) or (self.experts == 2) != (self.boundary is not None):
            raise ValueError(f"two experts need a boundary and one has none: {self.experts} and {self.boundary}")

    @property
    def width(self) -> int:
        """Of the default size."""
        return size_for(self.resolution, self.aspect_ratio)[0]

    @property
    def height(self) -> int:
        """Of the default size."""
        return size_for(self.resolution, self.aspect_ratio)[1]

    def with_sampler(self, sampler: str | None) -> "ModelPreset":
        """Return this model as another sampler runs it: its own numbers where it has them, else Wan's."""
        if sampler in (None, self.sampler):
            return self
        assert sampler is not None
        own = {name: getattr(self, name) for name in SAMPLER_FIELDS[sampler]}
        numbers = wan_sampling(self.transformer, self.task, self.experts, sampler)
        numbers |= {name: value for name, value in own.items() if value is not None}
        numbers |= {"boundary": self.boundary}
        return replace(self, **numbers)

    def files(self, resolution: str | None = None, *, quantized: bool = False) -> tuple[HubFile, ...]:
        """What to fetch, for a resolution that was published (another one gets the default's); none for the demo.

        quantized: the transformer in int8 blocks, about half the bytes.
        Roles: "transformer" (of two experts the high-noise one), "transformer_low", "vae", "text", "tokenizer".
        """
        if not self.published:
            return ()
        repos = dict(self.published)
        repo = repos.get(resolution or "", self.published[0][1])
        kind = "int8_block" if quantized else "off"
        transformer = transformer_bytes(replace(self.transformer, quant_linear=kind), "bfloat16")
        roles = ("transformer", "transformer_low")[: self.experts]
        return (
            *(HubFile(repo, self._path(repo, role, quantized), role, transformer) for role in roles),
            HubFile(WAN_REPO, VAE_PATH, "vae", vae_bytes(self.vae)),
            HubFile(WAN_REPO, TEXT_PATH, "text", text_bytes(self.text, "bfloat16")),
            HubFile(WAN_REPO, TOKENIZER_PATH, "tokenizer", TOKENIZER_BYTES),
        )

    def _path(self, repo: str, role: str, quantized: bool) -> str:
        """The repository's own name, of two experts with high or low before the resolution, then -quant."""
        stem = repo.split("/")[1]
        if self.experts == 2:
            model, resolution = stem.rsplit("-", 1)
            stem = f"{model}-{'low' if role == 'transformer_low' else 'high'}-{resolution}"
        return f"{stem}{'-quant' if quantized else ''}.pth"


@dataclass(frozen=True)
class Recipe:
    """How much work a distilled model puts into a video; `sla_topk` is the part of the key blocks that is kept."""

    num_steps: int
    sla_topk: float


def wan_sampling(transformer: WanConfig, task: str, experts: int, sampler: str) -> dict[str, Any]:
    """Return how Wan's own release runs such a network ("flow"), or TurboDiffusion one that it distilled ("rcm")."""
    boundary = {"boundary": 0.9 if task == "i2v" else 0.875} if experts == 2 else {}
    if sampler == "rcm":
        return {"sampler": "rcm", "num_steps": 4, "sigma_max": 200.0 if task == "i2v" else 80.0, **boundary}
    if experts == 2 and task == "t2v":
        guided = {"guidance": 4.0, "guidance_low": 3.0}
        return {"sampler": "flow", "num_steps": 40, "shift": 12.0, **guided, **boundary}
    if experts == 2:
        return {"sampler": "flow", "num_steps": 40, "shift": 5.0, "guidance": 3.5, **boundary}
    small = transformer.dim <= 1536
    return {"sampler": "flow", "num_steps": 50, "shift": 8.0 if small else 5.0, "guidance": 6.0 if small else 5.0}


RECIPES = {"draft": Recipe(2, 0.05), "refine": Recipe(4, 0.1), "final": Recipe(4, 0.15)}

_WAN_14B = WanConfig(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, round_time_to_bf16=True, attention_type="sagesla"
)

MODELS = {
    preset.name: preset
    for preset in (
        ModelPreset(
            name="demo",
            title="Demo: small scenes, trained with this package",
            file_name="Demo",
            task="t2v",
            transformer=WanConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=7, text_dim=192, text_len=64),
            vae=VAEConfig(dim=16),
            text=TextConfig(d_model=192, num_layers=4, num_heads=4, d_kv=48, d_ff=512, vocab_size=2048, text_len=64),
            sampler="flow",
            num_steps=30,
            resolution="256x256",
            aspect_ratio="1:1",
            num_frames=33,
            shift=3.0,
            guidance=4.0,
        ),
        ModelPreset(
            name="wan2.1-t2v-1.3b",
            title="TurboWan2.1 T2V 1.3B",
            file_name="Wan2_1_1_3B",
            task="t2v",
            transformer=replace(_WAN_14B, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
            vae=VAEConfig(),
            text=TextConfig(),
            sampler="rcm",
            num_steps=4,
            resolution="480p",
            sigma_max=80.0,
            published=(("480p", "TurboDiffusion/TurboWan2.1-T2V-1.3B-480P"),),
        ),
        ModelPreset(
            name="wan2.1-t2v-14b",
            title="TurboWan2.1 T2V 14B",
            file_name="Wan2_1_14B",
            task="t2v",
            transformer=_WAN_14B,
            vae=VAEConfig(),
            text=TextConfig(),
            sampler="rcm",
            num_steps=4,
            resolution="480p",
            sigma_max=80.0,
            published=(
                ("480p", "TurboDiffusion/TurboWan2.1-T2V-14B-480P"),
                ("720p", "TurboDiffusion/TurboWan2.1-T2V-14B-720P"),
            ),
        ),
        ModelPreset(
            name="wan2.2-i2v-a14b",
            title="TurboWan2.2 I2V A14B (two experts)",
            file_name="Wan2_2_A14B",
            task="i2v",
            transformer=replace(_WAN_14B, in_dim=36),
            vae=VAEConfig(),
            text=TextConfig(),
            sampler="rcm",
            num_steps=4,
            resolution="720p",
            experts=2,
            sigma_max=200.0,
            boundary=0.9,
            published=(("720p", "TurboDiffusion/TurboWan2.2-I2V-A14B-720P"),),
        ),
    )
}


def find_model(name: str) -> ModelPreset:
    """The preset of that name, case apart. Raises RequestError naming the nearest."""
    return MODELS[_find("preset.model", name, MODELS)]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, case apart. Raises RequestError naming the nearest."""
    return RECIPES[_find("preset.recipe", name, RECIPES)]


def size_for(resolution: str, aspect_ratio: str) -> tuple[int, int]:
    """Width and height of a named resolution and aspect ratio, or of "WxH", for which aspect_ratio means nothing.

    Raises RequestError naming the nearest for an unknown name; sizes that no model can make are the caller's to refuse.
    """
    width, cross, height = resolution.lower().partition("x")
    if cross and width.isdecimal() and height.isdecimal():
        return int(width), int(height)
    sizes = SIZES[_find("preset.resolution", resolution, SIZES)]
    return sizes[_find("preset.aspect_ratio", aspect_ratio, sizes)]


def _find(code: str, name: str, known: Iterable[str]) -> str:
    """`name` as it is known. Raises RequestError, its sentence by `code`, with the nearest known name first."""
    known = tuple(known)
    if name.lower() in known:
        return name.lower()
    near = _nearest(name, known)
    hint: Text | str = text("preset.did_you_mean", name=near) if near else ""
    raise RequestError(code, name=name, hint=hint, known=known)


def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that looks most alike; of 16:10 the nearest shape, 16:9."""
    shape = re.fullmatch(r"([1-9]\d{0,3})[:x/]([1-9]\d{0,3})", name)
    if shape and all(":" in ratio for ratio in known):
        return min(known, key=lambda ratio: abs(math.log(int(shape[1]) / int(shape[2]) / _quotient(ratio))))
    return next(iter(get_close_matches(name.lower(), known, n=1)), None)


def _quotient(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)
