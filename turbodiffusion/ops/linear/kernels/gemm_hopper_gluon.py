"""Products of 8-bit rows on Hopper, in Gluon: what `gemm.py` says, for one scale a row.

Triton waits for each int8 product of a loop before it issues the next one.
Here the tensor cores always have another product to go on with: one warp loads tiles ahead, by TMA, and groups of warps
multiply. Two groups of four warps take tiles in turn (`Config.groups`), so that what one does with its sums (scales,
bias, GELU, gate, residual) is hidden behind the products of the other. Long sums hide it by themselves: then one group
of eight warps takes tiles of twice the width, which moves fewer bytes for each product.

On an H200 at 32760 rows the network's int8 products ran at 1,257 to 1,496 TOP/s, by Triton's kernel at 869 to 1,279
(docs/performance.md).
"""

from typing import NamedTuple

import torch
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

from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.gluon import tiled
from turbodiffusion.ops.kernels.gpu import aligned, grouped_tile
from turbodiffusion.ops.kernels.rounding import gelu_tanh

SIDE = 128  # rows of a tile, and the features that a step sums over


class Config(NamedTuple):
    """Columns of a tile, tiles in flight, rows of tiles that share their columns in the L2 cache, groups of warps."""

    columns: int
    stages: int
    rows: int
    groups: int


SHORT, LONG = Config(128, 5, 8, 2), Config(256, 3, 16, 1)
# Longer sums than this are faster by one wide group: 6% with gate and residual at 8960 and at 13824, nothing at 5120.
LONG_K = 8192


