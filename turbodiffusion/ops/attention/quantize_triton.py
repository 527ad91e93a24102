"""SageAttention's 8-bit inputs in Triton (see `sage.py`), and the block means from the same pass over q.

Values are stored as the sparse kernel reads them: whole blocks, zeros past the end of the sequence, and the heads
outermost, so that a block is one piece of memory. v is transposed within its block, because wgmma takes an fp8 operand
only with the summed dimension innermost, and its keys are in KEY_ORDER.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.linear_triton import KeyState
from turbodiffusion.ops.attention.sparse_triton import Scales, describe, row_shift
from turbodiffusion.ops.rounding import FP8
from turbodiffusion.ops.rounding_triton import largest_magnitude, levels_of, to_8bit

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
    shift_BHL: Tensor  # of q's rows for the linear term, float32: see `sparse_triton.row_shift`


@triton.jit(do_not_specialize=["L", "H"])
def _row_kernel(
    x_desc, mean_ptr, key_sum_ptr, values_ptr, scale_ptr, pooled_ptr, shift_ptr, L, H,
    BLOCK: tl.constexpr, D: tl.constexpr, CENTRE: tl.constexpr, POOL: tl.constexpr, SHIFT: tl.constexpr,
    ROUND: tl.constexpr,
):  # fmt: skip
    """Grid (blocks, B * H): of a block of tokens the mean, the shifts of its rows, and it, less `mean`, in 8 bits."""
    n = tl.program_id(0)
    bh = tl.program_id(1)
    block = (bh * tl.num_programs(0) + n).to(tl.int64)
    column = tl.arange(0, D)
    row = tl.arange(0, BLOCK)[:, None]
    x = x_desc.load([bh // H, n * BLOCK, bh % H, 0]).reshape(BLOCK, D).to(tl.float32)
    if POOL:
        tl.store(pooled_ptr + block * D + column, tl.sum(x, 0) / tl.minimum(L - n * BLOCK, BLOCK))
    if SHIFT:
        rows = n * BLOCK + tl.arange(0, BLOCK)
        shift = row_shift(x, tl.load(key_sum_ptr + bh * D + column))
        tl.store(shift_ptr + bh.to(tl.int64) * L + rows, shift, mask=rows < L)
    if ROUND:
        dtype: tl.constexpr = values_ptr.dtype.element_ty
        if CENTRE:
            x = tl.where(n * BLOCK + row < L, x - tl.load(mean_ptr + bh * D + column)[None, :], 0.0)
        scale = largest_magnitude(x, None) / levels_of(dtype)
        tl.store(values_ptr + block * BLOCK * D + row * D + column[None, :], to_8bit(x * (1.0 / scale), dtype))
        tl.store(scale_ptr + block, scale)


@triton.jit(do_not_specialize=["S", "H"])
def _value_kernel(
    v_ptr, largest_ptr, values_ptr, scale_ptr, v_b, v_l, v_h, v_d, S, H, BLOCK: tl.constexpr, D: tl.constexpr
):
    """Grid (blocks, B * H): a block of v in fp8, its keys in KEY_ORDER and innermost; one scale a channel."""
    n = tl.program_id(0)
    bh = tl.program_id(1)
    place = tl.arange(0, BLOCK)
    key = n * BLOCK + place // 16 * 16 + (place // 2 % 2) * 8 + (place // 4 % 4) * 2 + place % 2
    column = tl.arange(0, D)
    v_ptr += (bh // H).to(tl.int64) * v_b + (bh % H).to(tl.int64) * v_h
    v = tl.load(v_ptr + key[:, None].to(tl.int64) * v_l + column[None, :] * v_d, mask=key[:, None] < S, other=0.0)
    dtype: tl.constexpr = values_ptr.dtype.element_ty
    scale = tl.maximum(tl.load(largest_ptr + bh * D + column), 1e-8) / levels_of(dtype)
    values = to_8bit(v.to(tl.float32) * (1.0 / scale)[None, :], dtype)
    block = (bh * tl.num_programs(0) + n).to(tl.int64)
    tl.store(values_ptr + block * BLOCK * D + column[:, None] * BLOCK + place[None, :], values.T)
    if n == 0:
        tl.store(scale_ptr + bh * D + column, scale)


def pool(x_BLHD: Tensor, block: int) -> Tensor:
    """The mean of each block of tokens, float32 [B, H, N, D]; a ragged last block is the mean of the rows it has."""
    return _rows(x_BLHD, block, pooled=True)[2]


def query_pass(q_BLHD: Tensor, block_q: int, keys: KeyState) -> tuple[Tensor, Tensor]:
    """`pool` and `Packed.shift_BHL` of q."""
    return _rows(q_BLHD, block_q, pooled=True, key_sum_BHD=keys.key_sum_BHD)[2:]


def pack(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, keys: KeyState, block_q: int, block_k: int, qk: str
) -> tuple[Packed, Tensor]:
    """q, k and v in 8 bits, and the means of q's blocks; `keys` has k's mean and v's largest magnitudes."""
    if qk not in FORMATS:
        raise ValueError(f"qk: unknown format {qk!r}, expected 'int8' or 'fp8'")
    q, q_scale, pooled, shift = _rows(q_BLHD, block_q, FORMATS[qk], pooled=True, key_sum_BHD=keys.key_sum_BHD)
    k, k_scale, _, _ = _rows(k_BSHD, block_k, FORMATS[qk], mean_BHD=keys.mean_BHD)
    B, S, H, D = v_BSHD.shape
    blocks = -(-S // block_k)
    v = torch.empty(B, H, blocks, D, block_k, dtype=FP8, device=v_BSHD.device)
    v_scale = torch.empty(B, H, D, dtype=torch.float32, device=v_BSHD.device)
    _value_kernel[(blocks, B * H)](
        v_BSHD, keys.largest_BHD, v, v_scale, *v_BSHD.stride(), S, H, BLOCK=block_k, D=D
    )  # fmt: skip
    return Packed(q, k, v, Scales(q_scale, k_scale, v_scale), shift), pooled


def _rows(
    x_BLHD: Tensor,
    block: int,
    dtype: torch.dtype | None = None,
    *,
    mean_BHD: Tensor | None = None,
    key_sum_BHD: Tensor | None = None,
    pooled: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, scales and means of x's blocks, and shifts of its rows; what is not asked for is empty."""
    B, L, H, D = x_BLHD.shape
    blocks = -(-L // block)
    rounded = 0 if dtype is None else B
    values = torch.empty(rounded, H, blocks, block, D, dtype=dtype or torch.int8, device=x_BLHD.device)
    scale = torch.empty(rounded, H, blocks, dtype=torch.float32, device=x_BLHD.device)
    means = torch.empty(B if pooled else 0, H, blocks, D, dtype=torch.float32, device=x_BLHD.device)
    shift = torch.empty(0 if key_sum_BHD is None else B, H, L, dtype=torch.float32, device=x_BLHD.device)
    _row_kernel[(blocks, B * H)](
        describe(x_BLHD, block), mean_BHD, key_sum_BHD, values, scale, means, shift, L, H,
        BLOCK=block, D=D, CENTRE=mean_BHD is not None, POOL=pooled, SHIFT=key_sum_BHD is not None,
        ROUND=dtype is not None, num_warps=block // 16, maxnreg=128,
    )  # fmt: skip
    return values, scale, means, shift
