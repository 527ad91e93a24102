"""What tells one model from another, as plain data: networks, text encoders, VAEs, and how each op is computed.

Neither torch nor numpy is imported here, so that a command, a web process or a plan can read a model's sizes at once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from turbodiffusion.errors import UserError

ATTENTION_KINDS = ("original", "sla", "sage", "sagesla")
SPARSE_ATTENTION = ("sla", "sagesla")
LINEAR_KINDS = ("off", "int8_block", "int8_row", "fp8_row")
PER_TOKEN_LINEARS = ("int8_row", "fp8_row")  # those whose products take activations that are quantized already
IMPLEMENTATIONS = ("reference", "triton")
PATCH = 2  # a token is 1 frame x 2 x 2 of the latent, in every Wan model
# The largest numbers that a configuration may have: some times those of any network that is known, so that a damaged
# file is refused before a network of that size is built.
WAN_LIMITS = {
    "dim": 32768,
    "ffn_dim": 131072,
    "num_heads": 512,
    "num_layers": 200,
    "in_dim": 512,
    "out_dim": 512,
    "freq_dim": 8192,
    "text_dim": 32768,
    "text_len": 8192,
    "image_dim": 32768,
    "sla_block_q": 4096,
    "sla_block_k": 4096,
}
VAE_LIMITS = {"dim": 4096, "z_dim": 512, "num_res_blocks": 16}
MAX_VAE_STAGES = 8
TEXT_LIMITS = {
    "d_model": 32768,
    "num_layers": 200,
    "num_heads": 512,
    "d_kv": 4096,
    "d_ff": 1 << 20,
    "vocab_size": 4_000_000,
    "text_len": 8192,
}
TEXT_BUCKETS = 32  # of distances between tokens of umT5, half of them for either direction


@dataclass(frozen=True)
class Kernels:
    """ "reference" (plain PyTorch) or "triton" for each group. Raises ValueError for another name.

    Floating-point products are PyTorch's in both; so is dense attention, with "triton" by cuDNN where it can.
    """

    attention: str = "reference"
    linear: str = "reference"  # products in 8 bits and the rounding before them
    norm: str = "reference"  # norms, rotation, gated sums
    vae: str = "reference"

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) not in IMPLEMENTATIONS:
                known = ", ".join(IMPLEMENTATIONS)
                raise ValueError(f"Kernels.{field.name} must be one of {known}, got {getattr(self, field.name)!r}")


REFERENCE = Kernels()
TRITON = Kernels("triton", "triton", "triton", "triton")


@dataclass(frozen=True)
class WanConfig:
    """What tells one Wan network from another. Raises ValueError for a value that no network can have."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16  # 36 for image to video: noisy latent 16, mask 4, condition 16
    out_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    image_dim: int | None = None  # 1280: Wan2.1 I2V's CLIP tokens
    round_time_to_bf16: bool = False  # TurboWan checkpoints saw t * 1000 rounded to bfloat16 in training
    attention_type: str = "original"
    sla_topk: float = 0.1
    sla_block_q: int = 128
    sla_block_k: int = 64
    quant_linear: str = "off"
    kernels: Kernels = REFERENCE  # of this machine and not of the model: no file has it

    def __post_init__(self) -> None:
        absent = {"image_dim"} if self.image_dim is None else set()
        check_whole_numbers(self, {name: high for name, high in WAN_LIMITS.items() if name not in absent})
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise UserError("config.head_dim", dim=self.dim, num_heads=self.num_heads)
        if self.freq_dim % 2:
            raise UserError("config.freq_dim", value=self.freq_dim)
        for name, high in (("eps", 0.1), ("sla_topk", 1)):
            if not _is_number(value := getattr(self, name)) or not 0 < value <= high:
                raise UserError("config.number", config="WanConfig", field=name, high=high, value=shown(value))
        if not isinstance(self.round_time_to_bf16, bool):
            value = shown(self.round_time_to_bf16)
            raise UserError("config.true_or_false", config="WanConfig", field="round_time_to_bf16", value=value)
        if not isinstance(self.kernels, Kernels):
            raise ValueError(f"WanConfig.kernels must be of ops.kernels.Kernels, got {self.kernels!r}")
        for name, kinds in (("attention_type", ATTENTION_KINDS), ("quant_linear", LINEAR_KINDS)):
            if getattr(self, name) not in kinds:
                value = shown(getattr(self, name))
                raise UserError("config.choice", config="WanConfig", field=name, choices=kinds, value=value)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE and the scale of its latents; the defaults are the published Wan2.1's."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    # fmt: off
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    )
    # fmt: on

    def __post_init__(self) -> None:
        check_whole_numbers(self, VAE_LIMITS)
        multiples, temporal = self.dim_mult, self.temporal_downsample
        if not _is_list(multiples, lambda m: type(m) is int and 1 <= m <= 64) or len(multiples) > MAX_VAE_STAGES:
            raise UserError("config.dim_mult", high=MAX_VAE_STAGES, value=shown(multiples))
        if not (_is_list(temporal, lambda each: isinstance(each, bool)) or temporal == ()):
            raise UserError("config.temporal_downsample", value=shown(temporal))
        for name in ("latents_mean", "latents_std"):
            if not _is_list(value := getattr(self, name), _is_number) or (name == "latents_std" and min(value) <= 0):
                raise UserError("config.latents", field=name, value=shown(value))
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise UserError("model.temporal_downsample", count=len(self.dim_mult) - 1)
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise UserError("model.latents_scale", z_dim=self.z_dim)

    @property
    def space_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def time_factor(self) -> int:
        """Video frames per latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a umT5 encoder; the defaults are umT5-XXL, the one that Wan uses."""

    d_model: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    d_kv: int = 64
    d_ff: int = 10240
    vocab_size: int = 256384
    text_len: int = 512

    def __post_init__(self) -> None:
        check_whole_numbers(self, TEXT_LIMITS)


def check_whole_numbers(config: object, limits: Mapping[str, int]) -> None:
    """Raise UserError, which is a ValueError, for a field that is no whole number from 1 to its limit."""
    for name, high in limits.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            kind = type(config).__name__
            raise UserError("config.whole_number", config=kind, field=name, high=high, value=shown(value))


def shown(value: Any) -> str:
    """Return a value as an error shows it, cut where it is long."""
    try:
        whole = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a nest of thousands of brackets
        return type(value).__name__
    return whole if len(whole) <= 60 else f"{whole[:56]} ..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    """Whether a value is a list (a tuple here) with at least one entry, each of a kind."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(of, value))
