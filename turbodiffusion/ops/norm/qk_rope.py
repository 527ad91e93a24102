"""From a projection to attention's q and k: RMS norm over the model width, then rotation, of one fused buffer.

The means of blocks of tokens, which SLA's choice of blocks compares (`ops/attention/sla.block_map`), come along.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_triton, choose
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import apply_rope


@dataclass(frozen=True)
class QueryKey:
    """Normed and turned; the means are float32 [B, N, H, D], a ragged last block's of the tokens it has."""

    q_BLHD: Tensor
    k_BLHD: Tensor
    pooled_q_BNHD: Tensor | None = None
    pooled_k_BNHD: Tensor | None = None


def norm_rope_qk(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    turns: Tensor,
    num_heads: int,
    eps: float,
    *,
    blocks: tuple[int, int] | None = None,
    impl: str = "reference",
) -> QueryKey:
    """q and k [B, L, H, D] in the buffer's dtype, from its first and second M of C >= 2 M columns.

    `turns` [2, L, D // 2] is from `rope_turns`. `blocks` asks for the means of blocks of that many tokens of q and of
    k, taken after rounding to the buffer's dtype. Computed in float32, rounded once. (The reference rounds as the
    separate ops do, once more between norm and rotation.)
    Raises ValueError for shapes or dtypes that do not agree.
    """
    op = "norm_rope_qk"
    check_layout(op, qkv_BLC=qkv_BLC, weight_q_M=weight_q_M, weight_k_M=weight_k_M)
    check_dtype(op, FLOATS, qkv_BLC=qkv_BLC)
    check_dtype(op, FLOATS, weight_q_M=weight_q_M, weight_k_M=weight_k_M)
    check_dtype(op, (torch.float32, torch.float64), turns=turns)
    L, width, channels = qkv_BLC.shape[1], weight_q_M.shape[0], qkv_BLC.shape[2]
    if channels < 2 * width or width % num_heads or width // num_heads % 2:
        raise ValueError(f"{op}: {channels} columns do not hold q and k of {num_heads} heads of {width} columns in all")
    if tuple(turns.shape) != (2, L, width // num_heads // 2):
        raise ValueError(f"{op}: turns must be {[2, L, width // num_heads // 2]}, got {list(turns.shape)}")
    if blocks is not None and min(blocks) < 1:
        raise ValueError(f"{op}: blocks must hold at least one token, got {blocks}")
    function = choose(op, impl, {"reference": _reference, "triton": _triton})
    return function(qkv_BLC, weight_q_M, weight_k_M, turns, num_heads, eps, blocks)


def _reference(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    turns: Tensor,
    num_heads: int,
    eps: float,
    blocks: tuple[int, int] | None,
) -> QueryKey:
    M = weight_q_M.shape[0]
    q_BLHD, k_BLHD = (
        apply_rope(rms_norm(x_BLM, weight_M, eps).unflatten(-1, (num_heads, -1)), turns)
        for x_BLM, weight_M in ((qkv_BLC[..., :M], weight_q_M), (qkv_BLC[..., M : 2 * M], weight_k_M))
    )
    if blocks is None:
        return QueryKey(q_BLHD, k_BLHD)
    return QueryKey(q_BLHD, k_BLHD, _pool(q_BLHD, blocks[0]), _pool(k_BLHD, blocks[1]))


def _pool(x_BLHD: Tensor, block: int) -> Tensor:
    return torch.stack([rows.float().mean(dim=1) for rows in x_BLHD.split(block, dim=1)], dim=1)


def _triton(
    qkv_BLC: Tensor,
    weight_q_M: Tensor,
    weight_k_M: Tensor,
    turns: Tensor,
    num_heads: int,
    eps: float,
    blocks: tuple[int, int] | None,
) -> QueryKey:
    check_triton("norm_rope_qk", qkv_BLC=qkv_BLC, turns=turns)
    from turbodiffusion.ops.norm.kernels.qk_rope import norm_rope

    M = weight_q_M.shape[0]
    block_q, block_k = blocks or (None, None)
    q_BLHD, pooled_q = norm_rope(qkv_BLC[..., :M], weight_q_M, turns, num_heads, eps, block_q)
    k_BLHD, pooled_k = norm_rope(qkv_BLC[..., M : 2 * M], weight_k_M, turns, num_heads, eps, block_k)
    return QueryKey(q_BLHD, k_BLHD, pooled_q, pooled_k)
