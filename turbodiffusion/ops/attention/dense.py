"""Dense attention (arXiv 1706.03762, equation 1): softmax(q k^T / sqrt(D)) v, each query over all keys."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, choose

# On Hopper cuDNN's is the fastest of PyTorch's fused attentions by far and, by default, the last that PyTorch takes.
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def dense_attention(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, *, impl: str = "sdpa") -> Tensor:
    """Attention without a mask, [B, L, H, D] in q's dtype; q, k and v share one dtype.

    "reference" writes the softmax out in float32 and holds all L x S scores; "sdpa" is PyTorch's fused attention, and
    "cudnn" the same with cuDNN's kernel before the others, for what it takes (bfloat16 and float16 on a GPU).
    Raises ValueError for shapes or dtypes that do not agree.
    """
    check_layout("dense_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    check_dtype("dense_attention", FLOATS, q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    implementations = {"reference": _reference, "sdpa": _sdpa, "cudnn": _cudnn}
    return choose("dense_attention", impl, implementations)(q_BLHD, k_BSHD, v_BSHD)


def _reference(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    dtype = at_least_float32(q_BLHD.dtype)
    q, k, v = q_BLHD.to(dtype), k_BSHD.to(dtype), v_BSHD.to(dtype)
    scores_BHLS = torch.einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhls,bshd->blhd", scores_BHLS.softmax(dim=-1), v).to(q_BLHD.dtype)


def _sdpa(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    q_BHLD, k_BHSD, v_BHSD = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    return scaled_dot_product_attention(q_BHLD, k_BHSD, v_BHSD).transpose(1, 2)


def _cudnn(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        return _sdpa(q_BLHD, k_BSHD, v_BSHD)
