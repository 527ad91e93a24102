"""Layer norm (arXiv 1607.06450), and with the modulation of a diffusion transformer (adaLN, arXiv 2212.09748, 3.2)."""

from torch import Tensor
from torch.nn.functional import layer_norm as torch_layer_norm

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, select_impl


def modulated_layer_norm(
    x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float, *, impl: str = "reference"
) -> Tensor:
    """Compute norm(x) * (1 + scale) + shift, one shift and scale per video, no affine of its own: [B, L, M].

    Computed in float32 and returned in x's dtype; shift and scale may have another dtype (Wan keeps them float32).
    Raises ValueError when B or M differ.
    """
    check_layout("modulated_layer_norm", x_BLM=x_BLM, shift_BM=shift_BM, scale_BM=scale_BM)
    check_dtype("modulated_layer_norm", FLOATS, x_BLM=x_BLM)
    check_dtype("modulated_layer_norm", FLOATS, shift_BM=shift_BM, scale_BM=scale_BM)
    function = select_impl("modulated_layer_norm", impl, {"reference": _reference, "triton": _triton})
    return function(x_BLM, shift_BM, scale_BM, eps)


def _reference(x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float) -> Tensor:
    dtype = at_least_float32(x_BLM.dtype)
    normed = torch_layer_norm(x_BLM.to(dtype), x_BLM.shape[-1:], eps=eps)
    shift, scale = shift_BM.to(dtype)[:, None], scale_BM.to(dtype)[:, None]
    return (normed * (1 + scale) + shift).to(x_BLM.dtype)


def _triton(x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float) -> Tensor:
    check_triton("modulated_layer_norm", x_BLM=x_BLM, shift_BM=shift_BM, scale_BM=scale_BM)
    from turbodiffusion.ops.norm.kernels.row_norm import row_norm

    return row_norm(x_BLM, scale_BM, shift_BM, eps, centre=True, one_plus=True, dtype=x_BLM.dtype)[0]


def layer_norm(x: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, *, impl: str = "reference") -> Tensor:
    """Compute norm(x) * weight + bias over the last dimension of x [..., M], in float32, returned in x's dtype.

    Raises ValueError when weight or bias do not have x's last size.
    """
    if x.ndim < 1 or any(tuple(w.shape) != tuple(x.shape[-1:]) for w in (weight_M, bias_M)):
        raise ValueError(
            f"layer_norm: weight and bias must be [M] for x [..., M], got {list(weight_M.shape)} and "
            f"{list(bias_M.shape)} for {list(x.shape)}"
        )
    check_dtype("layer_norm", FLOATS, x=x)
    check_dtype("layer_norm", FLOATS, weight_M=weight_M, bias_M=bias_M)
    function = select_impl("layer_norm", impl, {"reference": _affine_reference, "triton": _affine_triton})
    return function(x, weight_M, bias_M, eps)


def _affine_reference(x: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    dtype = at_least_float32(x.dtype)
    return torch_layer_norm(x.to(dtype), x.shape[-1:], weight_M.to(dtype), bias_M.to(dtype), eps).to(x.dtype)


def _affine_triton(x: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    check_triton("layer_norm", x=x, weight_M=weight_M, bias_M=bias_M)
    from turbodiffusion.ops.norm.kernels.row_norm import row_norm

    x_1LM = x.reshape(1, -1, x.shape[-1])
    return row_norm(x_1LM, weight_M, bias_M, eps, centre=True, one_plus=False, dtype=x.dtype)[0].reshape(x.shape)
