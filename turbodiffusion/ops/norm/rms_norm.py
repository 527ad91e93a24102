"""Root mean square norm (arXiv 1910.07467, equation 4): y = x / sqrt(mean(x^2) + eps) * weight."""

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_triton, select_impl


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, impl: str = "reference") -> Tensor:
    """Norm x over its last dimension, computed in float32 and returned in x's dtype.

    x is [..., M] and weight [M]; Wan norms q and k over the full model width, before the split into heads.
    Raises ValueError when the weight does not have x's last size.
    """
    if weight.ndim != 1 or x.ndim < 1 or weight.shape[0] != x.shape[-1]:
        raise ValueError(f"rms_norm: weight must be [M] for x [..., M], got {list(weight.shape)} for {list(x.shape)}")
    check_dtype("rms_norm", FLOATS, x=x)
    check_dtype("rms_norm", FLOATS, weight=weight)
    return select_impl("rms_norm", impl, {"reference": _reference, "triton": _triton})(x, weight, eps)


def _reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(at_least_float32(x.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(wide.dtype)).to(x.dtype)


def _triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check_triton("rms_norm", x=x, weight=weight)
    from turbodiffusion.ops.norm.kernels.row_norm import row_norm

    x_1LM = x.reshape(1, -1, x.shape[-1])
    return row_norm(x_1LM, weight, None, eps, centre=False, one_plus=False, dtype=x.dtype)[0].reshape(x.shape)
