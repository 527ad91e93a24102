"""Softmax attention of each query block over its kept key blocks, forward, in Triton.

One program computes rows of one query block of one head: online softmax in powers of two (FlashAttention-2, arXiv
2307.08691, algorithm 1) over the blocks that the map names. q, k and v are read where they lie, with their strides.
The last block of the map is the only one that can reach past the end, because the map ascends: it goes first, masked,
and the loops over all others need no mask. A step can take two blocks (`Launch.pair`): their softmax has twice the
independent work, and one rescaling of the sums serves both.

The same kernel does three things more. With 8-bit inputs (`kernels/sage.py` makes them) it computes SageAttention's
arithmetic. Without a map it is dense. Given the state of the linear part (`kernels/linear.py`) it adds the projected
linear term to its output, which saves a pass over q and two over the output. Descriptors of tensors become bulk copies
on Hopper and later and plain loads before. What is float32 is multiplied in float32. One compiled kernel serves all
lengths: sizes are not specialized.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbodiffusion.ops.implementations import BLOCKS, HEAD_DIMS
from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.kernels.rounding import INTERPRETED, ROUNDER

LOG2E = 1.4426950408889634
_LOG2E = tl.constexpr(LOG2E)
_LN2 = tl.constexpr(0.6931471805599453)

# log2(448): probabilities are scaled to the whole range of fp8 by a term of their exponent.
LOG2_FP8_MAX = tl.constexpr(8.807354922057604)

# Float32 numbers around ROUNDER are one apart, so that adding it to an integer below 2^22 in size, on the bits, makes a
# float that is off by a constant. It costs an addition, where a conversion costs several.
MAGIC_BITS = tl.constexpr(0x4B400000)

# Columns of q that the linear term holds at a time: whole rows beside the accumulator would not fit the registers.
_CHUNK = tl.constexpr(64)


@dataclass(frozen=True)
class Launch:
    """How programs are laid out; what is fastest is for benchmarks/attention.py to say."""

    rows: int = 128  # of q a program, at most a block
    num_warps: int | None = None  # a warp for 16 rows if None; never more
    num_stages: int = 3  # depth of the software pipeline
    maxnreg: int | None = None  # registers a thread; None leaves it to the compiler
    pair: bool = False  # two key blocks a step


# By benchmarks/attention.py --tune on an H100, 32760 tokens, 12 heads, a tenth of the blocks, with the linear term:
# 0.977 ms (three programs fit a multiprocessor); 0.973 with three stages, 1.034 by a block a step, 1.257 by 128 rows.
# Wan's sizes have a kernel of their own there (`kernels/sparse_hopper_gluon.py`): in 8 bits this is for all others.
HOPPER_EIGHT_BITS = Launch(rows=64, num_stages=2, maxnreg=168, pair=True)
# In that run 1.581 ms for bfloat16; 1.731 by a block a step, 1.759 by the defaults above.
HOPPER_SIXTEEN_BITS = Launch(num_stages=2, pair=True)


@dataclass(frozen=True)
class LinearTerm:
    """What the kernel needs to add proj_l(linear attention) to its output."""

    q_BLHD: Tensor  # as the model has it, not in 8 bits
    state_BHDE: Tensor  # (phi(k)^T v) proj_l^T, in q's dtype
    shift_BHL: Tensor  # of q's rows, float32: see `row_shift`
    bias_D: Tensor  # float32


@dataclass(frozen=True)
class Scales:
    """What the 8-bit values are multiplied with, float32."""

    q_BHN: Tensor
    k_BHN: Tensor
    v_BHD: Tensor


@triton.jit
def _scores(
    q, k_desc, k_scale_ptr, block, b, h, first, S, scale,
    BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, MAGIC: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """q k^T of one key block, float32, with ROUNDER added if asked, and what to multiply it with."""
    if EIGHT_BITS:
        k = k_desc.load([(first + block) * BLOCK_K, 0])
        scale *= tl.load(k_scale_ptr + (first + block))
    else:
        k = k_desc.load([b, block * BLOCK_K, h, 0]).reshape(BLOCK_K, D)
    if MAGIC:
        scores = (tl.dot(q, k.T) + MAGIC_BITS).to(tl.float32, bitcast=True)
    elif q.dtype == tl.int8:
        scores = tl.dot(q, k.T).to(tl.float32)
    else:
        scores = tl.dot(q, k.T, input_precision="ieee")
    if MASK:
        scores = tl.where((block * BLOCK_K + tl.arange(0, BLOCK_K) < S)[None, :], scores, float("-inf"))
    return scores, scale


@triton.jit
def _top(scores, scale, MAGIC: tl.constexpr):
    """The largest score of each row in powers of two."""
    return tl.max(scores, 1) * scale - (ROUNDER * scale if MAGIC else 0.0)


@triton.jit
def _probabilities(scores, scale, largest, EIGHT_BITS: tl.constexpr, MAGIC: tl.constexpr):
    """2^(scores - largest), in 8 bits times 448."""
    offset = ROUNDER * scale if MAGIC else 0.0
    if EIGHT_BITS:
        offset -= LOG2_FP8_MAX
    return tl.exp2(scores * scale - (largest + offset)[:, None])


@triton.jit
def _low(p, v_desc, BLOCK_K: tl.constexpr, EIGHT_BITS: tl.constexpr):
    """Probabilities in v's dtype.

    The accumulator of q k^T and the fp8 operand of p v spread a row over the threads of a warp differently. The order
    of the keys in which v is stored in 8 bits leaves each probability in the thread that computed it.
    """
    p = p.to(v_desc.dtype)
    if EIGHT_BITS:
        ROWS: tl.constexpr = p.shape[0]
        p = p.reshape(ROWS, BLOCK_K // 16, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(ROWS, BLOCK_K)
    return p


@triton.jit
def _values(v_desc, block, b, h, first, BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr):
    """[BLOCK_K, D] of v."""
    if EIGHT_BITS:
        return v_desc.load([(first + block) * D, 0]).T
    else:
        return v_desc.load([b, block * BLOCK_K, h, 0]).reshape(BLOCK_K, D)


@triton.jit
def _step(
    acc, total, largest, q, k_desc, v_desc, k_scale_ptr, block, other, b, h, first, S, softmax_scale,
    BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, MASK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Key block `block`, with PAIR also `other`, of the online softmax; `largest`: of the scores so far, see `_top`.

    Hopper cuts fp8 products towards zero to 14 bits of their sum, so that a sum never leaves the tensor cores for more
    than one step. A model of the cut, which predicts the errors measured in kernels/gemm.py, makes sums over 3264 keys
    2% too small where a channel of v has a mean of half its standard deviation, and 6% where of twice.
    """
    MAGIC: tl.constexpr = q.dtype == tl.int8
    scores, scale = _scores(
        q, k_desc, k_scale_ptr, block, b, h, first, S, softmax_scale, BLOCK_K, D, EIGHT_BITS, MAGIC, MASK
    )  # fmt: skip
    now = tl.maximum(largest, _top(scores, scale, MAGIC))
    if PAIR:
        others, other_scale = _scores(
            q, k_desc, k_scale_ptr, other, b, h, first, S, softmax_scale, BLOCK_K, D, EIGHT_BITS, MAGIC, False
        )  # fmt: skip
        now = tl.maximum(now, _top(others, other_scale, MAGIC))
    rescale = tl.exp2(largest - now)
    acc *= rescale[:, None]
    p = _probabilities(scores, scale, now, EIGHT_BITS, MAGIC)
    if PAIR:
        other_p = _probabilities(others, other_scale, now, EIGHT_BITS, MAGIC)
        total = total * rescale + tl.sum(p + other_p, 1)
        p = _low(p, v_desc, BLOCK_K, EIGHT_BITS)
        other_p = _low(other_p, v_desc, BLOCK_K, EIGHT_BITS)
        v = _values(v_desc, block, b, h, first, BLOCK_K, D, EIGHT_BITS)
        other_v = _values(v_desc, other, b, h, first, BLOCK_K, D, EIGHT_BITS)
        if EIGHT_BITS:
            acc += tl.dot(other_p, other_v, tl.dot(p, v))
        else:
            acc = tl.dot(p, v, acc, input_precision="ieee")
            acc = tl.dot(other_p, other_v, acc, input_precision="ieee")
    else:
        total = total * rescale + tl.sum(p, 1)
        p = _low(p, v_desc, BLOCK_K, EIGHT_BITS)
        v = _values(v_desc, block, b, h, first, BLOCK_K, D, EIGHT_BITS)
        if EIGHT_BITS:
            acc += tl.dot(p, v, max_num_imprecise_acc=BLOCK_K)
        else:
            acc = tl.dot(p, v, acc, input_precision="ieee")
    return acc, total, now


