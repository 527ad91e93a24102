"""Gradients of the sparse attention in Triton, as in FlashAttention-2 (arXiv 2307.08691, algorithm 2).

    P = exp(S - lse), dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O)), dQ = dS K, dK = dS^T Q

dQ is summed over the key blocks that a query block keeps, dK and dV over the query blocks that keep a key block: the
inverted map, by a stable sort, so that two runs give the same bits and no atomic additions are needed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.kernels.sparse import LOG2E, check_sizes, describe

_LOG2E = tl.constexpr(LOG2E)
_ROWS = 64  # of a query block that the gradients of keys take at a time


@triton.jit(do_not_specialize=["L", "H", "kept"])
def _query_kernel(
    q_desc, k_desc, v_desc, grad_desc, out_desc, map_ptr, lse_ptr, delta_ptr, dq_ptr, L, H, kept, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, B * H): dq, contiguous [B, L, H, D], and delta = rowsum(dO * O), [B, H, L]."""
    n = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    rows = n * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = q_desc.load([b, n * BLOCK_Q, h, 0]).reshape(BLOCK_Q, D)
    grad = grad_desc.load([b, n * BLOCK_Q, h, 0]).reshape(BLOCK_Q, D)
    out = out_desc.load([b, n * BLOCK_Q, h, 0]).reshape(BLOCK_Q, D)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    at = bh.to(tl.int64) * L + rows
    tl.store(delta_ptr + at, delta, mask=rows < L)
    lse = tl.load(lse_ptr + at, mask=rows < L, other=float("inf")) * _LOG2E  # rows past the end weigh nothing
    map_ptr += (bh * tl.num_programs(0) + n).to(tl.int64) * kept
    dq = tl.zeros([BLOCK_Q, D], tl.float32)
    for j in range(kept):
        start = tl.load(map_ptr + j) * BLOCK_K
        k = k_desc.load([b, start, h, 0]).reshape(BLOCK_K, D)
        v = v_desc.load([b, start, h, 0]).reshape(BLOCK_K, D)
        scores = tl.dot(q, k.T, input_precision="ieee") * (scale * _LOG2E)
        scores = tl.where((start + tl.arange(0, BLOCK_K) < L)[None, :], scores, float("-inf"))
        ds = tl.exp2(scores - lse[:, None]) * (tl.dot(grad, v.T, input_precision="ieee") - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    dq_ptr += ((b.to(tl.int64) * L + n * BLOCK_Q) * H + h) * D
    dq_ptrs = dq_ptr + tl.arange(0, BLOCK_Q)[:, None] * (H * D) + tl.arange(0, D)[None, :]
    tl.store(dq_ptrs, (dq * scale).to(dq_ptr.dtype.element_ty), mask=rows[:, None] < L)


@triton.jit(do_not_specialize=["L", "H"])
def _key_kernel(
    q_desc, k_desc, v_desc, grad_desc, first_ptr, keeper_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, L, H, scale,
    ROWS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks, B * H): dk and dv, contiguous [B, L, H, D]; zero where no query block keeps the keys.

    ROWS of a query block are taken at a time: with two accumulators, whole ones would not fit the registers.
    """
    PARTS: tl.constexpr = BLOCK_Q // ROWS
    m = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    k = k_desc.load([b, m * BLOCK_K, h, 0]).reshape(BLOCK_K, D)
    v = v_desc.load([b, m * BLOCK_K, h, 0]).reshape(BLOCK_K, D)
    dk = tl.zeros([BLOCK_K, D], tl.float32)
    dv = tl.zeros([BLOCK_K, D], tl.float32)
    first = bh * tl.num_programs(0) + m
    for i in range(tl.load(first_ptr + first) * PARTS, tl.load(first_ptr + first + 1) * PARTS):
        start = tl.load(keeper_ptr + i // PARTS) * BLOCK_Q + i % PARTS * ROWS
        rows = start + tl.arange(0, ROWS)
        at = bh.to(tl.int64) * L + rows
        lse = tl.load(lse_ptr + at, mask=rows < L, other=float("inf")) * _LOG2E
        delta = tl.load(delta_ptr + at, mask=rows < L, other=0.0)
        q = q_desc.load([b, start, h, 0]).reshape(ROWS, D)
        grad = grad_desc.load([b, start, h, 0]).reshape(ROWS, D)
        p = tl.exp2(tl.dot(k, q.T, input_precision="ieee") * (scale * _LOG2E) - lse[None, :])
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision="ieee")
        ds = p * (tl.dot(v, grad.T, input_precision="ieee") - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    at = ((b.to(tl.int64) * L + m * BLOCK_K) * H + h) * D
    at += tl.arange(0, BLOCK_K)[:, None] * (H * D) + tl.arange(0, D)[None, :]
    inside = m * BLOCK_K + tl.arange(0, BLOCK_K)[:, None] < L
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def invert(map_BHNK: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """List the query blocks that keep each key block, ascending, head after head, int32 [B * H * N * K].

    The other result, int32 [B * H * blocks + 1], says where those of each key block of each head begin.
    """
    B, H, N, K = map_BHNK.shape
    head = torch.arange(B * H, dtype=torch.int32, device=map_BHNK.device)[:, None]
    keys, order = (map_BHNK.reshape(B * H, N * K) + head * blocks).flatten().sort(stable=True)
    ends = torch.arange(B * H * blocks + 1, dtype=torch.int32, device=map_BHNK.device)
    return (order // K % N).int(), torch.searchsorted(keys, ends, out_int32=True)


def sparse_backward(
    grad_BLHD: Tensor,
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    map_BHNK: Tensor,
    out_BLHD: Tensor,
    lse_BHL: Tensor,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `sla.sparse_attention_backward`: the gradients of q, k and v, contiguous, in q's dtype."""
    B, L, H, D = q_BLHD.shape
    check_sizes("sparse_attention", D, block_q, block_k)
    q, grad, out = (describe(x, block_q) for x in (q_BLHD, grad_BLHD, out_BLHD))
    part_q, part_grad = (describe(x, _ROWS) for x in (q_BLHD, grad_BLHD))
    k, v = (describe(x, block_k) for x in (k_BLHD, v_BLHD))
    lse = lse_BHL.contiguous()
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty(B, L, H, D, dtype=q_BLHD.dtype, device=q_BLHD.device) for _ in range(3))
    sizes = {"BLOCK_Q": block_q, "BLOCK_K": block_k, "D": D, "num_warps": 8, "num_stages": 2}
    blocks = -(-L // block_k)
    _query_kernel[(-(-L // block_q), B * H)](
        q, k, v, grad, out, map_BHNK.contiguous(), lse, delta, dq, L, H, map_BHNK.shape[-1], D**-0.5, **sizes
    )
    keepers, first = invert(map_BHNK, blocks)
    _key_kernel[(blocks, B * H)](
        part_q, k, v, part_grad, first, keepers, lse, delta, dk, dv, L, H, D**-0.5, ROWS=_ROWS, **sizes
    )
    return dq, dk, dv
