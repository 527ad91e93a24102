"""SageAttention's 8-bit inputs in Triton (see `sage.py`), and the block means from the same pass over q.

A fixed number of programs take the blocks one after the other, and prefetch the next while they round one.

Values are stored as the sparse kernel reads them: whole blocks, zeros past the end of the sequence, and the heads
outermost, so that a block is one piece of memory. v is transposed within its block, because wgmma takes an fp8 operand
only with the summed dimension innermost, and its keys are in KEY_ORDER.
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.kernels.linear import KeyState, store_row
from turbodiffusion.ops.attention.kernels.sparse import Scales, describe, row_shift
from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.rounding import largest_magnitude, levels_of, to_8bit
from turbodiffusion.ops.rounding import FP8

# Place i of every 16 holds this key. A thread of a warp computes scores 2t, 2t+1, 8+2t and 9+2t of a row (t = 0..3) and
# multiplies probabilities 4t to 4t+3: in this order they are the same ones.
KEY_ORDER = tuple(8 * half + 2 * t + one for t in range(4) for half in range(2) for one in range(2))

FORMATS = {"int8": torch.int8, "fp8": FP8}


@dataclass(frozen=True)
class Packed:
    """What the sparse kernel reads in 8 bits; N blocks of tokens each."""

    q: Tensor  # [B, H, N, block_q, D]
    k: Tensor  # [B, H, N, block_k, D], less the mean over the sequence
    v: Tensor  # fp8 [B, H, N, D, block_k], keys in KEY_ORDER
    scales: Scales
    shift_BHL: Tensor  # of q's rows for the linear term, float32: see `kernels.sparse.row_shift`


@triton.jit
def _pool_rows(low, x, n, L, bh, at, key_sum_ptr, pooled_ptr, shift_ptr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Store the mean of block n of q, which is block `at` of all heads, and the shifts of its rows if asked.

    The sum is a product with ones, each row of which is the sum: it takes no barrier. `x` is `low` in float32.
    """
    ones = tl.full([16, BLOCK], 1.0, tl.float32).to(low.dtype)
    mean = tl.dot(ones, low, input_precision="ieee") * (1.0 / tl.minimum(L - n * BLOCK, BLOCK))
    store_row(pooled_ptr + at.to(tl.int64) * D, mean, True)
    if shift_ptr is not None:
        rows = n * BLOCK + tl.arange(0, BLOCK)
        shift = row_shift(x, tl.load(key_sum_ptr + bh * D + tl.arange(0, D)))
        tl.store(shift_ptr + bh.to(tl.int64) * L + rows, shift, mask=rows < L)


