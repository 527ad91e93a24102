"""Gradients of the linear attention in Triton: one pass over q, one over k and v, and D x D numbers a head between.

N = phi(q) state,  w = 1e-5 + phi(q) . key_sum,  O = N / w
G = dO / w,  u = -rowsum(dO * O) / w
dphi(q) = G state^T + u key_sum,  dstate = phi(q)^T G,  dkey_sum = sum of u phi(q)
dphi(k) = v dstate^T + dkey_sum,  dv = phi(k) dstate
dx = phi * (dphi - rowsum(dphi * phi))    for x = q and k, phi the softmax over D
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.attention.kernels.linear import softmax_rows
from turbodiffusion.ops.attention.kernels.sparse import check_sizes, describe

_ROWS = 64
_PROGRAMS = 264  # of the pass over q: two for each multiprocessor of the largest GPUs; more would write more parts


@triton.jit
def _of_softmax(phi, dphi):
    return phi * (dphi - tl.sum(dphi * phi, 1)[:, None])


@triton.jit(do_not_specialize=["L", "H", "blocks", "blocks_each"])
def _query_kernel(
    q_desc, grad_desc, state_ptr, key_sum_ptr, dq_ptr, dstate_ptr, dkey_sum_ptr, L, H, blocks, blocks_each,
    ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (parts, B * H): dq, contiguous [B, L, H, D]; dstate [parts, B * H, D, D] and dkey_sum [parts, B * H, D]."""
    part = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    column = tl.arange(0, D)
    square = column[:, None] * D + column[None, :]
    state = tl.load(state_ptr + bh * D * D + square)
    key_sum = tl.load(key_sum_ptr + bh * D + column)[None, :]
    dstate = tl.zeros([D, D], tl.float32)
    dkey_sum = tl.zeros([D], tl.float32)
    for block in range(part * blocks_each, tl.minimum((part + 1) * blocks_each, blocks)):
        start = block * ROWS
        phi = softmax_rows(q_desc.load([b, start, h, 0]).reshape(ROWS, D).to(tl.float32))
        low = phi.to(state.dtype)
        grad = grad_desc.load([b, start, h, 0]).reshape(ROWS, D).to(tl.float32)  # zeros past the end
        weight = 1e-5 + tl.sum(low.to(tl.float32) * key_sum, 1)[:, None]
        out = tl.dot(low, state, input_precision="ieee") / weight
        u = -tl.sum(grad * out, 1)[:, None] / weight
        g = (grad / weight).to(state.dtype)
        dphi = tl.dot(g, state.T, input_precision="ieee") + u * key_sum
        dstate = tl.dot(low.T, g, dstate, input_precision="ieee")
        dkey_sum += tl.sum(u * low.to(tl.float32), 0)
        at = ((b.to(tl.int64) * L + start) * H + h) * D + tl.arange(0, ROWS)[:, None] * (H * D) + column[None, :]
        inside = start + tl.arange(0, ROWS)[:, None] < L
        tl.store(dq_ptr + at, _of_softmax(phi, dphi).to(dq_ptr.dtype.element_ty), mask=inside)
    at = (part * tl.num_programs(1) + bh).to(tl.int64) * D
    tl.store(dstate_ptr + at * D + square, dstate)
    tl.store(dkey_sum_ptr + at + column, dkey_sum)


@triton.jit(do_not_specialize=["L", "H"])
def _key_kernel(
    k_desc, v_desc, dstate_ptr, dkey_sum_ptr, dk_ptr, dv_ptr, L, H, ROWS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Grid (ceil(L / ROWS), B * H): dk and dv, contiguous [B, L, H, D]."""
    start = tl.program_id(0) * ROWS
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    column = tl.arange(0, D)
    dstate = tl.load(dstate_ptr + bh * D * D + column[:, None] * D + column[None, :])
    phi = softmax_rows(k_desc.load([b, start, h, 0]).reshape(ROWS, D).to(tl.float32))
    v = v_desc.load([b, start, h, 0]).reshape(ROWS, D)
    dphi = tl.dot(v, dstate.T, input_precision="ieee") + tl.load(dkey_sum_ptr + bh * D + column)[None, :]
    dv = tl.dot(phi.to(v.dtype), dstate, input_precision="ieee")
    at = ((b.to(tl.int64) * L + start) * H + h) * D + tl.arange(0, ROWS)[:, None] * (H * D) + column[None, :]
    inside = start + tl.arange(0, ROWS)[:, None] < L
    tl.store(dk_ptr + at, _of_softmax(phi, dphi).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def linear_backward(
    grad_BLHD: Tensor, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, state_BHDE: Tensor, key_sum_BHD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v, contiguous, in q's dtype; `state_BHDE` is phi(k)^T v, not projected."""
    B, L, H, D = q_BLHD.shape
    check_sizes("linear_attention", D, 128, _ROWS)
    q, k, v, grad = (describe(x, _ROWS) for x in (q_BLHD, k_BLHD, v_BLHD, grad_BLHD))
    dq, dk, dv = (torch.empty(B, L, H, D, dtype=q_BLHD.dtype, device=q_BLHD.device) for _ in range(3))
    blocks = -(-L // _ROWS)
    blocks_each = -(-blocks // max(1, _PROGRAMS // (B * H)))
    parts = -(-blocks // blocks_each)
    dstate = torch.empty(parts, B, H, D, D, dtype=torch.float32, device=q_BLHD.device)
    dkey_sum = torch.empty(parts, B, H, D, dtype=torch.float32, device=q_BLHD.device)
    _query_kernel[(parts, B * H)](
        q, grad, state_BHDE, key_sum_BHD, dq, dstate, dkey_sum, L, H, blocks, blocks_each,
        ROWS=_ROWS, D=D, num_warps=8, num_stages=2,
    )  # fmt: skip
    _key_kernel[(blocks, B * H)](
        k, v, dstate.sum(0).to(q_BLHD.dtype), dkey_sum.sum(0), dk, dv, L, H, ROWS=_ROWS, D=D, num_warps=8
    )
    return dq, dk, dv
