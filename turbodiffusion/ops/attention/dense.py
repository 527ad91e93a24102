"""Dense attention (arXiv 1706.03762, equation 1): softmax(q k^T / sqrt(D)) v, each query over all keys."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, choose


def dense_attention(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, *, impl: str = "sdpa") -> Tensor:
    """Attention without a mask, [B, L, H, D] in q's dtype; q, k and v share one dtype.

    "reference" writes the softmax out in float32 and holds all L x S scores; "sdpa" is PyTorch's fused attention.
    Raises ValueError for shapes or dtypes that do not agree.
    """
    check_layout("dense_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    check_dtype("dense_attention", FLOATS, q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    return choose("dense_attention", impl, {"reference": _reference, "sdpa": _sdpa})(q_BLHD, k_BSHD, v_BSHD)


def _reference(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    dtype = at_least_float32(q_BLHD.dtype)
    q, k, v = q_BLHD.to(dtype), k_BSHD.to(dtype), v_BSHD.to(dtype)
    scores_BHLS = torch.einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhls,bshd->blhd", scores_BHLS.softmax(dim=-1), v).to(q_BLHD.dtype)


def _sdpa(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    q_BHLD, k_BHSD, v_BHSD = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    return scaled_dot_product_attention(q_BHLD, k_BHSD, v_BHSD).transpose(1, 2)
