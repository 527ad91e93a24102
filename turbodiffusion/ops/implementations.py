"""Which implementation computes each group of ops: chosen once, when a network is built, and passed on as `impl`."""

from collections.abc import Sequence

# What the attention kernels take.
HEAD_DIMS = (32, 64, 128)
BLOCKS = (64, 128)  # of tokens
# The oldest GPUs, by their compute capability: of any kernel, and of those that use fp8.
TRITON_GPU, FP8_GPU = (8, 0), (8, 9)


def attention_unsupported_reason(
    kind: str, head_dim: int, block_q: int, block_k: int, capability: tuple[int, int] | None
) -> str | None:
    """Return why the Triton kernels cannot compute this attention on a GPU of that capability; None if they can.

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


def linear_unsupported_reason(widths: Sequence[int]) -> str | None:
    """Return why the Triton kernels cannot compute 8-bit linears between these widths; None if they can."""
    odd = [width for width in widths if width % 16]
    return f"the Triton kernels take widths that are multiples of 16, not {odd[0]}" if odd else None
