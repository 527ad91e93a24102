"""Activations to 8 bits in Triton, one read and one write: per token, after GELU if asked, and by 128 x 128 blocks.

Values are multiplied with levels / amax where the reference divides by amax / levels: a value on the edge between two
levels may fall to the other one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.kernels.rounding import gelu_tanh, largest_magnitude, levels_of, to_8bit
from turbodiffusion.ops.kernels.rows import largest_of_pieces, load_pieces, row_pieces, row_warps, store_pieces

BLOCK = 128


@triton.jit
def _quantize_per_token(
    x, y, scale, K, x_stride, x_step, GELU: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    wide, rest = load_pieces(x + row * x_stride, K, x_step, WIDE, REST)
    if GELU:
        wide, rest = gelu_tanh(wide), gelu_tanh(rest)
    LEVELS: tl.constexpr = levels_of(y.dtype.element_ty)
    amax = largest_of_pieces(wide, rest)
    factor = LEVELS / amax
    wide, rest = to_8bit(wide * factor, y.dtype.element_ty), to_8bit(rest * factor, y.dtype.element_ty)
    store_pieces(y + row * K, wide, rest, K)
    tl.store(scale + row, amax / LEVELS)


@triton.jit
def _quantize_blocks(x, y, scale, M, K, x_stride, x_step, SIDE: tl.constexpr):
    m, k = tl.program_id(0), tl.program_id(1)
    rows = (m * SIDE + tl.arange(0, SIDE)).to(tl.int64)[:, None]
    columns = (k * SIDE + tl.arange(0, SIDE))[None, :]
    inside = (rows < M) & (columns < K)
    values = tl.load(x + rows * x_stride + columns * x_step, mask=inside, other=0.0).to(tl.float32)
    amax = largest_magnitude(values, None)
    levels = tl.minimum(tl.maximum(values * (128 / amax), -128.0), 127.0)
    tl.store(y + rows * K + columns, to_8bit(levels, tl.int8), mask=inside)
    tl.store(scale + m * tl.num_programs(1) + k, amax / 128)


def quantize_per_token(x_MK: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Round each token: 8-bit [M, K] and scale float32 [M]. Raises ValueError for rows of more than 32768 values."""
    M, K = x_MK.shape
    wide, rest = row_pieces("quantize_per_token", K)
    y, scale = x_MK.new_empty((M, K), dtype=dtype), x_MK.new_empty(M, dtype=torch.float32)
    if M:
        _quantize_per_token[(M,)](
            x_MK, y, scale, K, *x_MK.stride(), GELU=gelu, WIDE=wide, REST=rest, num_warps=row_warps(wide, rest)
        )
    return y, scale


def quantize_blocks(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Round to the published format: int8 [M, K] and scale float32 [ceil(M / 128), ceil(K / 128)]."""
    M, K = x_MK.shape
    grid = triton.cdiv(M, BLOCK), triton.cdiv(K, BLOCK)
    y, scale = x_MK.new_empty((M, K), dtype=torch.int8), x_MK.new_empty(grid, dtype=torch.float32)
    if M:
        _quantize_blocks[grid](x_MK, y, scale, M, K, *x_MK.stride(), SIDE=BLOCK, num_warps=8)
    return y, scale