@triton.jit
def _log2(x):
    """Of normal numbers, on a GPU by its own instruction: off by 2^-22 at most where an exact one takes 20."""
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def row_shift(q, key_sum):
    """What makes 2^(q log2(e) + shift) phi(q) / (1e-5 + phi(q) . key_sum), for rows of float32 q; phi the softmax."""
    top = tl.max(q, 1) * _LOG2E
    e = tl.exp2(q * _LOG2E - top[:, None])
    return -top - _log2(tl.sum(e * (key_sum + 1e-5)[None, :], 1))


@triton.jit
def add_linear(acc, q_ptrs, mask, shift, state_ptr, D: tl.constexpr):
    """acc + phi(q) state / (1e-5 + phi(q) . key_sum).

    `q_ptrs` [rows, 1] points to the first column of each row, whose `row_shift` is given: dividing phi instead of the
    product lets the product add to `acc` where it is.
    """
    CHUNK: tl.constexpr = _CHUNK if _CHUNK < D else D
    column = tl.arange(0, CHUNK)
    for start in tl.static_range(0, D, CHUNK):
        q = tl.load(q_ptrs + start + column[None, :], mask=mask, other=0.0).to(tl.float32)
        state = tl.load(state_ptr + (start + column)[:, None] * D + tl.arange(0, D)[None, :])
        phi = tl.exp2(q * _LOG2E + shift[:, None])
        acc = tl.dot(phi.to(state.dtype), state, acc, input_precision="ieee")
    return acc


