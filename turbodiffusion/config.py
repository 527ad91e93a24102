"""What tells one model from another, as plain data: networks, text encoders, VAEs, and how each op is computed.

Neither torch nor numpy is imported here, so that a command, a web process or a plan can read a model's sizes at once.
"""

from dataclasses import dataclass, fields

from turbodiffusion.errors import UserError

ATTENTION_KINDS = ("original", "sla", "sage", "sagesla")
SPARSE_ATTENTION = ("sla", "sagesla")
LINEAR_KINDS = ("off", "int8_block", "int8_row", "fp8_row")
PER_TOKEN_LINEARS = ("int8_row", "fp8_row")  # those whose products take activations that are quantized already
IMPLEMENTATIONS = ("reference", "triton")
PATCH = 2  # a token is 1 frame x 2 x 2 of the latent, in every Wan model
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
        sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim", "text_len")
        for name in (*sizes, "sla_block_q", "sla_block_k", *(("image_dim",) if self.image_dim is not None else ())):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"WanConfig.{name} must be a positive integer, got {value!r}")
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(
                f"WanConfig.dim must be num_heads times an even head dim of at least 6 (rotary pairs over three axes), "
                f"got dim {self.dim} and num_heads {self.num_heads}"
            )
        if self.freq_dim % 2:
            raise ValueError(f"WanConfig.freq_dim must be even (cosines and sines), got {self.freq_dim}")
        if not self.eps > 0:
            raise ValueError(f"WanConfig.eps must be positive, got {self.eps!r}")
        if not isinstance(self.kernels, Kernels):
            raise ValueError(f"WanConfig.kernels must be of ops.kernels.Kernels, got {self.kernels!r}")
        if not 0 < self.sla_topk <= 1:
            raise ValueError(f"WanConfig.sla_topk must be over 0 and at most 1, got {self.sla_topk!r}")
        for name, kinds in (("attention_type", ATTENTION_KINDS), ("quant_linear", LINEAR_KINDS)):
            if getattr(self, name) not in kinds:
                raise ValueError(f"WanConfig.{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}")

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
