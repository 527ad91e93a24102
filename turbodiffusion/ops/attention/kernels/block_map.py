"""SLA's choice of blocks in Triton: scores of block means in float32, and the highest of each row.

A row's K-th highest score is found bit by bit: floats ordered as unsigned integers, 32 counts. Everything above it is
kept, and of those equal to it the lowest blocks: the rule is exact, the order ascending, and nothing is sorted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.kernels.quantize import pool

_TILE = 64


@triton.jit(do_not_specialize=["N", "M"])
def _score_kernel(q_ptr, k_ptr, mean_ptr, scores_ptr, N, M, TILE: tl.constexpr, D: tl.constexpr):
    """Grid (tiles of N, tiles of M, B * H): q . (k - mean), float32 [B * H, N, M]."""
    bh = tl.program_id(2)
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, D)
    q = tl.load(q_ptr + (bh * N + n[:, None]) * D + column[None, :], mask=n[:, None] < N, other=0.0)
    k = tl.load(k_ptr + (bh * M + m[:, None]) * D + column[None, :], mask=m[:, None] < M, other=0.0)
    k -= tl.load(mean_ptr + bh * D + column)[None, :]
    # Three products of tf32 parts: float32 to within 2^-21, on tensor cores.
    scores = tl.dot(q, k.T, input_precision="tf32x3")
    at = (bh * N + n[:, None]).to(tl.int64) * M + m[None, :]
    tl.store(scores_ptr + at, scores, mask=(n[:, None] < N) & (m[None, :] < M))


@triton.jit(do_not_specialize=["M", "kept"])
def _select_kernel(scores_ptr, map_ptr, M, kept, WIDTH: tl.constexpr):
    """Grid (rows): the `kept` highest of M scores, ascending; equal scores go to the lower block."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.arange(0, WIDTH)
    score = tl.load(scores_ptr + row * M + m, mask=m < M, other=0.0)
    score = tl.where(score == 0.0, 0.0, score)  # -0 equals 0
    bits = score.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    ordered = tl.where(m < M, ordered, 0)
    threshold = tl.full([], 0, tl.uint32)
    for i in range(32):
        higher = threshold | (tl.full([], 0x80000000, tl.uint32) >> i)
        threshold = tl.where(tl.sum((ordered >= higher).to(tl.int32), 0) >= kept, higher, threshold)
    above = (ordered > threshold).to(tl.int32)
    equal = ((ordered == threshold) & (m < M)).to(tl.int32)
    chosen = above | (equal & (tl.cumsum(equal, 0) <= kept - tl.sum(above, 0)).to(tl.int32))
    tl.store(map_ptr + row * kept + tl.cumsum(chosen, 0) - 1, m, mask=chosen == 1)


def choose_blocks(pooled_q_BHND: Tensor, pooled_k_BHMD: Tensor, mean_BHD: Tensor, topk: float) -> Tensor:
    """Choose the map, int32 [B, H, N, max(1, int(topk * M))], from block means of q and k and the mean of k."""
    B, H, N, D = pooled_q_BHND.shape
    M = pooled_k_BHMD.shape[2]
    kept = max(1, int(topk * M))
    scores = torch.empty(B, H, N, M, dtype=torch.float32, device=pooled_q_BHND.device)
    _score_kernel[(-(-N // _TILE), -(-M // _TILE), B * H)](
        pooled_q_BHND, pooled_k_BHMD, mean_BHD, scores, N, M, TILE=_TILE, D=D
    )
    return select_highest(scores, kept)


def select_highest(scores_BHNM: Tensor, kept: int) -> Tensor:
    """Select the `kept` highest of each row of contiguous float32 scores, ascending, int32 [B, H, N, kept]."""
    B, H, N, M = scores_BHNM.shape
    kept_blocks = torch.empty(B, H, N, kept, dtype=torch.int32, device=scores_BHNM.device)
    width = triton.next_power_of_2(M)
    # A single warp counts without a barrier; 32 scores a thread fit its registers.
    _select_kernel[(B * H * N,)](scores_BHNM, kept_blocks, M, kept, WIDTH=width, num_warps=max(1, width // 1024))
    return kept_blocks


def block_map(q_BLHD: Tensor, k_BLHD: Tensor, topk: float, block_q: int, block_k: int) -> Tensor:
    """Run `sla.block_map` from q and k alone; where the linear part is computed too, its pass has the means of k."""
    tokens = k_BLHD.shape[1]
    pooled_k = pool(k_BLHD, block_k)
    rows = torch.full((pooled_k.shape[2], 1), block_k, device=k_BLHD.device)
    rows[-1] -= pooled_k.shape[2] * block_k - tokens
    return choose_blocks(pool(q_BLHD, block_q), pooled_k, (pooled_k * rows).sum(dim=2) / tokens, topk)
