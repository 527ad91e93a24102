"""Products of 8-bit matrices in Triton: x [M, K] times weight [N, K], float32 scales, what follows fused.

    y = residual + gate * gelu(x8 w8^T * scales + bias)          each of bias, gelu, gate and residual may be left out

One kernel for three formats. With row scales (int8 or fp8 e4m3) the sum over K is whole before it is scaled; with the
published 128 x 128 int8 blocks each sum of 128 products is scaled by its two blocks and added up in float32. Sums of
int8 products are exact in int32. Hopper's tensor cores cut each fp8 product, towards zero, to 13 bits below the largest
number of the sum so far: 0.3% of Gaussian outputs at K = 13824, where errors of both signs cancel, but 16% where all
products have one sign (measured: 13% of the norm with one such output in 5120). `Config.promote` bounds it.

Programs stay resident and take tiles in turn, in groups of rows that share their columns of the weight in the L2
cache. On Hopper and later tiles travel by tensor memory access (TMA), before by masked loads. Ragged M is masked, by
the hardware or by hand; N and K must be multiples of 16, which 16-byte rows of TMA need. On Hopper itself products by
rows have a kernel of their own, `kernels/gemm_hopper_gluon.py`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbodiffusion.ops.implementations import FP8_GPU
from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.gpu import aligned, grouped_tile
from turbodiffusion.ops.kernels.rounding import gelu_tanh

BLOCK = 128
# 127 * 127 * K must stay below 2^31. The sums of longer rows could wrap around.
MAX_FEATURES = 131072


@dataclass(frozen=True)
class Config:
    """How a product is cut: tile sides, tiles in flight (stages), rows of tiles a group, and the means of transport."""

    m: int = 128
    n: int = 128
    k: int = 128
    stages: int = 4
    warps: int = 8
    group: int = 8
    tma: bool = True
    specialize: bool = False  # some warps only load: Triton's automatic warp specialization
    programs: int = 1  # resident on each multiprocessor
    promote: bool = False  # add fp8 sums up in float32 after each k; 128 of one sign are then off by 0.07%


# What benchmarks/ops.py --tune tries on a GPU with TMA; block scales take those with sides of at most 128.
TUNING = (
    Config(n=256, stages=4),
    Config(n=256, stages=3),
    Config(n=256, stages=4, group=16),
    Config(n=256, stages=4, k=64),
    Config(n=256, stages=3, specialize=True),
    Config(m=256, stages=4),
    Config(m=256, stages=3, specialize=True),
    Config(stages=4),
    Config(stages=4, specialize=True),
    Config(stages=3, programs=2),
    Config(stages=3, warps=4, programs=2),
    Config(n=64, stages=3, warps=4, programs=2),
    Config(stages=3, warps=4, programs=2, promote=True),
    Config(n=256, stages=4, promote=True),
    Config(stages=4, promote=True),
    Config(stages=3, k=256, promote=True),
)


@triton.jit
def _load(x, row, column, rows, columns, stride, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """A tile of a row-major matrix, zeros outside."""
    if TMA:
        return x.load([row, column])
    else:
        i = (row + tl.arange(0, HEIGHT)).to(tl.int64)[:, None]
        j = (column + tl.arange(0, WIDTH))[None, :]
        return tl.load(x + i * stride + j, mask=(i < rows) & (j < columns), other=0.0)


@triton.jit
def _finish(
    total, m, n, y, x_scale, w_scale, bias, gate, residual, M, N, rows_per_gate, y_stride, residual_stride,
    BY_BLOCK: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
    ONE_GATE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """From the sum to the output, for a tile at row m and column n."""
    rows, columns = m + tl.arange(0, HEIGHT), n + tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    result = total.to(tl.float32)
    if not BY_BLOCK:
        result *= tl.load(x_scale + rows, mask=rows < M, other=0.0)[:, None]
        result *= tl.load(w_scale + columns, mask=columns < N, other=0.0)[None, :]
    if BIAS:
        result += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        result = gelu_tanh(result)
    if GATE:
        if ONE_GATE:
            result *= tl.load(gate + columns, mask=columns < N, other=0.0)[None, :]
        else:
            result *= tl.load(gate + (rows // rows_per_gate)[:, None] * N + columns[None, :], mask=inside, other=0.0)
    if RESIDUAL:
        result += _load(residual, m, n, M, N, residual_stride, HEIGHT, WIDTH, TMA).to(tl.float32)
    if TMA:
        y.store([m, n], result.to(y.dtype))
    else:
        places = y + rows.to(tl.int64)[:, None] * y_stride + columns[None, :]
        tl.store(places, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gemm(
    x, w, y, x_scale, w_scale, bias, gate, residual,
    M, N, K, rows_per_gate, x_stride, w_stride, y_stride, residual_stride,
    BY_BLOCK: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
    ONE_GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HALF: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr, SPECIALIZE: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
    PROMOTE: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    steps = tl.cdiv(K, BK)
    for tile in tl.range(
        tl.program_id(0),
        tiles_m * tiles_n,
        tl.num_programs(0),
        flatten=TMA and not SPECIALIZE and not BY_BLOCK,
        warp_specialize=SPECIALIZE,
    ):
        tile_m, tile_n = grouped_tile(tile, tiles_m, tiles_n, GROUP)
        m, n = tile_m * BM, tile_n * BN
        if BY_BLOCK:
            total = tl.zeros((BM, BN), tl.float32)
        else:
            total = tl.zeros((BM, BN), SUM)
        for step in range(steps):
            k = step * BK
            left = _load(x, m, k, M, K, x_stride, BM, BK, TMA)
            right = _load(w, n, k, N, K, w_stride, BN, BK, TMA)
            if BY_BLOCK:
                scale = tl.load(x_scale + m // BLOCK * steps + step) * tl.load(w_scale + n // BLOCK * steps + step)
                total += tl.dot(left, right.T, out_dtype=SUM).to(tl.float32) * scale
            else:
                total = tl.dot(left, right.T, total, out_dtype=SUM, max_num_imprecise_acc=PROMOTE)
        # Half a tile at a time: what comes in and goes out beside the sum leaves shared memory for another stage.
        left_half, right_half = tl.split(total.reshape((BM, 2, HALF)).permute((0, 2, 1)))
        for half in tl.static_range(2):
            _finish(
                left_half if half == 0 else right_half, m, n + half * HALF,
                y, x_scale, w_scale, bias, gate, residual, M, N, rows_per_gate, y_stride, residual_stride,
                BY_BLOCK, BIAS, GELU, GATE, RESIDUAL, ONE_GATE, BM, HALF, TMA,
            )  # fmt: skip


def gemm(
    x_MK: Tensor,
    x_scale: Tensor,
    weight_NK: Tensor,
    w_scale: Tensor,
    bias_N: Tensor | None = None,
    *,
    dtype: torch.dtype,
    gelu: bool = False,
    gate_BN: Tensor | None = None,
    residual_MN: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Multiply 8-bit x and weight, both int8 or both float8_e4m3fn, to [M, N] in `dtype`.

    Scales are float32: x_scale [M] and w_scale [N], or for int8 blocks [ceil(M / 128), ceil(K / 128)] and
    [ceil(N / 128), ceil(K / 128)]. gate_BN is float32, one row for M / B consecutive rows of x.
    Raises ValueError for N or K that are no multiple of 16, K over 131072, and fp8 on a GPU older than Ada.
    """
    (M, K), N = x_MK.shape, weight_NK.shape[0]
    _check(x_MK, N, K)
    y = x_MK.new_empty((M, N), dtype=dtype)
    if M == 0:
        return y
    by_block = x_scale.ndim == 2
    product = y, x_MK, x_scale, weight_NK, w_scale, bias_N, gate_BN, residual_MN, gelu
    if config is None and gpu.capability(x_MK.device)[0] == 9 and not by_block and dtype.itemsize == 2:
        # Here, because the interpreter has no Gluon.
        from turbodiffusion.ops.linear.kernels.gemm_hopper_gluon import gemm_rows

        gemm_rows(*product)
        return y
    if config is None:
        config = default_config(
            x_MK.device, M, N, dtype, by_block=by_block,
            residual=residual_MN is not None, gates=0 if gate_BN is None else gate_BN.shape[0],
        )  # fmt: skip
    if by_block and (config.k != BLOCK or max(config.m, config.n) > BLOCK):
        raise ValueError(f"gemm: block scales need tiles of at most {BLOCK} and k={BLOCK}, got {config}")
    _launch(*product, by_block, config)
    return y


