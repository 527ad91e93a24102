"""Dense attention (arXiv 1706.03762, equation 1): softmax(q k^T / sqrt(D)) v, each query over all keys.

Its tangent, for distillation (rCM, arXiv 2510.08431): with S = q k^T / sqrt(D), P = softmax(S) and O = P v,

    dS = (dq k^T + q dk^T) / sqrt(D)
    dO = (P * dS) v - rowsum(P * dS) O + P dv

Fused attention has no forward-mode derivative in PyTorch; here dual tensors (`torch.autograd.forward_ad`) get theirs by
these formulas.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from turbodiffusion.ops.contract import (
    FLOATS,
    at_least_float32,
    check_dtype,
    check_layout,
    check_no_grad,
    check_triton,
    select_impl,
)
from turbodiffusion.ops.implementations import HEAD_DIMS

# On Hopper cuDNN's is the fastest of PyTorch's fused attentions by far and, by default, the last that PyTorch takes.
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def dense_attention(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, *, impl: str = "sdpa") -> Tensor:
    """Attend without a mask: [B, L, H, D] in q's dtype; q, k and v share one dtype.

    "reference" writes the softmax out in float32 and holds all L x S scores; "sdpa" is PyTorch's fused attention, and
    "cudnn" the same with cuDNN's kernel before the others, for what it takes (bfloat16 and float16 on a GPU).
    Of dual tensors the result is dual, by `attention_tangent` and without a gradient: "cudnn" takes its kernel, which
    knows no `torch.func`, the others its reference.
    Raises ValueError for shapes or dtypes that do not agree.
    """
    check_layout("dense_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    check_dtype("dense_attention", FLOATS, q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    implementations = {"reference": _reference, "sdpa": _sdpa, "cudnn": _cudnn}
    attend = select_impl("dense_attention", impl, implementations)
    if not torch.compiler.is_compiling():
        primals, tangents = zip(*(forward_ad.unpack_dual(x) for x in (q_BLHD, k_BSHD, v_BSHD)), strict=True)
        if any(tangent is not None for tangent in tangents):
            check_no_grad("dense_attention of dual tensors", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
            moved = (torch.zeros_like(x) if dx is None else dx for x, dx in zip(primals, tangents, strict=True))
            by = "triton" if impl == "cudnn" else "reference"
            return forward_ad.make_dual(*attention_tangent(*primals, *moved, impl=by))
    return attend(q_BLHD, k_BSHD, v_BSHD)


@torch.no_grad()
def attention_tangent(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    dq_BLHD: Tensor,
    dk_BSHD: Tensor,
    dv_BSHD: Tensor,
    *,
    impl: str = "reference",
) -> tuple[Tensor, Tensor]:
    """Attend, and take the derivative along (dq, dk, dv): two tensors [B, L, H, D] in q's dtype, without a gradient.

    "reference" holds all L x S scores three times, "triton" none of them. Raises ValueError for shapes or dtypes that
    do not agree.
    """
    tensors = {
        "q_BLHD": q_BLHD,
        "k_BSHD": k_BSHD,
        "v_BSHD": v_BSHD,
        "dq_BLHD": dq_BLHD,
        "dk_BSHD": dk_BSHD,
        "dv_BSHD": dv_BSHD,
    }
    check_layout("attention_tangent", **tensors)
    check_dtype("attention_tangent", FLOATS, **tensors)
    implementations: dict[str, Callable] = {"reference": _tangent_reference, "triton": _tangent_triton}
    return select_impl("attention_tangent", impl, implementations)(*tensors.values())


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


def _tangent_reference(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, dq_BLHD: Tensor, dk_BSHD: Tensor, dv_BSHD: Tensor
) -> tuple[Tensor, Tensor]:
    dtype, scale = at_least_float32(q_BLHD.dtype), q_BLHD.shape[-1] ** -0.5
    q, k, v, dq, dk, dv = (x.to(dtype) for x in (q_BLHD, k_BSHD, v_BSHD, dq_BLHD, dk_BSHD, dv_BSHD))
    p_BHLS = (torch.einsum("blhd,bshd->bhls", q, k) * scale).softmax(dim=-1)
    moved = p_BHLS * (torch.einsum("blhd,bshd->bhls", dq, k) + torch.einsum("blhd,bshd->bhls", q, dk)) * scale
    out = torch.einsum("bhls,bshd->blhd", p_BHLS, v)
    dout = torch.einsum("bhls,bshd->blhd", moved, v) + torch.einsum("bhls,bshd->blhd", p_BHLS, dv)
    dout -= moved.sum(dim=-1).transpose(1, 2)[..., None] * out
    return out.to(q_BLHD.dtype), dout.to(q_BLHD.dtype)


def _tangent_triton(q_BLHD: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    if any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in (q_BLHD, *others)):
        raise ValueError(
            "attention_tangent: impl 'triton' takes dual tensors of torch.autograd.forward_ad, not torch.func's"
        )
    check_triton("attention_tangent", q_BLHD=q_BLHD)
    if q_BLHD.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"attention_tangent: impl 'triton' takes a head dim of {', '.join(map(str, HEAD_DIMS))}, got "
            f"{q_BLHD.shape[-1]}; use 'reference'"
        )
    # imports triton, which not every machine has
    from turbodiffusion.ops.attention.kernels.tangent import attention_tangent as kernel

    return kernel(q_BLHD, *others)
