"""RMS norm over the model width and rotary embedding in Triton, in one read and one write, with the means of blocks.

A program takes one row, or where means are asked for a block of tokens of one video, row after row: the block's mean is
a running sum of what it wrote. (A scale of a block and head for 8 bits would need the block twice: attention makes it
from the bfloat16 output, which its linear part reads anyway.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.rows import load_pieces, row_pieces, row_warps, store_pieces, sum_pieces


@triton.jit
def _rotate(values, cosines, sines, y, start, M, PAIRS, WIDTH: tl.constexpr):
    """Rotate the pairs of a piece of a row that starts at column `start`, store them and return them as stored."""
    pairs = start // 2 + tl.arange(0, WIDTH // 2)
    inside = pairs < M // 2
    even, odd = tl.split(values.reshape((WIDTH // 2, 2)))
    cos = tl.load(cosines + pairs % PAIRS, mask=inside, other=0.0)
    sin = tl.load(sines + pairs % PAIRS, mask=inside, other=0.0)
    left, right = even * cos - odd * sin, even * sin + odd * cos
    rotated = tl.join(left, right).reshape((WIDTH,)).to(y.dtype.element_ty)
    columns = start + tl.arange(0, WIDTH)
    tl.store(y + columns, rotated, mask=columns < M)
    return rotated.to(tl.float32)


# L may be 1, which Triton would take for a constant and not a number of 32 bits.
@triton.jit(do_not_specialize=["L"])
def _norm_rope(
    x, weight, cos_sin, y, pooled, L, M, PAIRS, x_batch, x_row, x_step, eps,
    POOL: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    block, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wide_total = tl.zeros((WIDE,), tl.float32)
    rest_total = tl.zeros((REST,), tl.float32)
    first, rows = block * ROWS, tl.minimum(L - block * ROWS, ROWS)
    x += batch * x_batch + first.to(tl.int64) * x_row
    y += (batch * L + first) * M
    cosines = cos_sin + first.to(tl.int64) * PAIRS
    sines = cosines + L.to(tl.int64) * PAIRS
    # A block's rows come one after the other: the next ones are on their way meanwhile.
    for row in tl.range(0, rows, num_stages=STAGES):
        wide, rest = load_pieces(x + row * x_row, M, x_step, WIDE, REST)
        factor = tl.rsqrt(sum_pieces(wide * wide, rest * rest) / M + eps)
        wide_weight, rest_weight = load_pieces(weight, M, 1, WIDE, REST)
        at = row * PAIRS
        out = y + row * M
        wide = _rotate(wide * factor * wide_weight, cosines + at, sines + at, out, 0, M, PAIRS, WIDE)
        rest = _rotate(rest * factor * rest_weight, cosines + at, sines + at, out, WIDE, M, PAIRS, REST)
        if POOL:
            wide_total += wide
            rest_total += rest
    if POOL:
        pooled += (batch * tl.num_programs(0) + block) * M
        store_pieces(pooled, wide_total / rows, rest_total / rows, M)


def norm_rope(
    x_BLM: Tensor, weight_M: Tensor, cos_sin: Tensor, num_heads: int, eps: float, block: int | None
) -> tuple[Tensor, Tensor | None]:
    """Norm and rotate x: [B, L, H, D] in its dtype, and for a `block` of tokens float32 means [B, L / block, H, D]."""
    B, L, M = x_BLM.shape
    wide, rest = row_pieces("norm_rope_qk", M)
    rows = block or 1
    blocks = triton.cdiv(L, rows)
    y = x_BLM.new_empty((B, L, num_heads, M // num_heads))
    # A row on its way takes 2 bytes a value, and 4 for the cosine or sine; 14B's four are too many for Ada.
    stages = max(1, min(4, gpu.shared_memory(x_BLM.device) // (7 * (wide + rest)))) if block else 1
    pooled = x_BLM.new_empty((B, blocks, num_heads, M // num_heads), dtype=torch.float32) if block else None
    if y.numel():
        _norm_rope[(blocks, B)](
            x_BLM,
            weight_M.contiguous(),
            cos_sin.contiguous(),
            y,
            pooled,
            L,
            M,
            M // num_heads // 2,
            *x_BLM.stride(),
            eps,
            POOL=block is not None,
            ROWS=rows,
            STAGES=stages,
            WIDE=wide,
            REST=max(rest, 2),
            num_warps=row_warps(wide, rest) * (4 if block else 1),
        )
    return y, pooled
