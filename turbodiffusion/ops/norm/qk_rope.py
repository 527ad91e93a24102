"""From a projection to attention's q and k: RMS norm over the model width, then rotation, of one fused buffer.

The means of blocks of tokens, which SLA's choice of blocks compares (`ops/attention/sla.block_map`), come along.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, select_impl
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import apply_rope


@dataclass(frozen=True)
class QueryKey:
    """q and k, normed and rotated; the means are float32 [B, N, H, D], a ragged last block's of the tokens it has."""

    q_BLHD: Tensor
    k_BLHD: Tensor
    pooled_q_BNHD: Tensor | None = None
    pooled_k_BNHD: Tensor | None = None


def norm_rope_qk(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    cos_sin: Tensor,
    num_heads: int,
    eps: float,
    *,
    blocks: tuple[int, int] | None = None,
    impl: str = "reference",
) -> QueryKey:
    """Norm and rotate the first and second M of the buffer's C >= 2 M columns: q and k [B, L, H, D] in its dtype.

    `cos_sin` [2, L, D // 2] is from `rope_cos_sin`. `blocks` asks for the means of blocks of that many tokens of q and
    of k, taken after rounding to the buffer's dtype. Computed in float32, rounded once. (The reference rounds as the
    separate ops do, once more between norm and rotation.) Raises ValueError for shapes or dtypes that do not agree.
    """
    op = "norm_rope_qk"
    check_layout(op, qkv_BLC=qkv_BLC, weight_q_M=weight_q_M, weight_k_M=weight_k_M)
    check_dtype(op, FLOATS, qkv_BLC=qkv_BLC)
    check_dtype(op, FLOATS, weight_q_M=weight_q_M, weight_k_M=weight_k_M)
    check_dtype(op, (torch.float32, torch.float64), cos_sin=cos_sin)
    L, width, channels = qkv_BLC.shape[1], weight_q_M.shape[0], qkv_BLC.shape[2]
    if channels < 2 * width or width % num_heads or width // num_heads % 2:
        raise ValueError(f"{op}: {channels} columns do not hold q and k of {num_heads} heads of {width} columns in all")
    if tuple(cos_sin.shape) != (2, L, width // num_heads // 2):
        raise ValueError(f"{op}: cos_sin must be {[2, L, width // num_heads // 2]}, got {list(cos_sin.shape)}")
    if blocks is not None and min(blocks) < 1:
        raise ValueError(f"{op}: blocks must hold at least one token, got {blocks}")
    function = select_impl(op, impl, {"reference": _reference, "triton": _triton})
    return function(qkv_BLC, weight_q_M, weight_k_M, cos_sin, num_heads, eps, blocks)


def _reference(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    cos_sin: Tensor,
    num_heads: int,
    eps: float,
    blocks: tuple[int, int] | None,
) -> QueryKey:
    M = weight_q_M.shape[0]
    q_BLHD, k_BLHD = (
        apply_rope(rms_norm(x_BLM, weight_M, eps).unflatten(-1, (num_heads, -1)), cos_sin)
        for x_BLM, weight_M in ((qkv_BLC[..., :M], weight_q_M), (qkv_BLC[..., M : 2 * M], weight_k_M))
    )
    if blocks is None:
        return QueryKey(q_BLHD, k_BLHD)
    return QueryKey(q_BLHD, k_BLHD, _pool(q_BLHD, blocks[0]), _pool(k_BLHD, blocks[1]))


def _pool(x_BLHD: Tensor, block: int) -> Tensor:
    return torch.stack([tokens.float().mean(dim=1) for tokens in x_BLHD.split(block, dim=1)], dim=1)


def _triton(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    cos_sin: Tensor,
    num_heads: int,
    eps: float,
    blocks: tuple[int, int] | None,
) -> QueryKey:
    check_triton("norm_rope_qk", qkv_BLC=qkv_BLC, cos_sin=cos_sin)
    from turbodiffusion.ops.norm.kernels.qk_rope import norm_rope

    M = weight_q_M.shape[0]
    block_q, block_k = blocks or (None, None)
    q_BLHD, pooled_q = norm_rope(qkv_BLC[..., :M], weight_q_M, cos_sin, num_heads, eps, block_q)
    k_BLHD, pooled_k = norm_rope(qkv_BLC[..., M : 2 * M], weight_k_M, cos_sin, num_heads, eps, block_k)
    return QueryKey(q_BLHD, k_BLHD, pooled_q, pooled_k)
