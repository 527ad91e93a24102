"""Softmax attention of each query block over its kept key blocks, forward, in Triton.

One program computes rows of one query block of one head: online softmax in powers of two (FlashAttention-2, arXiv
2307.08691, algorithm 1) over the blocks that the map names. q, k and v are read where they lie, with their strides.
The last block of the map is the only one that can reach past the end, because the map ascends: it goes first, masked,
and the loop over all others needs no mask. The loop can multiply ahead for the next block while the tensor cores would
wait for a softmax (`Launch.ahead`; FlashAttention-3, arXiv 2407.08608, section 3.2).

The same kernel does three things more. With 8-bit inputs (`sage_triton.py` makes them) it computes SageAttention's
arithmetic. Without a map it is dense. Given the state of the linear part (`linear_triton.py`) it adds the projected
linear term to its output, which saves a pass over q and two over the output. Descriptors of tensors become bulk copies
on Hopper and later and plain loads before. What is float32 is multiplied in float32. One compiled kernel serves all
lengths: sizes are not specialized.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbodiffusion.ops.kernels import BLOCKS, HEAD_DIMS
from turbodiffusion.ops.linear import gemm_triton
from turbodiffusion.ops.rounding_triton import ROUNDER

LOG2E = 1.4426950408889634
_LOG2E = tl.constexpr(LOG2E)
_LN2 = tl.constexpr(0.6931471805599453)

# log2(448): probabilities are scaled to the whole range of fp8 by a term of their exponent.
_LOG2_FP8_MAX = tl.constexpr(8.807354922057604)

# Float32 numbers around ROUNDER are one apart, so that adding it to an integer below 2^22 in size, on the bits, makes a
# float that is off by a constant. It costs an addition, where a conversion costs several.
_MAGIC = ROUNDER
_MAGIC_BITS = tl.constexpr(0x4B400000)

# Columns of q that the linear term holds at a time: whole rows beside the accumulator would not fit the registers.
_CHUNK = tl.constexpr(64)


@dataclass(frozen=True)
class Launch:
    """How programs are laid out; what is fastest is for benchmarks/attention.py to say."""

    rows: int = 128  # of q a program, at most a block
    num_warps: int | None = None  # a warp for 16 rows if None; never more
    num_stages: int = 3  # depth of the software pipeline
    maxnreg: int | None = None  # registers a thread; None leaves it to the compiler
    # Hopper cuts fp8 products towards zero to 14 bits of their sum: take that into float32 after each step, or never.
    # Never is unsafe. A model of the cut, which predicts the errors measured in gemm_triton.py, makes outputs over 3264
    # keys 2% too small where a channel of v has a mean of half its standard deviation, 6% where of twice; where it has
    # none they are 0.2% off.
    exact_sums: bool = True
    ahead: bool = False  # multiply q with a key block before the softmax of the one before it
    pair: bool = False  # two key blocks a step
    split: bool = False  # multiply v's halves of columns one after the other: fewer registers wait for a sum


# By benchmarks/attention.py --tune on an H200, 32760 tokens, 12 heads, a tenth of the blocks, with the linear term:
# 1.04 ms (three programs fit a multiprocessor), where the defaults above take 1.45.
HOPPER_EIGHT_BITS = Launch(rows=64, num_stages=2, maxnreg=168)


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
    q, k_desc, k_scale_ptr, block, b, h, S, scale,
    BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, MAGIC: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """q k^T of one key block, float32, with _MAGIC added if asked, and what to multiply it with."""
    k = k_desc.load([b, block * BLOCK_K, h, 0]).reshape(BLOCK_K, D)
    if EIGHT_BITS:
        scale *= tl.load(k_scale_ptr + block)
    if MAGIC:
        scores = (tl.dot(q, k.T) + _MAGIC_BITS).to(tl.float32, bitcast=True)
    elif q.dtype == tl.int8:
        scores = tl.dot(q, k.T).to(tl.float32)
    else:
        scores = tl.dot(q, k.T, input_precision="ieee")
    if MASK:
        scores = tl.where((block * BLOCK_K + tl.arange(0, BLOCK_K) < S)[None, :], scores, float("-inf"))
    return scores, scale


@triton.jit
def _softmax_step(
    acc, more, total, largest, scores, scale, v_desc, block, b, h, H,
    BLOCK_K: tl.constexpr, EIGHT_BITS: tl.constexpr, MAGIC: tl.constexpr, EXACT_SUMS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """One key block of the online softmax; `largest` is the maximum so far of the scores in powers of two.

    `acc` has all columns of the output, or with SPLIT the first half and `more` the second.
    """
    offset = _MAGIC * scale if MAGIC else 0.0
    now = tl.maximum(largest, tl.max(scores, 1) * scale - offset)
    rescale = tl.exp2(largest - now)
    if EIGHT_BITS:
        offset -= _LOG2_FP8_MAX
    p = tl.exp2(scores * scale - (now + offset)[:, None])
    total = total * rescale + tl.sum(p, 1)
    p = _low(p, v_desc, BLOCK_K, EIGHT_BITS)
    acc = _add_values(acc, rescale, p, v_desc, block, b, h, H, 0, BLOCK_K, EIGHT_BITS, EXACT_SUMS)
    if SPLIT:
        more = _add_values(more, rescale, p, v_desc, block, b, h, H, more.shape[1], BLOCK_K, EIGHT_BITS, EXACT_SUMS)
    return acc, more, total, now


@triton.jit
def _pair_step(
    acc, total, largest, q, k_desc, v_desc, k_scale_ptr, one, two, b, h, S, H, scale,
    BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, MAGIC: tl.constexpr, EXACT_SUMS: tl.constexpr,
):  # fmt: skip
    """Two key blocks of the online softmax at once: one rescaling and one sum of products for both."""
    scores, scale_one = _scores(
        q, k_desc, k_scale_ptr, one, b, h, S, scale, BLOCK_K, D, EIGHT_BITS, MAGIC, False
    )  # fmt: skip
    others, scale_two = _scores(
        q, k_desc, k_scale_ptr, two, b, h, S, scale, BLOCK_K, D, EIGHT_BITS, MAGIC, False
    )  # fmt: skip
    offset_one = _MAGIC * scale_one if MAGIC else 0.0
    offset_two = _MAGIC * scale_two if MAGIC else 0.0
    top = tl.maximum(tl.max(scores, 1) * scale_one - offset_one, tl.max(others, 1) * scale_two - offset_two)
    now = tl.maximum(largest, top)
    rescale = tl.exp2(largest - now)
    if EIGHT_BITS:
        offset_one -= _LOG2_FP8_MAX
        offset_two -= _LOG2_FP8_MAX
    p = tl.exp2(scores * scale_one - (now + offset_one)[:, None])
    others = tl.exp2(others * scale_two - (now + offset_two)[:, None])
    total = total * rescale + tl.sum(p + others, 1)
    p = _low(p, v_desc, BLOCK_K, EIGHT_BITS)
    others = _low(others, v_desc, BLOCK_K, EIGHT_BITS)
    if EIGHT_BITS and EXACT_SUMS:
        both = _add_values(tl.zeros_like(acc), None, p, v_desc, one, b, h, H, 0, BLOCK_K, EIGHT_BITS, False)
        both = _add_values(both, None, others, v_desc, two, b, h, H, 0, BLOCK_K, EIGHT_BITS, False)
        acc = acc * rescale[:, None] + both
    else:
        acc = _add_values(acc, rescale, p, v_desc, one, b, h, H, 0, BLOCK_K, EIGHT_BITS, False)
        acc = _add_values(acc, None, others, v_desc, two, b, h, H, 0, BLOCK_K, EIGHT_BITS, False)
    return acc, total, now


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
def _add_values(
    acc, rescale, p, v_desc, block, b, h, H, column,
    BLOCK_K: tl.constexpr, EIGHT_BITS: tl.constexpr, EXACT_SUMS: tl.constexpr,
):  # fmt: skip
    """acc * rescale + p v, for as many columns of v from `column` as `acc` has."""
    COLUMNS: tl.constexpr = acc.shape[1]
    if rescale is not None:
        acc *= rescale[:, None]
    if EIGHT_BITS:
        v = v_desc.load([b * H + h, block, column, 0]).reshape(COLUMNS, BLOCK_K)
        if EXACT_SUMS:
            acc += tl.dot(p, v.T, max_num_imprecise_acc=BLOCK_K)
        else:
            acc = tl.dot(p, v.T, acc)
    else:
        v = v_desc.load([b, block * BLOCK_K, h, column]).reshape(BLOCK_K, COLUMNS)
        acc = tl.dot(p, v, acc, input_precision="ieee")
    return acc


@triton.jit
def row_shift(q, key_sum):
    """What makes 2^(q log2(e) + shift) phi(q) / (1e-5 + phi(q) . key_sum), for rows of float32 q; phi the softmax."""
    top = tl.max(q, 1) * _LOG2E
    e = tl.exp2(q * _LOG2E - top[:, None])
    return -top - tl.log2(tl.sum(e * (key_sum + 1e-5)[None, :], 1))


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
    q, k_desc, v_desc, k_scale_ptr, map_ptr, b, h, S, H, kept, softmax_scale,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr, GATHER: tl.constexpr,
    EXACT_SUMS: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """The online softmax over all kept blocks: sums not yet divided by their total, and the largest score."""
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D // 2 if SPLIT else D], tl.float32)
    more = tl.zeros([ROWS, D // 2 if SPLIT else 1], tl.float32)
    # The addition turns into the sum's first value, a copy; where scores are copied anyway, a conversion does it.
    MAGIC: tl.constexpr = q.dtype == tl.int8 and not AHEAD
    block = tl.load(map_ptr + kept - 1) if GATHER else kept - 1
    scores, scale = _scores(
        q, k_desc, k_scale_ptr, block, b, h, S, softmax_scale, BLOCK_K, D, EIGHT_BITS, MAGIC, True
    )  # fmt: skip
    if not AHEAD:
        acc, more, total, largest = _softmax_step(
            acc, more, total, largest, scores, scale, v_desc, block, b, h, H,
            BLOCK_K, EIGHT_BITS, MAGIC, EXACT_SUMS, SPLIT,
        )  # fmt: skip
    pairs = (kept - 1) // 2 if PAIR else 0
    for j in range(pairs):
        one = tl.load(map_ptr + 2 * j) if GATHER else 2 * j
        two = tl.load(map_ptr + 2 * j + 1) if GATHER else 2 * j + 1
        acc, total, largest = _pair_step(
            acc, total, largest, q, k_desc, v_desc, k_scale_ptr, one, two, b, h, S, H, softmax_scale,
            BLOCK_K, D, EIGHT_BITS, MAGIC, EXACT_SUMS,
        )  # fmt: skip
    for j in range(2 * pairs, kept - 1):
        block = tl.load(map_ptr + j) if GATHER else j
        following, following_scale = _scores(
            q, k_desc, k_scale_ptr, block, b, h, S, softmax_scale, BLOCK_K, D, EIGHT_BITS, MAGIC, False
        )  # fmt: skip
        if AHEAD:
            # The tensor cores multiply for this block while the softmax of the one before it goes on.
            before = tl.where(j > 0, j - 1, kept - 1)
            block = tl.load(map_ptr + before) if GATHER else before
        else:
            scores, scale = following, following_scale
        acc, more, total, largest = _softmax_step(
            acc, more, total, largest, scores, scale, v_desc, block, b, h, H,
            BLOCK_K, EIGHT_BITS, MAGIC, EXACT_SUMS, SPLIT,
        )  # fmt: skip
        scores, scale = following, following_scale
    if AHEAD:
        block = tl.where(kept > 1, kept - 2, 0)
        block = tl.load(map_ptr + block) if GATHER else block
        acc, more, total, largest = _softmax_step(
            acc, more, total, largest, scores, scale, v_desc, block, b, h, H,
            BLOCK_K, EIGHT_BITS, MAGIC, EXACT_SUMS, SPLIT,
        )  # fmt: skip
    return acc, more, total, largest


@triton.jit(do_not_specialize=["L", "S", "H", "kept"])
def _forward_kernel(
    q_desc, k_desc, v_desc, map_ptr, out_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr,
    raw_q_ptr, state_ptr, shift_ptr, bias_ptr, raw_b, raw_l, raw_h,
    L, S, H, kept, softmax_scale,
    ROWS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, EIGHT_BITS: tl.constexpr,
    GATHER: tl.constexpr, LINEAR: tl.constexpr, LSE: tl.constexpr, EXACT_SUMS: tl.constexpr, SPLIT: tl.constexpr,
    AHEAD: tl.constexpr, PAIR: tl.constexpr,
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
        k_scale_ptr += bh * tl.cdiv(S, BLOCK_K)
    else:
        q = q_desc.load([b, start, h, 0]).reshape(ROWS, D)
    if GATHER:
        map_ptr += (bh * blocks_q + n).to(tl.int64) * kept

    acc, more, total, largest = _through_blocks(
        q, k_desc, v_desc, k_scale_ptr, map_ptr, b, h, S, H, kept, softmax_scale,
        ROWS, BLOCK_K, D, EIGHT_BITS, GATHER, EXACT_SUMS, SPLIT, AHEAD, PAIR,
    )  # fmt: skip
    if SPLIT:
        acc = tl.join(acc, more).permute(0, 2, 1).reshape(ROWS, D)

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
    """`sla.sparse_attention_forward`, plus the projected linear term if given: the output and the log-sum-exp."""
    check_sizes("sparse_attention", q_BLHD.shape[-1], block_q, block_k)
    launch = launch or Launch()
    k = describe(k_BLHD, block_k)
    v = describe(v_BLHD, block_k, parts=1 + launch.split)
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

    In 8 bits q is [B * H * blocks * block_q, D], k a view [B, blocks * block_k, H, D] and v
    [B * H, blocks, D, block_k] with its keys in `sage_triton.KEY_ORDER`: wgmma takes fp8 with the summed dimension
    innermost alone.
    """
    B, L, H, D = out_BLHD.shape
    rows = min(launch.rows, block_q)
    warps = launch.num_warps or rows // 16
    if warps > rows // 16:
        # Compiled for Hopper, 8 warps on 64 rows read and write where they must not.
        raise ValueError(f"sparse_attention: {rows} rows take at most {rows // 16} warps, got {warps}")
    if launch.pair and (launch.ahead or launch.split):
        raise ValueError("sparse_attention: pair goes neither with ahead nor with split")
    kept = -(-keys // block_k) if map_BHNK is None else map_BHNK.shape[-1]
    raw = linear.q_BLHD if linear is not None else out_BLHD
    assert raw.stride(-1) == 1, "the linear term reads q by its rows"
    _forward_kernel[(-(-L // rows), B * H)](
        q, k, v, None if map_BHNK is None else map_BHNK.contiguous(), out_BLHD, lse_BHL,
        *((scales.q_BHN, scales.k_BHN, scales.v_BHD) if scales else (None, None, None)),
        *((raw, linear.state_BHDE, linear.shift_BHL, linear.bias_D) if linear else (None, None, None, None)),
        *raw.stride()[:3], L, keys, H, kept, D**-0.5 * LOG2E,
        ROWS=rows, BLOCK_Q=block_q, BLOCK_K=block_k, D=D, EIGHT_BITS=scales is not None,
        GATHER=map_BHNK is not None, LINEAR=linear is not None, LSE=lse_BHL is not None,
        EXACT_SUMS=launch.exact_sums, SPLIT=launch.split, AHEAD=launch.ahead, PAIR=launch.pair,
        num_warps=warps, num_stages=launch.num_stages, maxnreg=launch.maxnreg,
    )  # fmt: skip


def eight_bit_launch(device: torch.device) -> Launch:
    """What is fastest for 8-bit inputs. Other families hold more in registers: the bound for Hopper would spill."""
    return HOPPER_EIGHT_BITS if gemm_triton.capability(device)[0] == 9 else Launch()


def describe(x_BLHD: Tensor, rows: int, parts: int = 1) -> TensorDescriptor:
    """A descriptor that loads [1, rows, 1, D / parts]; rows past the end are zeros.

    Copies x only if it cannot be described.
    """
    x = described(x_BLHD)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, 1, x.shape[-1] // parts])


def described(x: Tensor) -> Tensor:
    """x itself where a descriptor can address it (16-byte rows, columns side by side), else a contiguous copy."""
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