@triton.jit
def _through_blocks(
    q, k_desc, v_desc, k_scale_ptr, map_ptr, b, h, first, S, kept, softmax_scale,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, GATHER: tl.constexpr,
    PAIR: tl.constexpr,
):  # fmt: skip
    """The online softmax over all kept blocks: sums not yet divided by their total, and the largest score."""
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    block = tl.load(map_ptr + kept - 1) if GATHER else kept - 1
    acc, total, largest = _step(
        acc, total, largest, q, k_desc, v_desc, k_scale_ptr, block, None, b, h, first, S, softmax_scale,
        BLOCK_K, D, EIGHT_BITS, True, False,
    )  # fmt: skip
    pairs = (kept - 1) // 2 if PAIR else 0
    for j in range(pairs):
        block = tl.load(map_ptr + 2 * j) if GATHER else 2 * j
        other = tl.load(map_ptr + 2 * j + 1) if GATHER else 2 * j + 1
        acc, total, largest = _step(
            acc, total, largest, q, k_desc, v_desc, k_scale_ptr, block, other, b, h, first, S, softmax_scale,
            BLOCK_K, D, EIGHT_BITS, False, True,
        )  # fmt: skip
    for j in range(2 * pairs, kept - 1):
        block = tl.load(map_ptr + j) if GATHER else j
        acc, total, largest = _step(
            acc, total, largest, q, k_desc, v_desc, k_scale_ptr, block, None, b, h, first, S, softmax_scale,
            BLOCK_K, D, EIGHT_BITS, False, False,
        )  # fmt: skip
    return acc, total, largest


