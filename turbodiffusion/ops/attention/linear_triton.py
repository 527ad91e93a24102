"""The linear part of SLA in Triton: one pass over k and v for all that attention needs to know of the whole sequence.

    state = phi(k)^T v,   key_sum = sum of phi(k),   phi: softmax over D

The pass is split over the sequence; a second kernel adds the parts up and applies proj_l to the state: D x D numbers a
head, so that the projection costs nothing at the size of the sequence. The output phi(q) state / (1e-5 + phi(q) .
key_sum) is added in the sparse kernel's epilogue, or made by `linear_forward` alone. While k and v are there, the pass
also takes the means of k's blocks and of all of k (for the choice of blocks and for int8), and v's largest magnitudes.
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.sparse_triton import LOG2E, add_linear, check_sizes, describe, described, row_shift
from turbodiffusion.ops.linear import gemm_triton

# Programs of the pass over the keys: two for each multiprocessor of the largest GPUs; more would write more parts.
PROGRAMS = 264
_LOG2E = tl.constexpr(LOG2E)
_ROWS = 32  # of a block that the pass over the keys holds in registers at a time
_FOLD = tl.constexpr(16)  # rows of a block that the warps of the pass over the keys load at a time
_SLICE = tl.constexpr(16)  # rows of the state that a program of the second kernel adds up
_PARTS = tl.constexpr(4)  # that it has on their way at a time


@dataclass(frozen=True)
class KeyState:
    """What the whole sequence of keys and values comes down to; all float32 but the state."""

    state_BHDE: Tensor  # phi(k)^T v, or that times proj_l's transpose, in k's dtype
    key_sum_BHD: Tensor  # sum of phi(k) over the sequence
    mean_BHD: Tensor  # of k over the sequence
    largest_BHD: Tensor  # of |v| over the sequence
    pooled_BHND: Tensor  # the mean of each block of k


@triton.jit
def softmax_rows(x):
    """The softmax of each row, float32."""
    e = tl.exp2(x * _LOG2E - (tl.max(x, 1) * _LOG2E)[:, None])
    return e * (1.0 / tl.sum(e, 1))[:, None]


@triton.jit
def _fold(x):
    """[_FOLD, columns] sums over every _FOLD-th row: they are a thread's own, and need no barrier."""
    return tl.sum(x.reshape(x.shape[0] // _FOLD, _FOLD, x.shape[1]), 0)


@triton.jit(do_not_specialize=["S", "H", "blocks", "blocks_each"])
def _key_kernel(
    k_desc, v_desc, part_ptr, vectors_ptr, pooled_ptr, S, H, blocks, blocks_each,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (parts, B * H). part [parts, B * H, D, D]; vectors [parts, B * H, 3, D]: sums of phi(k) and k, max |v|.

    Rows past the end are zeros in k and v: each adds nothing but 1 / D to the sum of phi(k), which the second kernel
    takes off again.
    """
    part = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    column = tl.arange(0, D)
    state = tl.zeros([D, D], tl.float32)
    key_sum = tl.zeros([_FOLD, D], tl.float32)
    total = tl.zeros([D], tl.float32)
    largest = tl.zeros([_FOLD, D], tl.float32)
    for block in range(part * blocks_each, tl.minimum((part + 1) * blocks_each, blocks)):
        sums = tl.zeros([_FOLD, D], tl.float32)
        for start in tl.static_range(0, BLOCK, ROWS):
            k = k_desc.load([b, block * BLOCK + start, h, 0]).reshape(ROWS, D).to(tl.float32)
            v = v_desc.load([b, block * BLOCK + start, h, 0]).reshape(ROWS, D)
            sums += _fold(k)
            phi = softmax_rows(k)
            state = tl.dot(phi.to(v.dtype).T, v, state, input_precision="ieee")
            key_sum += _fold(phi)
            largest = tl.maximum(largest, tl.max(tl.abs(v.to(tl.float32)).reshape(ROWS // _FOLD, _FOLD, D), 0))
        block_sum = tl.sum(sums, 0)
        total += block_sum
        rows = tl.minimum(S - block * BLOCK, BLOCK)
        tl.store(pooled_ptr + (bh * blocks + block) * D + column, block_sum / rows)
    at = (part * tl.num_programs(1) + bh).to(tl.int64)
    tl.store(part_ptr + at * D * D + column[:, None] * D + column[None, :], state)
    tl.store(vectors_ptr + at * 3 * D + column, tl.sum(key_sum, 0))
    tl.store(vectors_ptr + at * 3 * D + D + column, total)
    tl.store(vectors_ptr + at * 3 * D + 2 * D + column, tl.max(largest, 0))


@triton.jit(do_not_specialize=["parts", "S", "padding"])
def _reduce_kernel(
    part_ptr, vectors_ptr, weight_ptr, state_ptr, key_sum_ptr, mean_ptr, largest_ptr, parts, S, padding,
    D: tl.constexpr, PROJECT: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, D / _SLICE): rows of the state summed, times proj_l's transpose; the first also does the vectors."""
    bh = tl.program_id(0)
    step = tl.num_programs(0).to(tl.int64)
    row = tl.program_id(1) * _SLICE + tl.arange(0, _SLICE)
    column = tl.arange(0, D)
    inside = row[:, None] * D + column[None, :]
    state = tl.zeros([_SLICE, D], tl.float32)
    for first in range(0, parts, _PARTS):
        for part in tl.static_range(_PARTS):
            at = ((first + part) * step + bh) * D * D + inside
            state += tl.load(part_ptr + at, mask=first + part < parts, other=0.0)
    if PROJECT:
        weight = tl.load(weight_ptr + column[:, None] * D + column[None, :])
        state = tl.dot(state, weight.T, input_precision="tf32x3")  # float32 to within 2^-21, on tensor cores
    tl.store(state_ptr + bh * D * D + inside, state.to(state_ptr.dtype.element_ty))
    if tl.program_id(1) == 0:
        key_sum = tl.zeros([D], tl.float32)
        total = tl.zeros([D], tl.float32)
        largest = tl.zeros([D], tl.float32)
        for part in range(parts):
            at = vectors_ptr + (part * step + bh) * 3 * D + column
            key_sum += tl.load(at)
            total += tl.load(at + D)
            largest = tl.maximum(largest, tl.load(at + 2 * D))
        tl.store(key_sum_ptr + bh * D + column, key_sum - padding / D)
        tl.store(mean_ptr + bh * D + column, total / S)
        tl.store(largest_ptr + bh * D + column, largest)


@triton.jit(do_not_specialize=["L", "H"])
def _output_kernel(
    q_ptr, state_ptr, key_sum_ptr, out_ptr, q_b, q_l, q_h, L, H, ROWS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Grid (ceil(L / ROWS), B * H); the output is contiguous [B, L, H, D]."""
    start = tl.program_id(0) * ROWS
    bh = tl.program_id(1)
    b = (bh // H).to(tl.int64)
    h = bh % H
    row = tl.arange(0, ROWS)[:, None]
    mask = start + row < L
    q_ptrs = q_ptr + b * q_b + h.to(tl.int64) * q_h + start.to(tl.int64) * q_l + row * q_l
    column = tl.arange(0, D)
    q = tl.load(q_ptrs + column[None, :], mask=mask, other=0.0).to(tl.float32)
    shift = row_shift(q, tl.load(key_sum_ptr + bh * D + column))
    acc = tl.zeros([ROWS, D], tl.float32)
    acc = add_linear(acc, q_ptrs, mask, shift, state_ptr + bh * D * D, D)
    out_ptrs = out_ptr + ((b * L + start) * H + h) * D + row * (H * D) + tl.arange(0, D)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


def key_state(k_BSHD: Tensor, v_BSHD: Tensor, block_k: int, proj_weight_DD: Tensor | None = None) -> KeyState:
    """One pass over k and v. The state is times proj_l's transpose if its weight is given."""
    B, S, H, D = k_BSHD.shape
    check_sizes("linear_attention", D, 128, block_k)
    blocks = -(-S // block_k)
    blocks_each = -(-blocks // max(1, PROGRAMS // (B * H)))
    parts = -(-blocks // blocks_each)
    new = partial(torch.empty, dtype=torch.float32, device=k_BSHD.device)
    part, vectors, pooled = new(parts, B, H, D, D), new(parts, B, H, 3, D), new(B, H, blocks, D)
    # Two programs fit a multiprocessor. Other families hold an operand in registers that wgmma reads from memory.
    registers = 128 if gemm_triton.capability(k_BSHD.device)[0] == 9 else None
    _key_kernel[(parts, B * H)](
        describe(k_BSHD, _ROWS), describe(v_BSHD, _ROWS), part, vectors, pooled, S, H, blocks, blocks_each,
        BLOCK=block_k, ROWS=_ROWS, D=D, num_warps=8, num_stages=3, maxnreg=registers,
    )  # fmt: skip
    state = torch.empty(B, H, D, D, dtype=k_BSHD.dtype, device=k_BSHD.device)
    key_sum, mean, largest = new(B, H, D), new(B, H, D), new(B, H, D)
    weight = None if proj_weight_DD is None else proj_weight_DD.float().contiguous()
    _reduce_kernel[(B * H, D // _SLICE.value)](
        part, vectors, weight, state, key_sum, mean, largest, parts, S, blocks * block_k - S,
        D=D, PROJECT=weight is not None,
    )  # fmt: skip
    return KeyState(state, key_sum, mean, largest, pooled)


def linear_forward(q_BLHD: Tensor, state: KeyState) -> Tensor:
    """phi(q) state / (1e-5 + phi(q) . key_sum): [B, L, H, D] in q's dtype."""
    B, L, H, D = q_BLHD.shape
    q = described(q_BLHD)
    out = torch.empty(B, L, H, D, dtype=q.dtype, device=q.device)
    rows = 64
    _output_kernel[(-(-L // rows), B * H)](
        q, state.state_BHDE, state.key_sum_BHD, out, *q.stride()[:3], L, H, ROWS=rows, D=D
    )
    return out
