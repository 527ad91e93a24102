"""Activations to 8 bits in Triton, one read and one write: by rows, after GELU if asked, and by 128 x 128 blocks.

Values are multiplied with levels / amax where the reference divides by amax / levels: a value on the edge between two
levels may fall to the other one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.rounding_triton import gelu_tanh, largest_magnitude, levels_of, to_8bit

BLOCK = 128
# Rows are held in registers: 64 values a thread at most, with the 16 warps of the widest.
MAX_COLUMNS = 32768


@triton.jit
def _quantize_rows(x, y, scale, K, x_stride, x_step, GELU: tl.constexpr, WIDTH: tl.constexpr):  # one program a row
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < K
    values = tl.load(x + row * x_stride + columns * x_step, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        values = gelu_tanh(values)
    LEVELS: tl.constexpr = levels_of(y.dtype.element_ty)
    amax = largest_magnitude(values, 0)
    tl.store(y + row * K + columns, to_8bit(values * (LEVELS / amax), y.dtype.element_ty), mask=inside)
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


def quantize_rows(x_MK: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """8-bit [M, K] and scale float32 [M]. Raises ValueError for rows of more than 32768 values."""
    M, K = x_MK.shape
    width = row_width("quantize_rows", K)
    y, scale = x_MK.new_empty((M, K), dtype=dtype), x_MK.new_empty(M, dtype=torch.float32)
    if M:
        _quantize_rows[(M,)](x_MK, y, scale, K, *x_MK.stride(), GELU=gelu, WIDTH=width, num_warps=row_warps(width))
    return y, scale


def quantize_blocks(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [M, K] and scale float32 [ceil(M / 128), ceil(K / 128)], the published format."""
    M, K = x_MK.shape
    grid = triton.cdiv(M, BLOCK), triton.cdiv(K, BLOCK)
    y, scale = x_MK.new_empty((M, K), dtype=torch.int8), x_MK.new_empty(grid, dtype=torch.float32)
    if M:
        _quantize_blocks[grid](x_MK, y, scale, M, K, *x_MK.stride(), SIDE=BLOCK, num_warps=8)
    return y, scale


def row_width(op: str, columns: int) -> int:
    """The power of two that holds a row. Raises ValueError where registers would not."""
    if not 0 < columns <= MAX_COLUMNS:
        raise ValueError(f"{op}: impl 'triton' takes rows of 1 to {MAX_COLUMNS} values, got {columns}; use 'reference'")
    return triton.next_power_of_2(columns)


def row_warps(width: int) -> int:
    """Warps for a row held in registers: 16 values a thread, more where 16 warps do not suffice."""
    return min(max(width // 512, 1), 16)