@gluon.jit
def _load(x, w, y, residual, vectors, sizes, buffers, barriers, SETUP: gl.constexpr):
    """One warp: brings every tile of this program, in the order in which the groups take them."""
    left, right, _ = buffers
    ready, free, _, _ = barriers
    M, N, K, _ = sizes
    BM: gl.constexpr = x.block_type.shape[0]
    BK: gl.constexpr = x.block_type.shape[1]
    BN: gl.constexpr = w.block_type.shape[0]
    STAGES: gl.constexpr = left.type.shape[0]
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    count = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
        m, n = grouped_tile(tile, tiles_m, tiles_n, SETUP[0])
        for step in range(gl.cdiv(K, BK)):
            stage = count % STAGES
            mbarrier.wait(free.index(stage), count // STAGES & 1 ^ 1)
            mbarrier.expect(ready.index(stage), x.block_type.nbytes + w.block_type.nbytes)
            tma.async_copy_global_to_shared(x, [m * BM, step * BK], ready.index(stage), left.index(stage))
            tma.async_copy_global_to_shared(w, [n * BN, step * BK], ready.index(stage), right.index(stage))
            count += 1


@gluon.jit
def _multiply(x, w, y, residual, vectors, sizes, buffers, barriers, SETUP: gl.constexpr, ME: gl.constexpr):
    """Group ME of the warps: every GROUPS-th tile of this program, from the first product to the output."""
    left, right, out = buffers
    ready, free, arrived, turns = barriers
    x_scale, w_scale, bias, gate = vectors
    M, N, K, rows_per_gate = sizes
    ROWS: gl.constexpr = SETUP[0]
    GROUPS: gl.constexpr = SETUP[1]
    WARPS: gl.constexpr = SETUP[2]
    SUM: gl.constexpr = SETUP[3]
    GELU: gl.constexpr = SETUP[4]
    ONE_GATE: gl.constexpr = SETUP[5]
    BM: gl.constexpr = x.block_type.shape[0]
    BN: gl.constexpr = w.block_type.shape[0]
    STAGES: gl.constexpr = left.type.shape[0]
    # Triton knows no int8 instruction of 256 columns.
    WIDTH: gl.constexpr = BN if gl.float32 == SUM else min(BN, 128)
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 32])
    HALF: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN // 2, 32])
    tiles_m, tiles_n, steps = gl.cdiv(M, BM), gl.cdiv(N, BN), gl.cdiv(K, x.block_type.shape[1])
    turn = 0
    for tile in range(gl.program_id(0) + ME * gl.num_programs(0), tiles_m * tiles_n, GROUPS * gl.num_programs(0)):
        m, n = grouped_tile(tile, tiles_m, tiles_n, ROWS)
        tma.store_wait(0)  # the output of the tile before has left the buffer
        if residual is not None:
            mbarrier.expect(arrived.index(ME), 2 * residual.block_type.nbytes)
            for half in gl.static_range(2):
                where = [m * BM, n * BN + half * (BN // 2)]
                tma.async_copy_global_to_shared(residual, where, arrived.index(ME), out.index(2 * ME + half))
        if GROUPS == 2:
            # `ready` tells even rounds of its stage from odd ones alone: who is early must not wait for a later round.
            mbarrier.wait(turns.index(ME), turn + 1 - ME & 1)
        count = (turn * GROUPS + ME) * steps
        total = gl.zeros((BM, BN), SUM, LAYOUT)
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(ready.index(stage), count // STAGES & 1)
            right_KN = right.index(stage).permute((1, 0))
            total = warpgroup_mma(left.index(stage), right_KN, total, use_acc=step > 0, is_async=True)
            total = warpgroup_mma_wait(1, deps=(total,))  # the product before: its stage is free
            mbarrier.arrive(free.index((count + STAGES - 1) % STAGES), count=1, pred=step > 0)
            count += 1
        if GROUPS == 2:
            mbarrier.arrive(turns.index(1 - ME), count=1)
        total = warpgroup_mma_wait(0, deps=(total,))
        mbarrier.arrive(free.index((count + STAGES - 1) % STAGES), count=1)

        rows = m * BM + gl.arange(0, BM, gl.SliceLayout(1, HALF))
        row_scale = gl.load(x_scale + rows, mask=rows < M, other=0.0)[:, None]
        if residual is not None:
            mbarrier.wait(arrived.index(ME), turn & 1)
        halves = total.reshape((BM, 2, BN // 2)).permute((0, 2, 1)).split()
        for half in gl.static_range(2):  # one after the other: together they would not fit the registers
            mine = out.index(2 * ME + half)
            first = n * BN + half * (BN // 2)
            columns = first + gl.arange(0, BN // 2, gl.SliceLayout(0, HALF))
            within = columns < N
            result = gl.convert_layout(halves[half], HALF, assert_trivial=True).to(gl.float32) * row_scale
            result *= gl.load(w_scale + columns, mask=within, other=0.0)[None, :]
            if bias is not None:
                result += gl.load(bias + columns, mask=within, other=0.0).to(gl.float32)[None, :]
            if GELU:
                result = gelu_tanh(result)
            if ONE_GATE:
                result *= gl.load(gate + columns, mask=within, other=0.0)[None, :]
            elif gate is not None:
                inside = (rows < M)[:, None] & within[None, :]
                gates = gate + (rows // rows_per_gate)[:, None] * N + columns[None, :]
                result *= gl.load(gates, mask=inside, other=0.0)
            if residual is not None:
                result += mine.load(HALF).to(gl.float32)
            mine.store(result.to(y.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(y, [m * BM, first], mine)
        turn += 1
    tma.store_wait(0)


@gluon.jit
def _multiply_second(x, w, y, residual, vectors, sizes, buffers, barriers, SETUP: gl.constexpr):
    _multiply(x, w, y, residual, vectors, sizes, buffers, barriers, SETUP, 1)


@gluon.jit(do_not_specialize=["M", "rows_per_gate"])
def _gemm(
    x, w, y, residual, x_scale, w_scale, bias, gate, M, N, K, rows_per_gate,
    STAGES: gl.constexpr, ROWS: gl.constexpr, GROUPS: gl.constexpr, SUM: gl.constexpr, GELU: gl.constexpr,
    ONE_GATE: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    left = gl.allocate_shared_memory(x.dtype, [STAGES] + x.block_type.shape, x.layout)
    right = gl.allocate_shared_memory(w.dtype, [STAGES] + w.block_type.shape, w.layout)
    out = gl.allocate_shared_memory(y.dtype, [2 * GROUPS] + y.block_type.shape, y.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())  # a stage has been loaded
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())  # it has been multiplied
    arrived = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())  # a residual has
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())  # a group's loop may begin
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    for i in gl.static_range(GROUPS):
        mbarrier.init(arrived.index(i), count=1)
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()
    SETUP: gl.constexpr = (ROWS, GROUPS, num_warps, SUM, GELU, ONE_GATE)
    vectors, sizes = (x_scale, w_scale, bias, gate), (M, N, K, rows_per_gate)
    buffers, barriers = (left, right, out), (ready, free, arrived, turns)
    job = (x, w, y, residual, vectors, sizes, buffers, barriers, SETUP)
    if GROUPS == 2:
        gl.warp_specialize([(_multiply, job + (0,)), (_multiply_second, job), (_load, job)], [num_warps, 1], [232, 40])
    else:
        gl.warp_specialize([(_multiply, job + (0,)), (_load, job)], [1], [40])


def gemm_rows(
    y_MN: Tensor,
    x_MK: Tensor,
    x_scale_M: Tensor,
    weight_NK: Tensor,
    w_scale_N: Tensor,
    bias_N: Tensor | None,
    gate_BN: Tensor | None,
    residual_MN: Tensor | None,
    gelu: bool,
) -> None:
    """Write the product of rows to `y_MN`, of 2 bytes a number: arguments are `gemm.gemm`'s, checked there."""
    (M, K), N = x_MK.shape, weight_NK.shape[0]
    columns, stages, rows, groups = LONG if K > LONG_K else SHORT
    x_MK, weight_NK = aligned(x_MK), aligned(weight_NK)
    residual = None if residual_MN is None else tiled(aligned(residual_MN), SIDE, columns // 2)
    vectors = (None if t is None else t.contiguous() for t in (x_scale_M, w_scale_N, bias_N, gate_BN))
    tiles = triton.cdiv(M, SIDE) * triton.cdiv(N, columns)
    _gemm[(min(tiles, gpu.multiprocessors(x_MK.device)),)](
        tiled(x_MK, SIDE, SIDE), tiled(weight_NK, columns, SIDE), tiled(y_MN, SIDE, columns // 2), residual,
        *vectors, M, N, K, 1 if gate_BN is None else M // gate_BN.shape[0],
        STAGES=stages, ROWS=rows, GROUPS=groups,
        SUM=gl.int32 if x_MK.dtype == torch.int8 else gl.float32, GELU=gelu,
        ONE_GATE=gate_BN is not None and gate_BN.shape[0] == 1,
        num_warps=8 // groups, maxnreg=168,
    )  # fmt: skip
