"""Layer norm, modulated layer norm and RMS norm in Triton, rounded to 8 bits by rows if asked, in one pass.

    y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift      modulated, scale and shift of each video
    y = (x - mean) / sqrt(var + eps) * weight + bias            layer norm
    y = x / sqrt(mean(x^2) + eps) * weight                      RMS norm

A row is held in registers in float32. A program takes several rows of one video and reads the float32 weights, twice
as long as a bfloat16 row, once for all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.linear.quantize_triton import row_warps, row_width
from turbodiffusion.ops.rounding_triton import largest_magnitude, levels_of, to_8bit

ROWS = 16  # of a program


@triton.jit
def _norm(
    x, y, y_scale, weight, bias, L, M, x_batch, x_row, x_step, w_batch, b_batch, eps,
    CENTRE: tl.constexpr, ONE_PLUS: tl.constexpr, BIAS: tl.constexpr, QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS
    columns = tl.arange(0, WIDTH)
    inside = columns < M
    factor = tl.load(weight + batch * w_batch + columns, mask=inside, other=0.0).to(tl.float32)
    if ONE_PLUS:
        factor += 1
    if BIAS:
        offset = tl.load(bias + batch * b_batch + columns, mask=inside, other=0.0).to(tl.float32)
    x += batch * x_batch + first.to(tl.int64) * x_row
    for row in range(tl.minimum(L - first, ROWS)):
        values = tl.load(x + row * x_row + columns * x_step, mask=inside, other=0.0).to(tl.float32)
        if CENTRE:
            values = tl.where(inside, values - tl.sum(values, 0) / M, 0.0)
        result = values * tl.rsqrt(tl.sum(values * values, 0) / M + eps) * factor
        if BIAS:
            result += offset
        out = batch * L + first + row
        if QUANTIZE:
            LEVELS: tl.constexpr = levels_of(y.dtype.element_ty)
            amax = largest_magnitude(result, 0)
            tl.store(y + out * M + columns, to_8bit(result * (LEVELS / amax), y.dtype.element_ty), mask=inside)
            tl.store(y_scale + out, amax / LEVELS)
        else:
            tl.store(y + out * M + columns, result.to(y.dtype.element_ty), mask=inside)


def row_norm(
    x_BLM: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    centre: bool,
    one_plus: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """[B, L, M] in `dtype`, and for int8 or fp8 the float32 scale [B, L] of each row.

    weight and bias are [M], or [B, M] with a row for each video. `one_plus` multiplies with 1 + weight.
    Raises ValueError for rows of more than 32768 values.
    """
    B, L, M = x_BLM.shape
    width = row_width("row_norm", M)
    quantize = dtype.itemsize == 1
    y = x_BLM.new_empty((B, L, M), dtype=dtype)
    y_scale = x_BLM.new_empty((B, L), dtype=torch.float32) if quantize else None
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    strides = (0 if w is None or w.ndim == 1 else M for w in (weight, bias))
    if y.numel():
        _norm[(triton.cdiv(L, ROWS), B)](
            x_BLM,
            y,
            y_scale,
            weight,
            bias,
            L,
            M,
            *x_BLM.stride(),
            *strides,
            eps,
            CENTRE=centre,
            ONE_PLUS=one_plus,
            BIAS=bias is not None,
            QUANTIZE=quantize,
            ROWS=ROWS,
            WIDTH=width,
            num_warps=row_warps(width),
        )
    return y, y_scale
