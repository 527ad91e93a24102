"""RMS norm over the model width and rotary embedding in Triton, one read and one write, with the means of blocks.

A program takes a block of tokens of one video and holds a row at a time in registers; the block's mean is a running sum
of what it wrote. (A scale of a block and head for 8 bits would need the block twice: attention makes it from the
bfloat16 output, which its linear part reads anyway.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.linear.quantize_triton import row_warps, row_width

ROWS = 16  # of a program, where no means are asked for


@triton.jit
def _norm_rope(
    x, weight, turns, y, pooled, L, M, PAIRS, x_batch, x_row, x_step, eps,
    POOL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < M
    pairs = tl.arange(0, WIDTH // 2)
    paired = pairs < M // 2
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    left_total = tl.zeros((WIDTH // 2,), tl.float32)
    right_total = tl.zeros((WIDTH // 2,), tl.float32)
    first, rows = block * ROWS, tl.minimum(L - block * ROWS, ROWS)
    x += batch * x_batch + first.to(tl.int64) * x_row
    y += (batch * L + first) * M
    cosines = turns + first.to(tl.int64) * PAIRS
    sines = cosines + L.to(tl.int64) * PAIRS
    for row in range(rows):
        values = tl.load(x + row * x_row + columns * x_step, mask=inside, other=0.0).to(tl.float32)
        values = values * tl.rsqrt(tl.sum(values * values, 0) / M + eps) * factor
        even, odd = tl.split(values.reshape((WIDTH // 2, 2)))
        cos = tl.load(cosines + row * PAIRS + pairs % PAIRS, mask=paired, other=0.0)
        sin = tl.load(sines + row * PAIRS + pairs % PAIRS, mask=paired, other=0.0)
        left = (even * cos - odd * sin).to(y.dtype.element_ty)
        right = (even * sin + odd * cos).to(y.dtype.element_ty)
        tl.store(y + row * M + columns, tl.join(left, right).reshape((WIDTH,)), mask=inside)
        if POOL:
            left_total += left.to(tl.float32)
            right_total += right.to(tl.float32)
    if POOL:
        mean = tl.join(left_total, right_total).reshape((WIDTH,)) / rows
        tl.store(pooled + (batch * tl.num_programs(0) + block) * M + columns, mean, mask=inside)


def norm_rope(
    x_BLM: Tensor, weight_M: Tensor, turns: Tensor, num_heads: int, eps: float, block: int | None
) -> tuple[Tensor, Tensor | None]:
    """[B, L, H, D] in x's dtype, and for a `block` of tokens float32 means [B, ceil(L / block), H, D]."""
    B, L, M = x_BLM.shape
    width = row_width("norm_rope_qk", M)
    rows = block or ROWS
    blocks = triton.cdiv(L, rows)
    y = x_BLM.new_empty((B, L, num_heads, M // num_heads))
    pooled = x_BLM.new_empty((B, blocks, num_heads, M // num_heads), dtype=torch.float32) if block else None
    if y.numel():
        _norm_rope[(blocks, B)](
            x_BLM,
            weight_M.contiguous(),
            turns.contiguous(),
            y,
            pooled,
            L,
            M,
            M // num_heads // 2,
            *x_BLM.stride(),
            eps,
            POOL=block is not None,
            ROWS=rows,
            WIDTH=width,
            num_warps=row_warps(width),
        )
    return y, pooled
