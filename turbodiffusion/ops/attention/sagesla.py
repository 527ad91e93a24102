"""SageSLA: sparse-linear attention whose sparse part is computed in 8 bits (TurboDiffusion, arXiv 2512.16093).

The choice of blocks and the linear part are those of `sla.py`, the 8-bit arithmetic is that of `sage.py`.
"""

from torch import Tensor

from turbodiffusion.ops.attention.sage import attend_quantized, quantize
from turbodiffusion.ops.attention.sla import block_map, check_sparse, kept_keys, projected_linear_attention
from turbodiffusion.ops.contract import check_no_grad, choose


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
    """As `sla.sparse_attention`, computed in 8 bits: [B, L, H, D] in q's dtype. No gradient.

    The mean of k and the scales of v are taken over all tokens, not over the kept ones: they do not depend on the map.
    `qk` is the format of q and k, "int8" or "fp8". Raises ValueError as `sla.sparse_attention` and `sage_attention` do.
    """
    check_sparse("sage_sparse_attention", q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k)
    check_no_grad("sage_sparse_attention", q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    attend = choose("sage_sparse_attention", impl, {"reference": _reference})
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
    """As `sla.sla_attention` with the sparse part in 8 bits: [B, L, H, D] in q's dtype. No gradient.

    Raises ValueError as its parts do.
    """
    kept = block_map(q_BLHD, k_BLHD, topk=topk, block_q=block_q, block_k=block_k, impl=impl)
    sparse = sage_sparse_attention(q_BLHD, k_BLHD, v_BLHD, kept, block_q=block_q, block_k=block_k, qk=qk, impl=impl)
    return sparse + projected_linear_attention(q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D, impl=impl)


def _reference(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, map_BHNK: Tensor, block_q: int, block_k: int, qk: str
) -> Tensor:
    quantized = quantize(q_BLHD, k_BLHD, v_BLHD, block_q, block_k, qk)
    tiles = kept_keys(map_BHNK, k_BLHD.shape[1], block_q, block_k)
    return attend_quantized(quantized, tiles, block_q, block_k, q_BLHD.dtype)
