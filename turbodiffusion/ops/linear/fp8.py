"""Linear layers with weights and activations in the 8-bit float e4m3 (arXiv 2209.05433), and their quantization.

One scale per token and one per output feature, which an fp8 tensor core can apply after the whole sum.
"""

from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, choose
from turbodiffusion.ops.linear.call import as_rows, check_scale, multiply_rows, with_bias
from turbodiffusion.ops.rounding import FP8, to_fp8


def quantize_fp8_row(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [N, K] and scale float32 [N]: one scale per row, amax / 448: its largest value becomes 448."""
    check_layout("quantize_fp8_row", x_NK=x_NK)
    check_dtype("quantize_fp8_row", FLOATS, x_NK=x_NK)
    values, scale = to_fp8(x_NK, x_NK.abs().amax(dim=1, keepdim=True))
    return values, scale[:, 0]


def fp8_row_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """x [..., K] times the fp8 weight [O, K] with row scales [O], plus bias [O]: [..., O] in x's dtype.

    Each token of x is quantized with its own scale. Has no gradient. Raises ValueError for shapes or dtypes that do not
    agree and for an x that asks for a gradient.
    """
    x_MK = as_rows("fp8_row_linear", x, weight_OK, bias, FP8)
    check_scale("fp8_row_linear", scale, weight_OK.shape[:1])
    function = choose("fp8_row_linear", impl, {"reference": _reference, "triton": _triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def _reference(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    return with_bias(multiply_rows(*quantize_fp8_row(x_MK), weight_OK, scale_O), bias_O, x_MK.dtype)


def _triton(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("fp8_row_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_rows

    return gemm(*quantize_rows(x_MK, FP8), weight_OK, scale_O, bias_O, dtype=x_MK.dtype)
