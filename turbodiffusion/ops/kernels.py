"""Which implementation computes each group of ops: chosen once, when a network is built, and passed on as `impl`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

IMPLEMENTATIONS = ("reference", "triton")
# What the attention kernels take.
HEAD_DIMS = (32, 64, 128)
BLOCKS = (64, 128)  # of tokens
# The oldest GPUs, by their compute capability: of any kernel, and of those that use fp8.
TRITON_GPU, FP8_GPU = (8, 0), (8, 9)


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


def attention_obstacle(
    kind: str, head_dim: int, block_q: int, block_k: int, capability: tuple[int, int] | None
) -> str | None:
    """Why the Triton kernels cannot compute this attention on a GPU of that capability, in words; None if they can.

    capability None: the interpreter, which has every number format. The kernels raise by themselves; this is for a
    choice before anything is built.
    """
    if kind == "original":
        return None
    if head_dim not in HEAD_DIMS:
        return f"the Triton kernels take a head dim of {', '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if block_q not in BLOCKS or block_k not in BLOCKS:
        return f"the Triton kernels take blocks of 64 or 128 tokens, not {block_q} and {block_k}"
    if kind in ("sage", "sagesla") and capability is not None and capability < FP8_GPU:
        return f"attention {kind} needs fp8, which GPUs have from compute capability 8.9 on"
    return None


def linear_obstacle(widths: Sequence[int]) -> str | None:
    """As `attention_obstacle`, for 8-bit linears between these widths."""
    odd = [width for width in widths if width % 16]
    return f"the Triton kernels take widths that are multiples of 16, not {odd[0]}" if odd else None
