"""Layer norm, modulated layer norm and RMS norm in Triton, rounded to 8 bits per token if asked, in one pass.

    y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift      modulated, scale and shift of each video
    y = (x - mean) / sqrt(var + eps) * weight + bias            layer norm
    y = x / sqrt(mean(x^2) + eps) * weight                      RMS norm

A program takes a few rows, each in registers in float32 (`kernels/rows.py`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.kernels.rounding import levels_of, to_8bit
from turbodiffusion.ops.kernels.rows import (
    largest_of_pieces,
    load_pieces,
    row_pieces,
    row_warps,
    store_pieces,
    sum_pieces,
)

ROWS = 8  # of a program: what they share, weights and biases, is read once and stays in registers


# L may be 1, which Triton would take for a constant and not a number of 32 bits.
@triton.jit(do_not_specialize=["L"])
def _norm(
    x, y, y_scale, weight, bias, L, M, x_batch, x_row, x_step, w_batch, b_batch, eps,
    CENTRE: tl.constexpr, ONE_PLUS: tl.constexpr, BIAS: tl.constexpr, QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    first, batch = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    wide_weight, rest_weight = load_pieces(weight + batch * w_batch, M, 1, WIDE, REST)
    if ONE_PLUS:
        wide_weight += 1
        rest_weight += 1
    if BIAS:
        wide_bias, rest_bias = load_pieces(bias + batch * b_batch, M, 1, WIDE, REST)
    x += batch * x_batch + first.to(tl.int64) * x_row
    out = batch * L + first
    for row in tl.range(0, tl.minimum(L - first, ROWS)):
        wide, rest = load_pieces(x + row * x_row, M, x_step, WIDE, REST)
        if CENTRE:
            mean = sum_pieces(wide, rest) / M
            wide -= mean
            rest = tl.where(WIDE + tl.arange(0, REST) < M, rest - mean, 0.0)
        factor = tl.rsqrt(sum_pieces(wide * wide, rest * rest) / M + eps)
        wide, rest = wide * factor * wide_weight, rest * factor * rest_weight
        if BIAS:
            wide += wide_bias
            rest += rest_bias
        if QUANTIZE:
            LEVELS: tl.constexpr = levels_of(y.dtype.element_ty)
            amax = largest_of_pieces(wide, rest)
            scale = LEVELS / amax
            wide, rest = to_8bit(wide * scale, y.dtype.element_ty), to_8bit(rest * scale, y.dtype.element_ty)
            tl.store(y_scale + out + row, amax / LEVELS)
        store_pieces(y + (out + row) * M, wide, rest, M)


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
    """Norm each token: [B, L, M] in `dtype`, and for int8 or fp8 its scale, float32 [B, L].

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
            WIDE=wide,
            REST=rest,
            num_warps=row_warps(wide, rest),
        )
    return y, y_scale
