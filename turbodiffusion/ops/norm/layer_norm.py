"""Layer norm with the modulation of a diffusion transformer (adaLN, arXiv 2212.09748, section 3.2)."""

from torch import Tensor
from torch.nn.functional import layer_norm

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, choose


def modulated_layer_norm(
    x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float, *, impl: str = "reference"
) -> Tensor:
    """norm(x) * (1 + scale) + shift, one shift and scale per video, no affine of its own.

    Computed in float32 and returned in x's dtype; shift and scale may have another dtype (Wan keeps them float32).
    Raises ValueError when B or M differ.
    """
    check_layout("modulated_layer_norm", x_BLM=x_BLM, shift_BM=shift_BM, scale_BM=scale_BM)
    check_dtype("modulated_layer_norm", FLOATS, x_BLM=x_BLM)
    check_dtype("modulated_layer_norm", FLOATS, shift_BM=shift_BM, scale_BM=scale_BM)
    function = choose("modulated_layer_norm", impl, {"reference": _reference, "triton": _triton})
    return function(x_BLM, shift_BM, scale_BM, eps)


def _reference(x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float) -> Tensor:
    dtype = at_least_float32(x_BLM.dtype)
    normed = layer_norm(x_BLM.to(dtype), x_BLM.shape[-1:], eps=eps)
    shift, scale = shift_BM.to(dtype)[:, None], scale_BM.to(dtype)[:, None]
    return (normed * (1 + scale) + shift).to(x_BLM.dtype)


def _triton(x_BLM: Tensor, shift_BM: Tensor, scale_BM: Tensor, eps: float) -> Tensor:
    check_triton("modulated_layer_norm", x_BLM=x_BLM, shift_BM=shift_BM, scale_BM=scale_BM)
    from turbodiffusion.ops.norm.row_norm_triton import row_norm

    return row_norm(x_BLM, scale_BM, shift_BM, eps, centre=True, one_plus=True, dtype=x_BLM.dtype)[0]