@triton.jit
def _round_rows(x, at, values_ptr, scale_ptr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Store block `at` of all heads in 8 bits, and its scale."""
    dtype: tl.constexpr = values_ptr.dtype.element_ty
    scale = largest_magnitude(x, None) / levels_of(dtype)
    values_ptr += at.to(tl.int64) * BLOCK * D + tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(values_ptr, to_8bit(x * (1.0 / scale), dtype))
    tl.store(scale_ptr + at, scale)


@triton.jit(do_not_specialize=["L", "H"])
def _query_kernel(x_desc, key_sum_ptr, pooled_ptr, shift_ptr, L, H, BLOCK: tl.constexpr, D: tl.constexpr):
    """Grid (blocks, B * H): of a block of tokens the mean, and the shifts of its rows if asked."""
    n = tl.program_id(0)
    bh = tl.program_id(1)
    x = x_desc.load([bh // H, n * BLOCK, bh % H, 0]).reshape(BLOCK, D)
    at = bh * tl.num_programs(0) + n
    _pool_rows(x, x.to(tl.float32), n, L, bh, at, key_sum_ptr, pooled_ptr, shift_ptr, BLOCK, D)


@triton.jit(do_not_specialize=["L", "S", "H", "heads", "blocks_q", "blocks_k"])
def _pack_kernel(
    q_desc, k_desc, v_desc, key_sum_ptr, mean_ptr, largest_ptr, q8_ptr, k8_ptr, v8_ptr,
    q_scale_ptr, k_scale_ptr, v_scale_ptr, pooled_ptr, shift_ptr, L, S, H, heads, blocks_q, blocks_k,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (programs): blocks of v, of k and of q one after the other, the next one on its way meanwhile.

    `heads` is B * H. The pass over the keys read the last blocks last: they come first, while they may be in the cache.
    """
    first = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, D)
    dtype: tl.constexpr = v8_ptr.dtype.element_ty
    for tile in tl.range(first, blocks_k * heads, programs, num_stages=STAGES):
        bh = tile % heads
        n = blocks_k - 1 - tile // heads
        v = v_desc.load([bh // H, n * BLOCK_K, bh % H, 0]).reshape(BLOCK_K, D)
        v = v.reshape(BLOCK_K // 16, 2, 4, 2, D).permute(0, 2, 1, 3, 4).reshape(BLOCK_K, D).T  # KEY_ORDER
        scale = tl.maximum(tl.load(largest_ptr + bh * D + column), 1e-8) / levels_of(dtype)
        at = v8_ptr + (bh * blocks_k + n).to(tl.int64) * BLOCK_K * D
        values = to_8bit(v.to(tl.float32) * (1.0 / scale)[:, None], dtype)
        tl.store(at + column[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :], values)
        if n == 0:
            tl.store(v_scale_ptr + bh * D + column, scale)
    for tile in tl.range(first, blocks_k * heads, programs, num_stages=STAGES):
        bh = tile % heads
        n = blocks_k - 1 - tile // heads
        x = k_desc.load([bh // H, n * BLOCK_K, bh % H, 0]).reshape(BLOCK_K, D).to(tl.float32)
        there = n * BLOCK_K + tl.arange(0, BLOCK_K) < S
        x = tl.where(there[:, None], x - tl.load(mean_ptr + bh * D + column)[None, :], 0.0)
        _round_rows(x, bh * blocks_k + n, k8_ptr, k_scale_ptr, BLOCK_K, D)
    for tile in tl.range(first, blocks_q * heads, programs, num_stages=STAGES):
        bh = tile % heads
        n = tile // heads
        low = q_desc.load([bh // H, n * BLOCK_Q, bh % H, 0]).reshape(BLOCK_Q, D)
        x = low.to(tl.float32)
        at = bh * blocks_q + n
        _pool_rows(low, x, n, L, bh, at, key_sum_ptr, pooled_ptr, shift_ptr, BLOCK_Q, D)
        _round_rows(x, at, q8_ptr, q_scale_ptr, BLOCK_Q, D)


def pool(x_BLHD: Tensor, block: int, key_sum_BHD: Tensor | None = None, shift_BHL: Tensor | None = None) -> Tensor:
    """Take the mean of each block of tokens, float32 [B, H, N, D]; a ragged last block is the mean of the rows it has.

    Also writes `shift_BHL` if given, from `KeyState.key_sum_BHD`.
    """
    B, L, H, D = x_BLHD.shape
    blocks = -(-L // block)
    pooled = torch.empty(B, H, blocks, D, dtype=torch.float32, device=x_BLHD.device)
    _query_kernel[(blocks, B * H)](
        describe(x_BLHD, block), key_sum_BHD, pooled, shift_BHL, L, H, BLOCK=block, D=D, num_warps=block // 16
    )  # fmt: skip
    return pooled


def query_pass(q_BLHD: Tensor, block_q: int, keys: KeyState) -> tuple[Tensor, Tensor]:
    """Compute `pool` and `Packed.shift_BHL` of q."""
    B, L, H, _ = q_BLHD.shape
    shift = torch.empty(B, H, L, dtype=torch.float32, device=q_BLHD.device)
    return pool(q_BLHD, block_q, keys.key_sum_BHD, shift), shift


def pack(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    keys: KeyState,
    block_q: int,
    block_k: int,
    qk: str,
    *,
    num_stages: int = 3,
) -> tuple[Packed, Tensor]:
    """Round q, k and v to 8 bits, and take the means of q's blocks; `keys` has k's mean and v's largest magnitudes.

    On an H100 (32760 tokens, 12 heads) 0.182 ms; with two stages 0.198, and then 0.187 by a launch for each of them.
    """
    if qk not in FORMATS:
        raise ValueError(f"qk: unknown format {qk!r}, expected 'int8' or 'fp8'")
    dtype, device = FORMATS[qk], q_BLHD.device
    (B, L, H, D), S = q_BLHD.shape, k_BSHD.shape[1]
    blocks_q, blocks_k = -(-L // block_q), -(-S // block_k)
    new = partial(torch.empty, dtype=torch.float32, device=device)
    q = torch.empty(B, H, blocks_q, block_q, D, dtype=dtype, device=device)
    k = torch.empty(B, H, blocks_k, block_k, D, dtype=dtype, device=device)
    v = torch.empty(B, H, blocks_k, D, block_k, dtype=FP8, device=device)
    scales = Scales(new(B, H, blocks_q), new(B, H, blocks_k), new(B, H, D))
    pooled, shift = new(B, H, blocks_q, D), new(B, H, L)
    # Two programs a multiprocessor: 128 registers a thread, except where families before Hopper hold in registers what
    # it has in shared memory.
    maxnreg = 128 if gpu.capability(device)[0] >= 9 else None
    _pack_kernel[(2 * gpu.multiprocessors(device),)](
        describe(q_BLHD, block_q), describe(k_BSHD, block_k), describe(v_BSHD, block_k),
        keys.key_sum_BHD, keys.mean_BHD, keys.largest_BHD, q, k, v, scales.q_BHN, scales.k_BHN, scales.v_BHD,
        pooled, shift, L, S, H, B * H, blocks_q, blocks_k,
        BLOCK_Q=block_q, BLOCK_K=block_k, D=D, STAGES=num_stages, num_warps=8, maxnreg=maxnreg,
    )  # fmt: skip
    return Packed(q, k, v, scales, shift), pooled
