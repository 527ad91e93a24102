"""Dense attention and its tangent in one pass, in Triton (`dense.py` has the formulas).

The online softmax of FlashAttention-2 (arXiv 2307.08691, algorithm 1) carries two more sums along: of p * dS, and of
(p * dS) v + p dv. Both are rescaled with the others when a larger score turns up, as everything here is linear in p.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.kernels.sparse import LOG2E, described

_LOG2E = tl.constexpr(LOG2E)
_ROWS = 64  # of q a program, which takes 4 warps: see `kernels.sparse.launch_forward`


@triton.jit
def _tile(ptr, row, size, stride, D: tl.constexpr):
    """Rows [n, D] at `row`, zeros past the end."""
    return tl.load(
        ptr + row[:, None].to(tl.int64) * stride + tl.arange(0, D)[None, :], mask=row[:, None] < size, other=0.0
    )


@triton.jit(do_not_specialize=["L", "S", "H"])
def _tangent_kernel(
    q_ptr, k_ptr, v_ptr, dq_ptr, dk_ptr, dv_ptr, out_ptr, dout_ptr,
    q_b, q_l, q_h, k_b, k_s, k_h, v_b, v_s, v_h, dq_b, dq_l, dq_h, dk_b, dk_s, dk_h, dv_b, dv_s, dv_h,
    L, S, H, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(L / ROWS), B * H); both outputs are contiguous [B, L, H, D]."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = _tile(q_ptr + b * q_b + h * q_h, row, L, q_l, D)
    dq = _tile(dq_ptr + b * dq_b + h * dq_h, row, L, dq_l, D)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    dk_ptr += b * dk_b + h * dk_h
    dv_ptr += b * dv_b + h * dv_h
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)  # sum of p
    moved = tl.zeros([ROWS], tl.float32)  # sum of p * dS
    acc = tl.zeros([ROWS, D], tl.float32)
    dacc = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, S, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        k = _tile(k_ptr, column, S, k_s, D)
        scores = tl.dot(q, k.T, input_precision="ieee") * (scale * _LOG2E)
        scores = tl.where((column < S)[None, :], scores, float("-inf"))
        ds = tl.dot(dq, k.T, input_precision="ieee")
        ds = tl.dot(q, _tile(dk_ptr, column, S, dk_s, D).T, ds, input_precision="ieee") * scale
        now = tl.maximum(largest, tl.max(scores, 1))
        rescale = tl.exp2(largest - now)
        p = tl.exp2(scores - now[:, None])
        pds = p * ds
        total = total * rescale + tl.sum(p, 1)
        moved = moved * rescale + tl.sum(pds, 1)
        largest = now
        v = _tile(v_ptr, column, S, v_s, D)
        p = p.to(v.dtype)
        acc = tl.dot(p, v, acc * rescale[:, None], input_precision="ieee")
        dacc = tl.dot(pds.to(v.dtype), v, dacc * rescale[:, None], input_precision="ieee")
        dacc = tl.dot(p, _tile(dv_ptr, column, S, dv_s, D), dacc, input_precision="ieee")
    out = acc / total[:, None]
    dout = dacc / total[:, None] - (moved / total)[:, None] * out
    at = ((b * L + row[:, None]) * H + h) * D + tl.arange(0, D)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=row[:, None] < L)
    tl.store(dout_ptr + at, dout.to(dout_ptr.dtype.element_ty), mask=row[:, None] < L)


def attention_tangent(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, dq_BLHD: Tensor, dk_BSHD: Tensor, dv_BSHD: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `dense.attention_tangent`."""
    B, L, H, D = q_BLHD.shape
    tensors = [described(x) for x in (q_BLHD, k_BSHD, v_BSHD, dq_BLHD, dk_BSHD, dv_BSHD)]
    out, dout = (torch.empty(B, L, H, D, dtype=q_BLHD.dtype, device=q_BLHD.device) for _ in range(2))
    _tangent_kernel[(-(-L // _ROWS), B * H)](
        *tensors, out, dout, *(s for x in tensors for s in x.stride()[:3]), L, k_BSHD.shape[1], H, D**-0.5,
        ROWS=_ROWS, COLUMNS=64 if D <= 64 else 32, D=D, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out, dout
