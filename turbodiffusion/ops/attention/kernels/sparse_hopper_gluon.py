"""SageAttention's and SageSLA's attention in 8 bits on Hopper, in Gluon: `kernels.sparse`'s, for one sequence.

Programs stay resident and take query blocks in turn. One warp brings the kept blocks of k and v, ahead, by TMA; two
groups of four warps have half of the query block each and share what it brings: half the bytes from the L2 cache, whose
bandwidth bounds Triton's kernel. A step takes two blocks, as `kernels.sparse`'s pairs do; while a group takes their
softmax, the tensor cores have the other group's products. docs/performance.md has what else was tried.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from turbodiffusion.ops.attention.kernels.sparse import LOG2_FP8_MAX, LOG2E, MAGIC_BITS, LinearTerm, Scales
from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.gluon import tiled
from turbodiffusion.ops.kernels.rounding import ROUNDER

BLOCK_Q, BLOCK_K, HEAD_DIM = 128, 64, 128
SIZES = (1, BLOCK_Q, BLOCK_K, HEAD_DIM)  # sequences, and what Wan has: other sizes are Triton's
STAGES = 4  # pairs of blocks of k and v on their way

_LOG2E = gl.constexpr(LOG2E)
_ROWS = gl.constexpr(BLOCK_Q // 2)  # of a group of warps
_BLOCK_K = gl.constexpr(BLOCK_K)
_D = gl.constexpr(HEAD_DIM)
# Where the threads of a group hold the scores of a step and of a block, the output, and left factors in registers.
_PAIR = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * BLOCK_K, 32]))
_SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 32]))
_OUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 32]))
_LEFT_8 = gl.constexpr(gl.DotOperandLayout(0, _PAIR.value, 4))
_LEFT_P = gl.constexpr(gl.DotOperandLayout(0, _OUT.value, 4))
_OUT_16 = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16]))
_LEFT_16 = gl.constexpr(gl.DotOperandLayout(0, _OUT_16.value, 2))


@gluon.jit
def _place(map_ptr, kept, step, half: gl.constexpr, GATHER: gl.constexpr):
    """Block `half` of a step. The last of the map comes first, as it alone can reach past the end. If the map is odd
    it is alone: the second half of the first step is then the last block again, for nothing.
    """
    at = 2 * step + half - 1 - kept % 2
    if half == 0:
        at = gl.where(step == 0, kept - 1, at)
    else:
        at = gl.where(at < 0, kept - 1, at)
    if GATHER:
        return gl.load(map_ptr + at)
    else:
        return at


@gluon.jit
def _load(tensors, pointers, sizes, buffers, barriers, SETUP: gl.constexpr):
    """One warp: brings the blocks of every query block of this program, and each head's state."""
    k, v, state = tensors[1], tensors[2], tensors[4]
    L, S, H, kept, _ = sizes
    keys, values, states = buffers[0], buffers[1], buffers[4]
    ready, free, _, _, state_ready, state_free = barriers
    map_ptr = pointers[0]
    GATHER: gl.constexpr = SETUP[0]
    LINEAR: gl.constexpr = SETUP[1]
    STAGES: gl.constexpr = keys.type.shape[0]
    blocks_q, blocks_k = gl.cdiv(L, 2 * _ROWS), gl.cdiv(S, _BLOCK_K)
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), blocks_q * H, gl.num_programs(0)):
        head = tile // blocks_q
        here = map_ptr + tile * kept
        for step in range(gl.cdiv(kept, 2)):
            first = head * blocks_k + _place(here, kept, step, 0, GATHER)
            second = head * blocks_k + _place(here, kept, step, 1, GATHER)
            stage = count % STAGES
            there = ready.index(stage)
            mbarrier.wait(free.index(stage), count // STAGES & 1 ^ 1)
            mbarrier.expect(there, 2 * (k.block_type.nbytes + v.block_type.nbytes))
            pair = keys.index(stage)
            tma.async_copy_global_to_shared(k, [first * _BLOCK_K, 0], there, pair.slice(0, _BLOCK_K))
            tma.async_copy_global_to_shared(k, [second * _BLOCK_K, 0], there, pair.slice(_BLOCK_K, _BLOCK_K))
            tma.async_copy_global_to_shared(v, [first * _D, 0], there, values.index(2 * stage))
            tma.async_copy_global_to_shared(v, [second * _D, 0], there, values.index(2 * stage + 1))
            count += 1
        if LINEAR:
            mbarrier.wait(state_free, turn & 1 ^ 1)
            mbarrier.expect(state_ready, state.block_type.nbytes)
            tma.async_copy_global_to_shared(state, [head * _D, 0], state_ready, states)
        turn += 1


@gluon.jit
def _halves(pair, MAGIC: gl.constexpr):
    """The scores of a step's two blocks, float32, with ROUNDER added if int8."""
    if MAGIC:
        pair = (pair + MAGIC_BITS).to(gl.float32, bitcast=True)
    first, second = pair.reshape((_ROWS, 2, _BLOCK_K)).permute((0, 2, 1)).split()
    return gl.convert_layout(first, _SCORES, assert_trivial=True), gl.convert_layout(
        second, _SCORES, assert_trivial=True
    )


@gluon.jit
def _as_left(p, dtype: gl.constexpr):
    """Probabilities in 8 bits where wgmma reads them from: each stays in its thread, see `kernels.sparse._low`."""
    p = p.to(dtype).reshape((_ROWS, _BLOCK_K // 16, 2, 4, 2)).permute((0, 1, 3, 2, 4)).reshape((_ROWS, _BLOCK_K))
    return gl.convert_layout(p, _LEFT_P, assert_trivial=True)


@gluon.jit
def _softmax(first, second, scale, other_scale, total, largest, dtype: gl.constexpr, MAGIC: gl.constexpr):
    """Probabilities times 448 in 8 bits, their new sums and largest scores, and what the sums so far shrink by."""
    off = ROUNDER * scale if MAGIC else 0.0
    other_off = ROUNDER * other_scale if MAGIC else 0.0
    top = gl.maximum(gl.max(first, 1) * scale - off, gl.max(second, 1) * other_scale - other_off)
    now = gl.maximum(largest, top)
    rescale = gl.exp2(largest - now)
    p = gl.exp2(first * scale - (now + (off - LOG2_FP8_MAX))[:, None])
    other = gl.exp2(second * other_scale - (now + (other_off - LOG2_FP8_MAX))[:, None])
    total = total * rescale + gl.sum(p + other, 1)
    shrink = gl.convert_layout(rescale, gl.SliceLayout(1, _OUT), assert_trivial=True)[:, None]
    return _as_left(p, dtype), _as_left(other, dtype), total, now, shrink


@gluon.jit
def _weigh(p, other, values, stage):
    """The product of a step's probabilities with its values, under way: sums of its own, see `kernels.sparse._step`."""
    part = warpgroup_mma(
        p, values.index(2 * stage).permute((1, 0)), gl.zeros((_ROWS, _D), gl.float32, _OUT), use_acc=False,
        is_async=True,
    )  # fmt: skip
    return warpgroup_mma(other, values.index(2 * stage + 1).permute((1, 0)), part, is_async=True)


@gluon.jit
def _score(q, keys, stage, SUM: gl.constexpr):
    """q k^T of a step, under way."""
    zeros = gl.zeros((_ROWS, 2 * _BLOCK_K), SUM, _PAIR)
    return warpgroup_mma(q, keys.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _over_blocks(
    q, keys, values, ready, free, map_ptr, scales, row_scale, S, kept, count, dtype: gl.constexpr,
    SETUP: gl.constexpr, ME: gl.constexpr,
):  # fmt: skip
    """The online softmax over all kept blocks: sums not yet divided by their total. count: steps before these."""
    GATHER: gl.constexpr = SETUP[0]
    STAGES: gl.constexpr = keys.type.shape[0]
    MAGIC: gl.constexpr = keys.dtype == gl.int8
    SUM: gl.constexpr = gl.int32 if MAGIC else gl.float32
    steps = gl.cdiv(kept, 2)
    block, other = _place(map_ptr, kept, 0, 0, GATHER), _place(map_ptr, kept, 0, 1, GATHER)
    scale, other_scale = row_scale * gl.load(scales + block), row_scale * gl.load(scales + other)
    columns = gl.arange(0, _BLOCK_K, gl.SliceLayout(0, _SCORES))
    there, other_there = block * _BLOCK_K + columns < S, columns < gl.where(kept % 2 == 0, _BLOCK_K, 0)
    following = gl.minimum(1, steps - 1)
    block, other = _place(map_ptr, kept, following, 0, GATHER), _place(map_ptr, kept, following, 1, GATHER)

    largest = gl.full((_ROWS,), float("-inf"), gl.float32, gl.SliceLayout(1, _SCORES))
    total = gl.zeros((_ROWS,), gl.float32, gl.SliceLayout(1, _SCORES))
    acc = gl.zeros((_ROWS, _D), gl.float32, _OUT)
    mbarrier.wait(ready.index(count % STAGES), count // STAGES & 1)
    first, second = _halves(warpgroup_mma_wait(0, deps=(_score(q, keys, count % STAGES, SUM),)), MAGIC)
    first = gl.where(there[None, :], first, float("-inf"))
    second = gl.where(other_there[None, :], second, float("-inf"))
    for step in range(1, steps):
        # Each load is for the step after, or the one after that: nothing waits for memory.
        k_scale, other_k_scale = gl.load(scales + block), gl.load(scales + other)
        following = gl.minimum(step + 1, steps - 1)
        block, other = _place(map_ptr, kept, following, 0, GATHER), _place(map_ptr, kept, following, 1, GATHER)
        p, other_p, total, largest, shrink = _softmax(first, second, scale, other_scale, total, largest, dtype, MAGIC)
        part = _weigh(p, other_p, values, count % STAGES)
        stage = (count + 1) % STAGES
        mbarrier.wait(ready.index(stage), (count + 1) // STAGES & 1)
        part = warpgroup_mma_wait(0, deps=(part,))
        mbarrier.arrive(free.index(count % STAGES), count=1)
        pair = _score(q, keys, stage, SUM)
        acc = acc * shrink + part
        first, second = _halves(warpgroup_mma_wait(0, deps=(pair,)), MAGIC)
        scale, other_scale = row_scale * k_scale, row_scale * other_k_scale
        count += 1
    p, other_p, total, largest, shrink = _softmax(first, second, scale, other_scale, total, largest, dtype, MAGIC)
    part = warpgroup_mma_wait(0, deps=(_weigh(p, other_p, values, count % STAGES),))
    mbarrier.arrive(free.index(count % STAGES), count=1)
    return acc * shrink + part, total


@gluon.jit
def _add_linear(acc, rows, states, shift, bias, barriers, turn, start, head, L, ME: gl.constexpr):
    """acc + phi(q) state / (1e-5 + phi(q) . key_sum), projected: `kernels.sparse.add_linear`, and proj_l's bias."""
    raw_ready, state_ready, state_free = barriers[3], barriers[4], barriers[5]
    at = start + gl.arange(0, _ROWS, gl.SliceLayout(1, _LEFT_16))
    row_shift = gl.load(shift + head * L + at, mask=at < L, other=0.0)
    mbarrier.wait(raw_ready.index(ME), turn & 1)
    phi = gl.exp2(rows.load(_LEFT_16).to(gl.float32) * _LOG2E + row_shift[:, None]).to(states.dtype)
    mbarrier.wait(state_ready, turn & 1)
    acc = warpgroup_mma(phi, states, gl.convert_layout(acc, _OUT_16, assert_trivial=True))
    mbarrier.arrive(state_free, count=1)
    column = gl.arange(0, _D, gl.SliceLayout(0, _OUT))
    return gl.convert_layout(acc, _OUT, assert_trivial=True) + gl.load(bias + column)[None, :]


@gluon.jit
def _attend(tensors, pointers, sizes, buffers, barriers, SETUP: gl.constexpr, ME: gl.constexpr):
    """Group ME of the warps: half ME of every query block of this program."""
    q_desc, _, v_desc, raw, _, out = tensors
    map_ptr, q_scale, k_scale, v_scale, shift, bias = pointers
    L, S, H, kept, softmax_scale = sizes
    keys, values, queries, rows, states = buffers
    ready, free, q_ready, raw_ready, _, _ = barriers
    LINEAR: gl.constexpr = SETUP[1]
    blocks_q, blocks_k, steps = gl.cdiv(L, 2 * _ROWS), gl.cdiv(S, _BLOCK_K), gl.cdiv(kept, 2)
    mine, q_mine = rows.index(ME), queries.index(ME)
    tiles = blocks_q * H
    mbarrier.expect(q_ready.index(ME), q_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [(gl.program_id(0) * 2 + ME) * _ROWS, 0], q_ready.index(ME), q_mine)
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        head = tile // blocks_q
        start = (tile % blocks_q * 2 + ME) * _ROWS
        tma.store_wait(0)  # the output of the tile before has left `mine`
        if LINEAR:
            mbarrier.expect(raw_ready.index(ME), raw.block_type.nbytes)
            tma.async_copy_global_to_shared(raw, [start, head * _D], raw_ready.index(ME), mine)
        mbarrier.wait(q_ready.index(ME), turn & 1)
        q = q_mine.load(_LEFT_8)
        fence_async_shared()
        if tile + gl.num_programs(0) < tiles:
            mbarrier.expect(q_ready.index(ME), q_desc.block_type.nbytes)
            next_row = ((tile + gl.num_programs(0)) * 2 + ME) * _ROWS
            tma.async_copy_global_to_shared(q_desc, [next_row, 0], q_ready.index(ME), q_mine)
        acc, total = _over_blocks(
            q, keys, values, ready, free, map_ptr + tile * kept, k_scale + head * blocks_k,
            softmax_scale * gl.load(q_scale + tile), S, kept, turn * steps, v_desc.dtype, SETUP, ME,
        )  # fmt: skip
        acc *= gl.convert_layout(1.0 / total, gl.SliceLayout(1, _OUT), assert_trivial=True)[:, None]
        acc *= gl.load(v_scale + head * _D + gl.arange(0, _D, gl.SliceLayout(0, _OUT)))[None, :]
        if LINEAR:
            acc = _add_linear(acc, mine, states, shift, bias, barriers, turn, start, head, L, ME)
        mine.store(acc.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [start, head * _D], mine)
        turn += 1
    tma.store_wait(0)


@gluon.jit
def _attend_second(tensors, pointers, sizes, buffers, barriers, SETUP: gl.constexpr):
    _attend(tensors, pointers, sizes, buffers, barriers, SETUP, 1)


@gluon.jit(do_not_specialize=["L", "S", "H", "kept"])
def _attention(
    q, k, v, raw, state, out, map_ptr, q_scale, k_scale, v_scale, shift, bias, L, S, H, kept, softmax_scale,
    GATHER: gl.constexpr, LINEAR: gl.constexpr, STAGES: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    keys = gl.allocate_shared_memory(k.dtype, [STAGES, 2 * _BLOCK_K, _D], k.layout)
    values = gl.allocate_shared_memory(v.dtype, [2 * STAGES] + v.block_type.shape, v.layout)
    queries = gl.allocate_shared_memory(q.dtype, [2] + q.block_type.shape, q.layout)
    rows = gl.allocate_shared_memory(out.dtype, [2] + out.block_type.shape, out.layout)  # of raw q, then of the output
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())  # k and v of a step are there
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())  # both groups are done with it
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    raw_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    state_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    state_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(q_ready.index(i), count=1)
        mbarrier.init(raw_ready.index(i), count=1)
    mbarrier.init(state_ready, count=1)
    mbarrier.init(state_free, count=2)
    fence_async_shared()
    if LINEAR:
        states = gl.allocate_shared_memory(state.dtype, state.block_type.shape, state.layout)
    else:
        states = state_free
    SETUP: gl.constexpr = (GATHER, LINEAR)
    tensors, pointers = (q, k, v, raw, state, out), (map_ptr, q_scale, k_scale, v_scale, shift, bias)
    sizes, buffers = (L, S, H, kept, softmax_scale), (keys, values, queries, rows, states)
    barriers = (ready, free, q_ready, raw_ready, state_ready, state_free)
    job = (tensors, pointers, sizes, buffers, barriers, SETUP)
    gl.warp_specialize([(_attend, job + (0,)), (_attend_second, job), (_load, job)], [4, 1], [240, 24])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Scales,
    map_BHNK: Tensor | None,
    out_BLHD: Tensor,
    keys: int,
    linear: LinearTerm | None,
) -> None:
    """Write `out_BLHD` from `Packed`'s q, k and v; arguments are those of `kernels.sparse.launch_forward`."""
    _, L, H, D = out_BLHD.shape
    kept = -(-keys // BLOCK_K) if map_BHNK is None else map_BHNK.shape[-1]
    raw = None if linear is None else tiled(linear.q_BLHD[0].flatten(1), BLOCK_Q // 2, D)
    state = None if linear is None else tiled(linear.state_BHDE.flatten(0, 2), D, D)
    tiles = triton.cdiv(L, BLOCK_Q) * H
    _attention[(min(tiles, gpu.multiprocessors(q.device)),)](
        tiled(q.flatten(0, 3), BLOCK_Q // 2, D), tiled(k.flatten(0, 3), BLOCK_K, D), tiled(v.flatten(0, 3), D, BLOCK_K),
        raw, state, tiled(out_BLHD[0].flatten(1), BLOCK_Q // 2, D),
        q if map_BHNK is None else map_BHNK.contiguous(), scales.q_BHN, scales.k_BHN, scales.v_BHD,
        *((linear.shift_BHL, linear.bias_D) if linear else (None, None)),
        L, keys, H, kept, D**-0.5 * LOG2E,
        GATHER=map_BHNK is not None, LINEAR=linear is not None, STAGES=STAGES, num_warps=4, maxnreg=168,
    )  # fmt: skip
