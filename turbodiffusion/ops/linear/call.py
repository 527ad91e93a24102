"""What the quantized linears share: checks on the way in, the product with per-token scales, the bias at the end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_no_grad


def check_scale(op: str, scale: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless `scale` is float32 and has this shape."""
    check_dtype(op, (torch.float32,), scale=scale)
    if tuple(scale.shape) != tuple(shape):
        raise ValueError(f"{op}: scale must be {list(shape)}, got {list(scale.shape)}")


def check_and_flatten(op: str, x: Tensor, weight_OK: Tensor, bias: Tensor | None, weight_dtype: torch.dtype) -> Tensor:
    """Check the arguments of a quantized linear and return x [..., K] as [M, K]."""
    x_MK = x.reshape(-1, x.shape[-1]) if x.ndim else x
    check_layout(op, weight_OK=weight_OK, x_MK=x_MK, **({} if bias is None else {"bias_O": bias}))
    check_dtype(op, (weight_dtype,), weight_OK=weight_OK)
    check_dtype(op, FLOATS, x=x)
    check_no_grad(op, x=x)
    return x_MK


def scaled_product(x_MK: Tensor, x_scale_M: Tensor, weight_OK: Tensor, weight_scale_O: Tensor) -> Tensor:
    """Multiply 8-bit values, sum in float32, then apply the scales of token and output feature: float32 [M, O]."""
    return x_MK.float() @ weight_OK.float().T * x_scale_M[:, None] * weight_scale_O


def add_bias(y_MO: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add the bias in float32, then round to `dtype`."""
    return (y_MO if bias_O is None else y_MO + bias_O.float()).to(dtype)
