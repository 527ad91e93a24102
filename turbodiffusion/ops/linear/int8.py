"""Linear layers with 8-bit integers for weights and activations (W8A8), and the quantization of both.

Two formats. Blocks of 128 x 128 are the published one, of TurboDiffusion's `-quant.pth` files (arXiv 2512.16093):
amax = max(|x|, 1e-8) of the block, scale = amax / 128, values rounded half to even and clamped to [-128, 127], so that
a block's largest positive value is stored as 127/128 of itself. Rows have one scale per token and one per output
feature, amax / 127, which an int8 tensor core can apply after the whole sum.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, choose
from turbodiffusion.ops.linear.call import as_rows, check_scale, multiply_rows, with_bias
from turbodiffusion.ops.rounding import SMALLEST_AMAX, to_int8

BLOCK = 128


def quantize_int8_block(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and scale float32 [ceil(N / 128), ceil(K / 128)]; blocks at ragged edges are smaller."""
    check_layout("quantize_int8_block", x_NK=x_NK)
    check_dtype("quantize_int8_block", FLOATS, x_NK=x_NK)
    rows, columns = x_NK.shape
    # Zeros change no block's largest magnitude, so ragged edges can be padded.
    padded = pad(x_NK.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp_min(SMALLEST_AMAX)
    values = (blocks * 128 / amax).round().clamp(-128, 127).to(torch.int8)
    return values.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous(), amax[:, 0, :, 0] / 128


def dequantize_int8_block(q_NK: Tensor, scale: Tensor) -> Tensor:
    """float32 [N, K]: every value times its block's scale. Raises ValueError when the scales do not fit."""
    check_layout("dequantize_int8_block", q_NK=q_NK)
    check_dtype("dequantize_int8_block", (torch.int8,), q_NK=q_NK)
    check_scale("dequantize_int8_block", scale, _block_counts(q_NK))
    rows, columns = q_NK.shape
    scale_NK = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return q_NK * scale_NK


def quantize_int8_row(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] in [-127, 127] and scale float32 [N]: one scale per row, amax / 127."""
    check_layout("quantize_int8_row", x_NK=x_NK)
    check_dtype("quantize_int8_row", FLOATS, x_NK=x_NK)
    values, scale = to_int8(x_NK, x_NK.abs().amax(dim=1, keepdim=True))
    return values, scale[:, 0]


def int8_block_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """x [..., K] times the int8 weight [O, K] with block scales, plus bias [O]: [..., O] in x's dtype.

    The activations are quantized in the same blocks, 128 rows of the flattened leading dimensions by 128 features.
    Has no gradient. Raises ValueError for shapes or dtypes that do not agree and for an x that asks for a gradient.
    """
    x_MK = as_rows("int8_block_linear", x, weight_OK, bias, torch.int8)
    check_scale("int8_block_linear", scale, _block_counts(weight_OK))
    function = choose("int8_block_linear", impl, {"reference": _block_reference, "triton": _block_triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def int8_row_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """As `int8_block_linear`, with one scale per row of the weight (scale [O]) and one per token."""
    x_MK = as_rows("int8_row_linear", x, weight_OK, bias, torch.int8)
    check_scale("int8_row_linear", scale, weight_OK.shape[:1])
    function = choose("int8_row_linear", impl, {"reference": _row_reference, "triton": _row_triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def _block_counts(x_NK: Tensor) -> tuple[int, int]:
    rows, columns = x_NK.shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def _block_reference(x_MK: Tensor, weight_OK: Tensor, scale: Tensor, bias_O: Tensor | None) -> Tensor:
    """One float32 product of the dequantized matrices.

    A kernel sums 128 integer products exactly, scales the sum and adds it up in float32. The scales are constant within
    such a sum, so scaling the factors beforehand gives the same number up to float32 rounding, at the speed of one
    matrix product.
    """
    y_MO = dequantize_int8_block(*quantize_int8_block(x_MK)) @ dequantize_int8_block(weight_OK, scale).T
    return with_bias(y_MO, bias_O, x_MK.dtype)


def _block_triton(x_MK: Tensor, weight_OK: Tensor, scale: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("int8_block_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_blocks

    return gemm(*quantize_blocks(x_MK), weight_OK, scale, bias_O, dtype=x_MK.dtype)


def _row_reference(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    return with_bias(multiply_rows(*quantize_int8_row(x_MK), weight_OK, scale_O), bias_O, x_MK.dtype)


def _row_triton(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("int8_row_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_rows

    return gemm(*quantize_rows(x_MK, torch.int8), weight_OK, scale_O, bias_O, dtype=x_MK.dtype)
