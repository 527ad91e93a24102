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

from turbodiffusion.ops.attention.kernels.sparse import LOG2E, add_linear, check_sizes, describe, described, row_shift
from turbodiffusion.ops.kernels import gpu

_LOG2E = tl.constexpr(LOG2E)
_FOLD = tl.constexpr(16)  # rows of a block that the warps of the pass over the keys load at a time
_SLICE = tl.constexpr(16)  # rows of the state, or columns of the vectors, that a program of the second kernel adds up
_PARTS = tl.constexpr(4)  # parts of the state that it has on their way at a time
_MANY = tl.constexpr(256)  # block means, or parts of the vectors, likewise


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
def store_row(ptr, x, wanted):
    """Store the first row of x at `ptr` if wanted."""
    row = tl.arange(0, x.shape[0])[:, None]
    column = tl.arange(0, x.shape[1])[None, :]
    tl.store(ptr + row * x.shape[1] + column, x, mask=(row == 0) & wanted)


@triton.jit(do_not_specialize=["S", "H", "blocks"])
def _key_kernel(
    k_desc, v_desc, part_ptr, vectors_ptr, pooled_ptr, S, H, blocks,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (parts, B * H); parts take turns with the blocks, ROWS of them a step.

    part [parts, B * H, D, D]: the state turned, v^T phi. vectors [parts, B * H, 2, D]: the sum of phi, max |v|; a
    thread takes rows of its own for them, and the threads meet once, at the end. The sum of a block is due at each: as
    a product with ones, each row of which is the sum, it takes no barrier. Rows past the end are zeros in k and v: each
    adds nothing but 1 / D to the sum of phi, which the second kernel takes off again.

    On an H100 (32760 tokens, 12 heads, both kernels) 0.090 ms; 0.094 with the sum of phi by a product too, and then
    0.094 to 0.095 with the state not turned, 0.115 with half the rows a step.
    """
    part = tl.program_id(0)
    bh = tl.program_id(1)
    parts = tl.num_programs(0)
    b = bh // H
    h = bh % H
    column = tl.arange(0, D)
    ones = tl.full([16, ROWS], 1.0, tl.float32).to(k_desc.dtype)
    state = tl.zeros([D, D], tl.float32)
    block_sum = tl.zeros([16, D], tl.float32)
    key_sum = tl.zeros([_FOLD, D], tl.float32)
    largest = tl.zeros([_FOLD, D], tl.float32)
    STEPS: tl.constexpr = BLOCK // ROWS  # a block
    for step in range(tl.cdiv(blocks - part, parts) * STEPS):
        block = part + step // STEPS * parts
        row = block * BLOCK + step % STEPS * ROWS
        k = k_desc.load([b, row, h, 0]).reshape(ROWS, D)
        v = v_desc.load([b, row, h, 0]).reshape(ROWS, D)
        block_sum = tl.where(step % STEPS == 0, 0.0, block_sum)
        block_sum = tl.dot(ones, k, block_sum, input_precision="ieee")
        mean = block_sum * (1.0 / tl.minimum(S - block * BLOCK, BLOCK))
        store_row(pooled_ptr + (bh * blocks + block) * D, mean, step % STEPS == STEPS - 1)
        phi = softmax_rows(k.to(tl.float32))
        state = tl.dot(v.T, phi.to(v.dtype), state, input_precision="ieee")
        key_sum += tl.sum(phi.reshape(ROWS // _FOLD, _FOLD, D), 0)
        largest = tl.maximum(largest, tl.max(tl.abs(v.to(tl.float32)).reshape(ROWS // _FOLD, _FOLD, D), 0))
    at = (part * tl.num_programs(1) + bh).to(tl.int64)
    tl.store(part_ptr + at * D * D + column[:, None] * D + column[None, :], state)
    vectors_ptr += at * 2 * D
    tl.store(vectors_ptr + column, tl.sum(key_sum, 0))
    tl.store(vectors_ptr + D + column, tl.max(largest, 0))


@triton.jit(do_not_specialize=["parts", "S", "blocks"])
def _reduce_kernel(
    part_ptr, vectors_ptr, pooled_ptr, weight_ptr, state_ptr, key_sum_ptr, mean_ptr, largest_ptr, parts, S, blocks,
    BLOCK: tl.constexpr, D: tl.constexpr, PROJECT: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, 2 * D / _SLICE): sums of a slice of each vector, or of the state, times proj_l's transpose."""
    bh = tl.program_id(0)
    step = tl.num_programs(0).to(tl.int64)
    row = tl.program_id(1) % (D // _SLICE) * _SLICE + tl.arange(0, _SLICE)
    column = tl.arange(0, D)
    if tl.program_id(1) < D // _SLICE:
        total = tl.zeros([_SLICE], tl.float32)
        for start in range(0, blocks, _MANY):
            block = start + tl.arange(0, _MANY)
            there = (block < blocks)[:, None]
            mean = tl.load(pooled_ptr + (bh * blocks + block[:, None]) * D + row[None, :], mask=there, other=0.0)
            total += tl.sum(mean * tl.minimum(S - block * BLOCK, BLOCK)[:, None], 0)
        tl.store(mean_ptr + bh * D + row, total / S)
        key_sum = tl.zeros([_SLICE], tl.float32)
        largest = tl.zeros([_SLICE], tl.float32)
        for start in range(0, parts, _MANY):
            part = start + tl.arange(0, _MANY)[:, None]
            at = vectors_ptr + (part * step + bh) * 2 * D + row[None, :]
            key_sum += tl.sum(tl.load(at, mask=part < parts, other=0.0), 0)
            largest = tl.maximum(largest, tl.max(tl.load(at + D, mask=part < parts, other=0.0), 0))
        tl.store(key_sum_ptr + bh * D + row, key_sum - (blocks * BLOCK - S) / D)
        tl.store(largest_ptr + bh * D + row, largest)
    else:
        turned = column[None, :] * D + row[:, None]
        state = tl.zeros([_SLICE, D], tl.float32)
        for start in range(0, parts, _PARTS):
            for part in tl.static_range(_PARTS):
                at = ((start + part) * step + bh) * D * D + turned
                state += tl.load(part_ptr + at, mask=start + part < parts, other=0.0)
        if PROJECT:
            weight = tl.load(weight_ptr + column[:, None] * D + column[None, :])
            state = tl.dot(state, weight.T, input_precision="tf32x3")  # float32 to within 2^-21, on tensor cores
        tl.store(state_ptr + bh * D * D + row[:, None] * D + column[None, :], state.to(state_ptr.dtype.element_ty))


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


def key_state(
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    block_k: int,
    proj_weight_DD: Tensor | None = None,
    *,
    programs: int | None = None,
    num_stages: int = 3,
) -> KeyState:
    """Make one pass over k and v, by one program a multiprocessor: more would write more parts of the state.

    The state is times proj_l's transpose if its weight is given.
    """
    B, S, H, D = k_BSHD.shape
    check_sizes("linear_attention", D, 128, block_k)
    rows = 64 if k_BSHD.element_size() == 2 else 32
    blocks = -(-S // block_k)
    programs = programs or gpu.multiprocessors(k_BSHD.device)
    parts = max(1, min(blocks, programs // (B * H)))
    new = partial(torch.empty, dtype=torch.float32, device=k_BSHD.device)
    part, vectors, pooled = new(parts, B, H, D, D), new(parts, B, H, 2, D), new(B, H, blocks, D)
    _key_kernel[(parts, B * H)](
        describe(k_BSHD, rows), describe(v_BSHD, rows), part, vectors, pooled, S, H, blocks,
        BLOCK=block_k, ROWS=rows, D=D, num_warps=8, num_stages=num_stages,
    )  # fmt: skip
    state = torch.empty(B, H, D, D, dtype=k_BSHD.dtype, device=k_BSHD.device)
    key_sum, mean, largest = new(B, H, D), new(B, H, D), new(B, H, D)
    weight = None if proj_weight_DD is None else proj_weight_DD.float().contiguous()
    _reduce_kernel[(B * H, 2 * D // _SLICE.value)](
        part, vectors, pooled, weight, state, key_sum, mean, largest, parts, S, blocks,
        BLOCK=block_k, D=D, PROJECT=weight is not None, num_warps=8,
    )  # fmt: skip
    return KeyState(state, key_sum, mean, largest, pooled)


def linear_forward(q_BLHD: Tensor, state: KeyState) -> Tensor:
    """Compute phi(q) state / (1e-5 + phi(q) . key_sum): [B, L, H, D] in q's dtype."""
    B, L, H, D = q_BLHD.shape
    q = described(q_BLHD)
    out = torch.empty(B, L, H, D, dtype=q.dtype, device=q.device)
    rows = 64
    _output_kernel[(-(-L // rows), B * H)](
        q, state.state_BHDE, state.key_sum_BHD, out, *q.stride()[:3], L, H, ROWS=rows, D=D
    )
    return out
