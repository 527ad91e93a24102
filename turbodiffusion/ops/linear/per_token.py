"""8-bit linears in two halves: activations rounded per token, and their product with what follows it fused.

    x8, s = quantize_per_token(gelu(x))
    y = residual + gate * gelu(x8 w8^T * s * w_scale + bias)

`int8_row_linear` and `fp8_row_linear` are both halves together. Apart, one rounding serves several products (q, k and v
of one input), and the pass before can round its own output (`ops/norm/quantized_norm.py`).
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu as gelu_of

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_no_grad, check_triton, select_impl
from turbodiffusion.ops.linear.call import check_scale, scaled_product
from turbodiffusion.ops.linear.fp8 import quantize_fp8_row
from turbodiffusion.ops.linear.int8 import quantize_int8_row
from turbodiffusion.ops.rounding import FP8

_QUANTIZE = {torch.int8: quantize_int8_row, FP8: quantize_fp8_row}


def quantize_per_token(
    x: Tensor, dtype: torch.dtype, *, gelu: bool = False, impl: str = "reference"
) -> tuple[Tensor, Tensor]:
    """Round x [..., K], after GELU's tanh form if asked, to int8 or float8_e4m3fn [..., K] with scale float32 [...].

    One scale per token. GELU's result is not rounded to x's dtype before. No gradient. Raises ValueError for another
    dtype.
    """
    check_dtype("quantize_per_token", FLOATS, x=x)
    check_no_grad("quantize_per_token", x=x)
    if dtype not in _QUANTIZE:
        raise ValueError(f"quantize_per_token: dtype must be torch.int8 or {FP8}, got {dtype}")
    function = select_impl("quantize_per_token", impl, {"reference": _quantize_reference, "triton": _quantize_triton})
    values, scale = function(x.reshape(-1, x.shape[-1]), dtype, gelu)
    return values.reshape(x.shape), scale.reshape(x.shape[:-1])


def per_token_linear(
    x: Tensor,
    x_scale: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    *,
    dtype: torch.dtype,
    gelu: bool = False,
    gate_BO: Tensor | None = None,
    residual: Tensor | None = None,
    impl: str = "reference",
) -> Tensor:
    """Multiply x [..., K] with scale [...], from `quantize_per_token`, by the weight: [..., O] in `dtype`.

    Computed in float32 to the end. x and the weight share int8 or float8_e4m3fn. A gate (float32) has a row for each of
    B equal parts of x's tokens, so for each video where x is [B, L, K]; the residual is [..., O] in `dtype`. No
    gradient.
    Raises ValueError for shapes or dtypes that do not agree.
    """
    x_MK, out = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], weight_OK.shape[0])
    check_layout("per_token_linear", x_MK=x_MK, weight_OK=weight_OK, **({} if bias_O is None else {"bias_O": bias_O}))
    check_dtype("per_token_linear", tuple(_QUANTIZE), x=x, weight_OK=weight_OK)
    check_scale("per_token_linear", x_scale, x.shape[:-1])
    check_scale("per_token_linear", scale_O, weight_OK.shape[:1])
    if gate_BO is not None:
        check_layout("per_token_linear", weight_OK=weight_OK, gate_BO=gate_BO)
        check_dtype("per_token_linear", (torch.float32,), gate_BO=gate_BO)
        if not gate_BO.shape[0] or x_MK.shape[0] % gate_BO.shape[0]:
            raise ValueError(f"per_token_linear: {x_MK.shape[0]} rows do not split into {gate_BO.shape[0]} gates")
    if residual is not None:
        check_dtype("per_token_linear", (dtype,), residual=residual)
        if tuple(residual.shape) != out:
            raise ValueError(f"per_token_linear: residual must be {list(out)}, got {list(residual.shape)}")
        check_no_grad("per_token_linear", residual=residual)
        residual = residual.reshape(-1, out[-1])
    function = select_impl("per_token_linear", impl, {"reference": _reference, "triton": _triton})
    return function(x_MK, x_scale.reshape(-1), weight_OK, scale_O, bias_O, dtype, gelu, gate_BO, residual).reshape(out)


def _quantize_reference(x_MK: Tensor, dtype: torch.dtype, gelu: bool) -> tuple[Tensor, Tensor]:
    return _QUANTIZE[dtype](gelu_of(x_MK.float(), approximate="tanh") if gelu else x_MK)


def _quantize_triton(x_MK: Tensor, dtype: torch.dtype, gelu: bool) -> tuple[Tensor, Tensor]:
    check_triton("quantize_per_token", x=x_MK)
    from turbodiffusion.ops.linear.kernels.quantize import quantize_per_token as kernel

    return kernel(x_MK, dtype, gelu=gelu)


def _reference(
    x_MK: Tensor,
    x_scale_M: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    gelu: bool,
    gate_BO: Tensor | None,
    residual_MO: Tensor | None,
) -> Tensor:
    y_MO = scaled_product(x_MK, x_scale_M, weight_OK, scale_O)
    if bias_O is not None:
        y_MO = y_MO + bias_O.float()
    if gelu:
        y_MO = gelu_of(y_MO, approximate="tanh")
    if gate_BO is not None:
        y_MO = y_MO * gate_BO.repeat_interleave(y_MO.shape[0] // gate_BO.shape[0], dim=0)
    if residual_MO is not None:
        y_MO = residual_MO.float() + y_MO
    return y_MO.to(dtype)


def _triton(
    x_MK: Tensor,
    x_scale_M: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    gelu: bool,
    gate_BO: Tensor | None,
    residual_MO: Tensor | None,
) -> Tensor:
    check_triton("per_token_linear", x=x_MK)
    from turbodiffusion.ops.linear.kernels.gemm import gemm

    return gemm(
        x_MK, x_scale_M, weight_OK, scale_O, bias_O, dtype=dtype, gelu=gelu, gate_BN=gate_BO, residual_MN=residual_MO
    )
