"""Linear layers with 8-bit integers for weights and activations (W8A8), and the quantization of both.

Two formats. "int8_block", blocks of 128 x 128, is the published one, of TurboDiffusion's `-quant.pth` files (arXiv
2512.16093): amax = max(|x|, 1e-8) of the block, scale = amax / 128, values rounded half to even and clamped to [-128,
127], so that a block's largest positive value is stored as 127/128 of itself: quantizing twice changes the block. Files
of ours have amax / 127 instead, which is as exact and leaves a quantized weight as it is; both are read alike.
"int8_row" has one scale per token of the activations and one per output feature of the weight, amax / 127, which can be
applied after the tensor core's whole sum.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, select_impl
from turbodiffusion.ops.linear.call import add_bias, check_and_flatten, check_scale, scaled_product
from turbodiffusion.ops.rounding import SMALLEST_AMAX, to_int8

BLOCK = 128


def quantize_int8_block(x_NK: Tensor, *, top: int = 128) -> tuple[Tensor, Tensor]:
    """Round blocks of 128 x 128 to int8: int8 [N, K] and scale float32 [ceil(N / 128), ceil(K / 128)].

    Blocks at ragged edges are smaller. top: what a block's largest magnitude is scaled to; 128 is the published format,
    127 that of our own files. Raises ValueError for another layout or dtype.
    """
    check_layout("quantize_int8_block", x_NK=x_NK)
    check_dtype("quantize_int8_block", FLOATS, x_NK=x_NK)
    rows, columns = x_NK.shape
    # Zeros change no block's largest magnitude, so ragged edges can be padded.
    padded = pad(x_NK.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp_min(SMALLEST_AMAX)
    values = (blocks * top / amax).round().clamp(-128, 127).to(torch.int8)
    return values.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous(), amax[:, 0, :, 0] / top


def dequantize_int8_block(q_NK: Tensor, scale: Tensor) -> Tensor:
    """Multiply every value by its block's scale: float32 [N, K]. Raises ValueError when the scales do not fit."""
    check_layout("dequantize_int8_block", q_NK=q_NK)
    check_dtype("dequantize_int8_block", (torch.int8,), q_NK=q_NK)
    check_scale("dequantize_int8_block", scale, _block_counts(q_NK))
    rows, columns = q_NK.shape
    scale_NK = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return q_NK * scale_NK


def quantize_int8_row(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 in [-127, 127]: int8 [N, K] and scale amax / 127, float32 [N].

    A row is a token of activations or an output feature of a weight. Raises ValueError for another layout or dtype.
    """
    check_layout("quantize_int8_row", x_NK=x_NK)
    check_dtype("quantize_int8_row", FLOATS, x_NK=x_NK)
    values, scale = to_int8(x_NK, x_NK.abs().amax(dim=1, keepdim=True))
    return values, scale[:, 0]


def int8_block_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """Multiply x [..., K] by the int8 weight [O, K] with block scales and add the bias [O]: [..., O] in x's dtype.

    The activations are quantized in the same blocks, 128 tokens of the flattened leading dimensions by 128 features.
    Has no gradient. Raises ValueError for shapes or dtypes that do not agree and for an x that asks for a gradient.
    """
    x_MK = check_and_flatten("int8_block_linear", x, weight_OK, bias, torch.int8)
    check_scale("int8_block_linear", scale, _block_counts(weight_OK))
    function = select_impl("int8_block_linear", impl, {"reference": _block_reference, "triton": _block_triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def int8_row_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """Multiply as `int8_block_linear`, with one scale per output feature (scale [O]) and one per token."""
    x_MK = check_and_flatten("int8_row_linear", x, weight_OK, bias, torch.int8)
    check_scale("int8_row_linear", scale, weight_OK.shape[:1])
    function = select_impl("int8_row_linear", impl, {"reference": _row_reference, "triton": _row_triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def _block_counts(x_NK: Tensor) -> tuple[int, int]:
    rows, columns = x_NK.shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def _block_reference(x_MK: Tensor, weight_OK: Tensor, scale: Tensor, bias_O: Tensor | None) -> Tensor:
    """Take one float32 product of the dequantized matrices.

    A kernel sums 128 integer products exactly, scales the sum and adds it up in float32. The scales are constant within
    such a sum, so scaling the factors beforehand gives the same number up to float32 rounding, at the speed of one
    matrix product.
    """
    y_MO = dequantize_int8_block(*quantize_int8_block(x_MK)) @ dequantize_int8_block(weight_OK, scale).T
    return add_bias(y_MO, bias_O, x_MK.dtype)


def _block_triton(x_MK: Tensor, weight_OK: Tensor, scale: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("int8_block_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_blocks

    return gemm(*quantize_blocks(x_MK), weight_OK, scale, bias_O, dtype=x_MK.dtype)


def _row_reference(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    return add_bias(scaled_product(*quantize_int8_row(x_MK), weight_OK, scale_O), bias_O, x_MK.dtype)


def _row_triton(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("int8_row_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_per_token

    return gemm(*quantize_per_token(x_MK, torch.int8), weight_OK, scale_O, bias_O, dtype=x_MK.dtype)