def _launch(
    y_MN: Tensor,
    x_MK: Tensor,
    x_scale: Tensor,
    weight_NK: Tensor,
    w_scale: Tensor,
    bias_N: Tensor | None,
    gate_BN: Tensor | None,
    residual_MN: Tensor | None,
    gelu: bool,
    by_block: bool,
    config: Config,
) -> None:
    (M, K), N, half = x_MK.shape, weight_NK.shape[0], config.n // 2
    x_MK, weight_NK = aligned(x_MK), aligned(weight_NK)
    residual_MN = None if residual_MN is None else aligned(residual_MN)

    def tiled(x: Tensor | None, height: int, width: int) -> Tensor | TensorDescriptor | None:
        return TensorDescriptor.from_tensor(x, [height, width]) if config.tma and x is not None else x

    tiles = triton.cdiv(M, config.m) * triton.cdiv(N, config.n)
    _gemm[(min(tiles, config.programs * gpu.multiprocessors(x_MK.device)),)](
        tiled(x_MK, config.m, config.k), tiled(weight_NK, config.n, config.k), tiled(y_MN, config.m, half),
        x_scale.contiguous(), w_scale.contiguous(), None if bias_N is None else bias_N.contiguous(),
        None if gate_BN is None else gate_BN.contiguous(), tiled(residual_MN, config.m, half),
        M, N, K, 1 if gate_BN is None else M // gate_BN.shape[0],
        x_MK.stride(0), weight_NK.stride(0), y_MN.stride(0), 0 if residual_MN is None else residual_MN.stride(0),
        BY_BLOCK=by_block, BIAS=bias_N is not None, GELU=gelu, GATE=gate_BN is not None,
        RESIDUAL=residual_MN is not None, ONE_GATE=gate_BN is not None and gate_BN.shape[0] == 1,
        BM=config.m, BN=config.n, BK=config.k, HALF=half, GROUP=config.group, TMA=config.tma,
        SPECIALIZE=config.specialize, SUM=tl.int32 if x_MK.dtype == torch.int8 else tl.float32, BLOCK=BLOCK,
        PROMOTE=config.k if config.promote and x_MK.dtype != torch.int8 else None,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def default_config(
    device: torch.device,
    M: int,
    N: int,
    dtype: torch.dtype,
    *,
    by_block: bool,
    residual: bool,
    gates: int,
) -> Config:
    """Choose tiles by the GPU's family, then as many in flight as its shared memory holds, at most four.

    On Hopper int8 blocks have two programs with small tiles, which hide each other's epilogues: by benchmarks/ops.py
    --tune on an H200, 32760 rows, 1.04 to 1.35 times as fast as one program with the best tile. With a residual, memory
    for three stages would not suffice. Wide tiles leave none for float32 or for gates of several videos, which change
    their layout by way of it.
    """
    major = gpu.capability(device)[0]
    tma, roomy = major >= 9, major in (9, 10)  # consumer Blackwell has TMA and 99 KB of shared memory
    if major == 9 and by_block and not residual and dtype.itemsize <= 2:
        return Config(stages=3, warps=4, programs=2)
    tiles = -(-M // 128) * -(-N // 256)
    wide = roomy and not by_block and dtype.itemsize <= 2 and gates < 2 and tiles >= gpu.multiprocessors(device)
    n, k = 256 if wide else 128, BLOCK if by_block or roomy else 64
    after = 128 * n // 2 * dtype.itemsize * (1 + residual) if tma else 0
    stages = (gpu.shared_memory(device) - after - 2048) // ((128 + n) * k)
    return Config(n=n, k=k, stages=max(1, min(stages, 4)), tma=tma)


def _check(x_MK: Tensor, N: int, K: int) -> None:
    if N % 16 or K % 16:
        raise ValueError(f"gemm: impl 'triton' needs N and K to be multiples of 16, got {N} and {K}; use 'reference'")
    if not 0 < K <= MAX_FEATURES:
        raise ValueError(f"gemm: impl 'triton' sums 1 to {MAX_FEATURES} int8 products exactly, got K={K}")
    if x_MK.dtype != torch.int8 and gpu.capability(x_MK.device) < FP8_GPU:
        raise ValueError("gemm: fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper); int8 runs on this one")
