"""A 3x3x3 convolution to very few channels: one matrix product for all 27 taps, then their sum over shifts.

    p[(kt, kh, kw, o)] = weight[o, :, kt, kh, kw] . x        at every position
    y[t, h, w, o] = bias[o] + sum over taps of p[(kt, kh, kw, o)][t + kt, h + kh - 1, w + kw - 1]

A tensor core's tile has at least 64 columns, of which a convolution to 3 channels fills 3; this product fills 81. The
last convolution of the Wan VAE (96 to 3 channels) then reads its input once and moves 1.7 times its bytes besides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, select_impl


def conv3d_few_channels(x_BPHWC: Tensor, weight: Tensor, bias_O: Tensor, *, impl: str = "reference") -> Tensor:
    """Convolve x to [B, P - 2, H, W, O]: no padding in time, zeros around the picture, as a causal convolution.

    weight is [O, C, 3, 3, 3]. Products are rounded to x's dtype before they are added up in float32 ("triton").
    Raises ValueError for shapes or dtypes that do not agree, and for fewer than 3 frames.
    """
    op = "conv3d_few_channels"
    sizes = check_layout(op, x_BPHWC=x_BPHWC, bias_O=bias_O)
    check_dtype(op, FLOATS, x_BPHWC=x_BPHWC, weight=weight, bias_O=bias_O)
    if tuple(weight.shape) != (sizes["O"], sizes["C"], 3, 3, 3) or sizes["P"] < 3:
        raise ValueError(
            f"{op}: weight must be {[sizes['O'], sizes['C'], 3, 3, 3]} and P at least 3, got {list(weight.shape)} and "
            f"P={sizes['P']}"
        )
    return select_impl(op, impl, {"reference": _reference, "triton": _triton})(x_BPHWC, weight, bias_O)


def _reference(x_BPHWC: Tensor, weight: Tensor, bias_O: Tensor) -> Tensor:
    return F.conv3d(x_BPHWC.movedim(-1, 1), weight, bias_O, padding=(0, 1, 1)).movedim(1, -1)


def _triton(x_BPHWC: Tensor, weight: Tensor, bias_O: Tensor) -> Tensor:
    check_triton("conv3d_few_channels", x_BPHWC=x_BPHWC, weight=weight, bias_O=bias_O)
    from turbodiffusion.ops.vae.kernels.conv3d_few_channels import sum_taps

    channels = x_BPHWC.shape[-1]
    weight_KC = weight.permute(2, 3, 4, 0, 1).reshape(-1, channels)
    # A row for each tap: its neighbours in the picture are its neighbours in memory, and reading it shifted is cheap.
    p_KX = torch.mm(weight_KC, x_BPHWC.reshape(-1, channels).T)
    return sum_taps(p_KX, bias_O, tuple(x_BPHWC.shape[:4]))