@triton.jit(do_not_specialize=["L", "S", "H", "kept"])
def _forward_kernel(
    q_desc, k_desc, v_desc, map_ptr, out_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr,
    raw_q_ptr, state_ptr, shift_ptr, bias_ptr, raw_b, raw_l, raw_h,
    L, S, H, kept, softmax_scale,
    ROWS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr,
    GATHER: tl.constexpr, LINEAR: tl.constexpr, LSE: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(L / ROWS), B * H); the output is contiguous [B, L, H, D] and softmax_scale has log2(e) in it."""
    start = tl.program_id(0) * ROWS
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    n = start // BLOCK_Q
    blocks_q = tl.cdiv(L, BLOCK_Q)
    rows = start + tl.arange(0, ROWS)
    row_mask = rows < L
    column = tl.arange(0, D)
    if EIGHT_BITS:
        q = q_desc.load([bh * blocks_q * BLOCK_Q + start, 0])
        softmax_scale *= tl.load(q_scale_ptr + bh * blocks_q + n)
    else:
        q = q_desc.load([b, start, h, 0]).reshape(ROWS, D)
    first = bh * tl.cdiv(S, BLOCK_K)  # the place of this head's first block among all in 8 bits
    if GATHER:
        map_ptr += (bh * blocks_q + n).to(tl.int64) * kept

    acc, total, largest = _through_blocks(
        q, k_desc, v_desc, k_scale_ptr, map_ptr, b, h, first, S, kept, softmax_scale,
        ROWS, BLOCK_K, D, EIGHT_BITS, GATHER, PAIR,
    )  # fmt: skip

    if LSE:
        tl.store(lse_ptr + bh.to(tl.int64) * L + rows, (largest + tl.log2(total)) * _LN2, mask=row_mask)
    acc *= (1.0 / total)[:, None]
    if EIGHT_BITS:
        acc *= tl.load(v_scale_ptr + bh * D + column)[None, :]
    if LINEAR:
        raw_q_ptr += b.to(tl.int64) * raw_b + h.to(tl.int64) * raw_h + start.to(tl.int64) * raw_l
        raw_ptrs = raw_q_ptr + tl.arange(0, ROWS)[:, None] * raw_l
        shift = tl.load(shift_ptr + bh.to(tl.int64) * L + rows, mask=row_mask, other=0.0)
        acc = add_linear(acc, raw_ptrs, row_mask[:, None], shift, state_ptr + bh * D * D, D)
        acc += tl.load(bias_ptr + column)[None, :]
    out_ptr += ((b.to(tl.int64) * L + start) * H + h) * D
    out_ptrs = out_ptr + tl.arange(0, ROWS)[:, None] * (H * D) + column[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=row_mask[:, None])


def sparse_forward(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    map_BHNK: Tensor,
    block_q: int,
    block_k: int,
    *,
    linear: LinearTerm | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `sla.sparse_attention_forward`, plus the projected linear term if given: the output and the log-sum-exp."""
    check_sizes("sparse_attention", q_BLHD.shape[-1], block_q, block_k)
    launch = launch or fastest_launch(q_BLHD, block_k)
    k = describe(k_BLHD, block_k)
    v = describe(v_BLHD, block_k)
    q = describe(q_BLHD, min(launch.rows, block_q))
    out = torch.empty(q_BLHD.shape, dtype=q_BLHD.dtype, device=q_BLHD.device)
    B, L, H, _ = q_BLHD.shape
    lse = torch.empty(B, H, L, dtype=torch.float32, device=q_BLHD.device)
    launch_forward(q, k, v, map_BHNK, out, lse, k_BLHD.shape[1], block_q, block_k, None, linear, launch)
    return out, lse


