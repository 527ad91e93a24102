"""Layer norms whose output is rounded to 8 bits per token at once: what an 8-bit linear after them reads.

The norm's result is not rounded to x's dtype before: `ops/linear/per_token.per_token_linear` takes values and scale as
they are.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm as torch_layer_norm

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_no_grad, check_triton, select_impl
from turbodiffusion.ops.linear.per_token import quantize_per_token
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.rounding import FP8


def quantized_modulated_layer_norm(
    x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float, dtype: torch.dtype, *, impl: str = "reference"
) -> tuple[Tensor, Tensor]:
    """Round `modulated_layer_norm` to int8 or float8_e4m3fn [B, L, M] with scale float32 [B, L]. No gradient.

    Raises ValueError for shapes that do not agree and for another dtype.
    """
    op = "quantized_modulated_layer_norm"
    check_layout(op, x_BLM=x_BLM, shift_BM=shift_BM, scale_BM=scale_BM)
    check_dtype(op, FLOATS, shift_BM=shift_BM, scale_BM=scale_BM)
    _check(op, x_BLM, dtype)
    function = select_impl(op, impl, {"reference": _modulated_reference, "triton": _modulated_triton})
    return function(x_BLM, shift_BM, scale_BM, eps, dtype)


def quantized_layer_norm(
    x_BLM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, dtype: torch.dtype, *, impl: str = "reference"
) -> tuple[Tensor, Tensor]:
    """Round norm(x) * weight + bias to int8 or float8_e4m3fn [B, L, M] with scale float32 [B, L]. No gradient.

    Raises ValueError for shapes that do not agree and for another dtype.
    """
    op = "quantized_layer_norm"
    check_layout(op, x_BLM=x_BLM, weight_M=weight_M, bias_M=bias_M)
    check_dtype(op, FLOATS, weight_M=weight_M, bias_M=bias_M)
    _check(op, x_BLM, dtype)
    function = select_impl(op, impl, {"reference": _affine_reference, "triton": _affine_triton})
    return function(x_BLM, weight_M, bias_M, eps, dtype)


def _check(op: str, x_BLM: Tensor, dtype: torch.dtype) -> None:
    check_dtype(op, FLOATS, x_BLM=x_BLM)
    check_no_grad(op, x_BLM=x_BLM)
    if dtype not in (torch.int8, FP8):
        raise ValueError(f"{op}: dtype must be torch.int8 or {FP8}, got {dtype}")


def _modulated_reference(
    x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return quantize_per_token(modulated_layer_norm(x_BLM.float(), shift_BM, scale_BM, eps), dtype)


def _modulated_triton(
    x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    check_triton("quantized_modulated_layer_norm", x_BLM=x_BLM)
    from turbodiffusion.ops.norm.kernels.row_norm import row_norm

    y, y_scale = row_norm(x_BLM, scale_BM, shift_BM, eps, centre=True, one_plus=True, dtype=dtype)
    assert y_scale is not None
    return y, y_scale


def _affine_reference(
    x_BLM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    normed = torch_layer_norm(x_BLM.float(), weight_M.shape, weight_M.float(), bias_M.float(), eps)
    return quantize_per_token(normed, dtype)


def _affine_triton(
    x_BLM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    check_triton("quantized_layer_norm", x_BLM=x_BLM)
    from turbodiffusion.ops.norm.kernels.row_norm import row_norm

    y, y_scale = row_norm(x_BLM, weight_M, bias_M, eps, centre=True, one_plus=False, dtype=dtype)
    assert y_scale is not None
    return y, y_scale
