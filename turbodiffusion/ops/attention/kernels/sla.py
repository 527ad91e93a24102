"""SLA and SageSLA from their Triton kernels, and their gradients.

Without a gradient the whole module is a few launches: one pass over k and v (their state, means and magnitudes), one
over q (block means, what normalizes phi), in 8 bits over k and v again too; the choice of blocks; and the sparse
kernel, which adds the linear term. With one, the two terms are functions of their own and proj_l is PyTorch's linear
layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from turbodiffusion.ops.attention.kernels.block_map import block_map, choose_blocks
from turbodiffusion.ops.attention.kernels.linear import KeyState, key_state, linear_forward
from turbodiffusion.ops.attention.kernels.linear_backward import linear_backward
from turbodiffusion.ops.attention.kernels.quantize import pack, query_pass
from turbodiffusion.ops.attention.kernels.sage import attend_packed
from turbodiffusion.ops.attention.kernels.sparse import Launch, LinearTerm, check_sizes, described, sparse_forward
from turbodiffusion.ops.attention.kernels.sparse_backward import sparse_backward

# The block of keys that a pass over k and v takes at a time where no block size is asked for.
_BLOCK = 64


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, map_BHNK: Tensor, block_q: int, block_k: int) -> Tensor:
        out, lse = sparse_forward(q, k, v, map_BHNK, block_q, block_k)
        ctx.save_for_backward(q, k, v, map_BHNK, out, lse)
        ctx.blocks = block_q, block_k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *sparse_backward(grad, *ctx.saved_tensors, *ctx.blocks), None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = key_state(k, v, _BLOCK)
        ctx.save_for_backward(q, k, v, state.state_BHDE, state.key_sum_BHD)
        return linear_forward(q, state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return linear_backward(grad, *ctx.saved_tensors)


def sparse_attention(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, map_BHNK: Tensor, block_q: int, block_k: int
) -> Tensor:
    """Run `sla.sparse_attention`, with gradients."""
    return _Sparse.apply(q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k)


def linear_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """Run `sla.linear_attention`, with gradients."""
    return _Linear.apply(q_BLHD, k_BLHD, v_BLHD)


def sla_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    topk: float,
    block_q: int,
    block_k: int,
    launch: Launch | None = None,
) -> Tensor:
    """Run `sla.sla_attention`, with gradients."""
    check_sizes("sla_attention", q_BLHD.shape[-1], block_q, block_k)
    inputs = (q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        kept = block_map(q_BLHD.detach(), k_BLHD.detach(), topk, block_q, block_k)
        cheap = linear_attention(q_BLHD, k_BLHD, v_BLHD)
        cheap = linear(cheap, proj_weight_DD.to(cheap.dtype), proj_bias_D.to(cheap.dtype))
        return sparse_attention(q_BLHD, k_BLHD, v_BLHD, kept, block_q, block_k) + cheap
    keys = key_state(k_BLHD, v_BLHD, block_k, proj_weight_DD)
    pooled_q, shift = query_pass(q_BLHD, block_q, keys)
    kept = choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, topk)
    term = linear_term(q_BLHD, keys, shift, proj_bias_D)
    return sparse_forward(q_BLHD, k_BLHD, v_BLHD, kept, block_q, block_k, linear=term, launch=launch)[0]


def sagesla_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    topk: float,
    block_q: int,
    block_k: int,
    qk: str,
    launch: Launch | None = None,
) -> Tensor:
    """Run `sagesla.sagesla_attention`."""
    check_sizes("sagesla_attention", q_BLHD.shape[-1], block_q, block_k)
    keys = key_state(k_BLHD, v_BLHD, block_k, proj_weight_DD)
    packed, pooled_q = pack(q_BLHD, k_BLHD, v_BLHD, keys, block_q, block_k, qk)
    kept = choose_blocks(pooled_q, keys.pooled_BHND, keys.mean_BHD, topk)
    term = linear_term(q_BLHD, keys, packed.shift_BHL, proj_bias_D)
    return attend_packed(packed, kept, q_BLHD.shape, k_BLHD.shape[1], q_BLHD.dtype, linear=term, launch=launch)


def linear_term(q_BLHD: Tensor, keys: KeyState, shift_BHL: Tensor, proj_bias_D: Tensor) -> LinearTerm:
    """Return what the sparse kernel needs to add the linear part; `keys` has its state with proj_l in it."""
    return LinearTerm(described(q_BLHD), keys.state_BHDE, shift_BHL, proj_bias_D.float().contiguous())
