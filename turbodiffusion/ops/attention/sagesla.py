"""SageSLA: sparse-linear attention whose sparse part is computed in 8 bits (TurboDiffusion, arXiv 2512.16093).

The choice of blocks and the linear part are those of `sla.py`, the 8-bit arithmetic is that of `sage.py`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from turbodiffusion.ops.attention.sage import attend_quantized, quantize
from turbodiffusion.ops.attention.sla import (
    block_map,
    check_map,
    check_sla,
    check_sparse,
    kept_keys,
    projected_linear_attention,
)
from turbodiffusion.ops.contract import check_no_grad, check_triton, select_impl


def sage_sparse_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    map_BHNK: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 64,
    qk: str = "int8",
    impl: str = "reference",
) -> Tensor:
    """Attend as `sla.sparse_attention`, in 8 bits: [B, L, H, D] in q's dtype. No gradient.

    The mean of k and the scales of v are taken over all tokens, not over the kept ones: they do not depend on the map.
    `qk` is the format of q and k, "int8" or "fp8". Raises ValueError as `sla.sparse_attention` and `sage_attention` do.
    """
    check_sparse("sage_sparse_attention", q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k)
    check_no_grad("sage_sparse_attention", q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    attend = select_impl("sage_sparse_attention", impl, {"reference": _reference, "triton": _triton})
    return attend(q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k, qk)


def sagesla_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    *,
    topk: float,
    block_q: int = 128,
    block_k: int = 64,
    qk: str = "int8",
    impl: str = "reference",
) -> Tensor:
    """Attend as `sla.sla_attention`, with the sparse part in 8 bits: [B, L, H, D] in q's dtype. No gradient.

    Raises ValueError as its parts do.
    """
    check_sla("sagesla_attention", q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D, topk)
    check_no_grad("sagesla_attention", q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    implementations: dict[str, Callable[..., Tensor]] = {"reference": _whole_reference, "triton": _whole_triton}
    attend = select_impl("sagesla_attention", impl, implementations)
    return attend(q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D, topk, block_q, block_k, qk)


def _reference(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, map_BHNK: Tensor, block_q: int, block_k: int, qk: str
) -> Tensor:
    quantized = quantize(q_BLHD, k_BLHD, v_BLHD, block_q, block_k, qk)
    tiles = kept_keys(map_BHNK, k_BLHD.shape[1], block_q, block_k)
    return attend_quantized(quantized, tiles, block_q, block_k, q_BLHD.dtype)


def _whole_reference(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    topk: float,
    block_q: int,
    block_k: int,
    qk: str,
) -> Tensor:
    kept = block_map(q_BLHD, k_BLHD, topk=topk, block_q=block_q, block_k=block_k)
    sparse = sage_sparse_attention(q_BLHD, k_BLHD, v_BLHD, kept, block_q=block_q, block_k=block_k, qk=qk)
    return sparse + projected_linear_attention(q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D)


# The kernels' modules import triton, which not every machine has: they are imported when they are chosen.


def _triton(q: Tensor, k: Tensor, v: Tensor, map_BHNK: Tensor, block_q: int, block_k: int, qk: str) -> Tensor:
    check_triton("sage_sparse_attention", q_BLHD=q, k_BLHD=k, v_BLHD=v, map_BHNK=map_BHNK)
    check_map(map_BHNK, -(-k.shape[1] // block_k))
    from turbodiffusion.ops.attention.kernels.sage import sage_sparse_attention as kernel

    return kernel(q, k, v, map_BHNK, block_q, block_k, qk)


def _whole_triton(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    check_triton("sagesla_attention", q_BLHD=q, k_BLHD=k, v_BLHD=v)
    from turbodiffusion.ops.attention.kernels.sla import sagesla_attention as kernel

    return kernel(q, k, v, *others)