def launch_forward(
    q: TensorDescriptor,
    k: TensorDescriptor,
    v: TensorDescriptor,
    map_BHNK: Tensor | None,
    out_BLHD: Tensor,
    lse_BHL: Tensor | None,
    keys: int,
    block_q: int,
    block_k: int,
    scales: Scales | None,
    linear: LinearTerm | None,
    launch: Launch,
) -> None:
    """Write `out_BLHD` and `lse_BHL`. Without a map all blocks are kept; with `scales` q, k and v are in 8 bits.

    In 8 bits q is [B * H * blocks * block_q, D], k [B * H * blocks * block_k, D] and v [B * H * blocks * D, block_k]
    with its keys in `kernels.quantize.KEY_ORDER`: wgmma takes fp8 with the summed dimension innermost alone.
    """
    B, L, H, D = out_BLHD.shape
    rows = min(launch.rows, block_q)
    warps = launch.num_warps or rows // 16
    if warps > rows // 16:
        # Compiled for Hopper, 8 warps on 64 rows read and write where they must not.
        raise ValueError(f"sparse_attention: {rows} rows take at most {rows // 16} warps, got {warps}")
    kept = -(-keys // block_k) if map_BHNK is None else map_BHNK.shape[-1]
    raw = linear.q_BLHD if linear is not None else out_BLHD
    assert raw.stride(-1) == 1, "the linear term reads q by its rows"
    _forward_kernel[(-(-L // rows), B * H)](
        q, k, v, None if map_BHNK is None else map_BHNK.contiguous(), out_BLHD, lse_BHL,
        *((scales.q_BHN, scales.k_BHN, scales.v_BHD) if scales else (None, None, None)),
        *((raw, linear.state_BHDE, linear.shift_BHL, linear.bias_D) if linear else (None, None, None, None)),
        *raw.stride()[:3], L, keys, H, kept, D**-0.5 * LOG2E,
        ROWS=rows, BLOCK_Q=block_q, BLOCK_K=block_k, D=D, EIGHT_BITS=scales is not None,
        GATHER=map_BHNK is not None, LINEAR=linear is not None, LSE=lse_BHL is not None, PAIR=launch.pair,
        num_warps=warps, num_stages=launch.num_stages, maxnreg=launch.maxnreg,
    )  # fmt: skip


def fastest_launch(q: Tensor, block_k: int) -> Launch:
    """Choose for q's device and dtype. Hopper's needs more registers or shared memory than others have."""
    if gpu.capability(q.device)[0] != 9 or q.element_size() > 2:
        return Launch()
    launch = HOPPER_EIGHT_BITS if q.element_size() == 1 else HOPPER_SIXTEEN_BITS
    return replace(launch, pair=block_k == 64)  # two blocks of 128 do not fit


def describe(x_BLHD: Tensor, rows: int) -> TensorDescriptor:
    """Make a descriptor that loads [1, rows, 1, D]; rows past the end are zeros.

    Copies x only if it cannot be described.
    """
    x = described(x_BLHD)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, 1, x.shape[-1]])


def described(x: Tensor) -> Tensor:
    """Return x itself where a descriptor can address it (16-byte rows, dense columns), else a contiguous copy."""
    step = 16 // x.element_size()
    fits = x.stride(-1) == 1 and all(s % step == 0 for s in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    return x if fits and all(s > 0 for s in x.stride()) else x.contiguous()


def check_sizes(op: str, head_dim: int, block_q: int, block_k: int) -> None:
    """Raise ValueError for sizes that the kernels do not take."""
    if head_dim not in HEAD_DIMS or block_q not in BLOCKS or block_k not in BLOCKS:
        raise ValueError(
            f"{op}: impl 'triton' takes a head dim of {', '.join(map(str, HEAD_DIMS))} and blocks of 64 or 128, got "
            f"{head_dim}, {block_q} and {block_k}; use 'reference'"
        )
