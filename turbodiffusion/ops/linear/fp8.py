"""Linear layers with weights and activations in the 8-bit float e4m3 (arXiv 2209.05433), and their quantization.

"fp8_row": one scale per token and one per output feature, which can be applied after the tensor core's whole sum.
"""

from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, select_impl
from turbodiffusion.ops.linear.call import add_bias, check_and_flatten, check_scale, scaled_product
from turbodiffusion.ops.rounding import FP8, to_fp8


def quantize_fp8_row(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to fp8, its largest value to 448: float8_e4m3fn [N, K] and scale amax / 448, float32 [N].

    A row is a token of activations or an output feature of a weight. Raises ValueError for another layout or dtype.
    """
    check_layout("quantize_fp8_row", x_NK=x_NK)
    check_dtype("quantize_fp8_row", FLOATS, x_NK=x_NK)
    values, scale = to_fp8(x_NK, x_NK.abs().amax(dim=1, keepdim=True))
    return values, scale[:, 0]


def fp8_row_linear(
    x: Tensor, weight_OK: Tensor, scale: Tensor, bias: Tensor | None, *, impl: str = "reference"
) -> Tensor:
    """Multiply x [..., K] by the fp8 weight [O, K] with its scales [O] and add the bias [O]: [..., O] in x's dtype.

    Each token of x is quantized with its own scale. Has no gradient. Raises ValueError for shapes or dtypes that do not
    agree and for an x that asks for a gradient.
    """
    x_MK = check_and_flatten("fp8_row_linear", x, weight_OK, bias, FP8)
    check_scale("fp8_row_linear", scale, weight_OK.shape[:1])
    function = select_impl("fp8_row_linear", impl, {"reference": _reference, "triton": _triton})
    return function(x_MK, weight_OK, scale, bias).reshape(*x.shape[:-1], weight_OK.shape[0])


def _reference(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    return add_bias(scaled_product(*quantize_fp8_row(x_MK), weight_OK, scale_O), bias_O, x_MK.dtype)


def _triton(x_MK: Tensor, weight_OK: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    check_triton("fp8_row_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm
    from turbodiffusion.ops.linear.kernels.quantize import quantize_per_token

    return gemm(*quantize_per_token(x_MK, FP8), weight_OK, scale_O, bias_O, dtype=x_MK.dtype)
