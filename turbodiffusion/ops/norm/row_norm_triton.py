"""Layer norm, modulated layer norm and RMS norm in Triton, rounded to 8 bits by rows if asked, in one pass.

    y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift      modulated, scale and shift of each video
    y = (x - mean) / sqrt(var + eps) * weight + bias            layer norm
    y = x / sqrt(mean(x^2) + eps) * weight                      RMS norm

A program holds a row in registers in float32 (`rows_triton.py`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.rounding_triton import levels_of, to_8bit
from turbodiffusion.ops.rows_triton import (
    largest_of_pieces,
    load_pieces,
    row_pieces,
    row_warps,
    store_pieces,
    sum_pieces,
)


@triton.jit
def _norm(
    x, y, y_scale, weight, bias, L, M, x_batch, x_row, x_step, w_batch, b_batch, eps,
    CENTRE: tl.constexpr, ONE_PLUS: tl.constexpr, BIAS: tl.constexpr, QUANTIZE: tl.constexpr,
    WIDE: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    wide, rest = load_pieces(x + batch * x_batch + row * x_row, M, x_step, WIDE, REST)
    if CENTRE:
        mean = sum_pieces(wide, rest) / M
        wide -= mean
        rest = tl.where(WIDE + tl.arange(0, REST) < M, rest - mean, 0.0)
    factor = tl.rsqrt(sum_pieces(wide * wide, rest * rest) / M + eps)
    wide_weight, rest_weight = load_pieces(weight + batch * w_batch, M, 1, WIDE, REST)
    if ONE_PLUS:
        wide_weight += 1
        rest_weight += 1
    wide, rest = wide * factor * wide_weight, rest * factor * rest_weight
    if BIAS:
        wide_bias, rest_bias = load_pieces(bias + batch * b_batch, M, 1, WIDE, REST)
        wide += wide_bias
        rest += rest_bias
    out = batch * L + row
    if QUANTIZE:
        LEVELS: tl.constexpr = levels_of(y.dtype.element_ty)
        amax = largest_of_pieces(wide, rest)
        scale = LEVELS / amax
        wide, rest = to_8bit(wide * scale, y.dtype.element_ty), to_8bit(rest * scale, y.dtype.element_ty)
        tl.store(y_scale + out, amax / LEVELS)
    store_pieces(y + out * M, wide, rest, M)


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
    wide, rest = row_pieces("row_norm", M)
    quantize = dtype.itemsize == 1
    y = x_BLM.new_empty((B, L, M), dtype=dtype)
    y_scale = x_BLM.new_empty((B, L), dtype=torch.float32) if quantize else None
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    strides = (0 if w is None or w.ndim == 1 else M for w in (weight, bias))
    if y.numel():
        _norm[(L, B)](
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
            WIDE=wide,
            REST=rest,
            num_warps=row_warps(wide, rest),
        )
    return y, y_scale
