"""Sparse-linear attention (SLA, arXiv 2509.24006, as TurboDiffusion uses it, arXiv 2512.16093).

Every block of queries attends exactly to the few blocks of keys that matter most to it, and cheaply to all keys:

    out = softmax(q k^T / sqrt(D)) v over the kept blocks  +  proj_l(phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)))

Number formats: both factors of a matrix product have q's dtype and sums are float32, as on tensor cores; each of the
two terms is rounded to q's dtype. So float32 tensors give the exact result, and bfloat16 ones what a bfloat16 kernel
gives. L need not be a multiple of a block: the last blocks are shorter.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, select_impl

# Keeps the linear term finite where phi(q) and the sum of phi(k) do not overlap.
LINEAR_EPS = 1e-5


@torch.no_grad()
def block_map(
    q_BLHD: Tensor, k_BLHD: Tensor, *, topk: float, block_q: int = 128, block_k: int = 64, impl: str = "reference"
) -> Tensor:
    """Choose the key blocks that each query block keeps: int32 [B, H, ceil(L / block_q), K], ascending.

    K is max(1, int(topk * ceil(L / block_k))). The choice is part of the model, so it is made in float32 whatever q's
    dtype is, and ties go to the lower block. It has no gradient. Raises ValueError unless 0 < topk <= 1.
    """
    check_layout("block_map", q_BLHD=q_BLHD, k_BLHD=k_BLHD)
    check_dtype("block_map", FLOATS, q_BLHD=q_BLHD, k_BLHD=k_BLHD)
    _check_topk("block_map", topk)
    return select_impl("block_map", impl, {"reference": _map_reference, "triton": _map_triton})(
        q_BLHD, k_BLHD, topk, block_q, block_k
    )


def sparse_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    map_BHNK: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 64,
    impl: str = "reference",
) -> Tensor:
    """Attend, by softmax, from each query block to its kept key blocks alone: [B, L, H, D] in q's dtype.

    `map_BHNK` comes from `block_map` with the same block sizes. Gradients flow to q, k and v.
    Raises ValueError for shapes or dtypes that do not agree and for a map that names no real block.
    """
    check_sparse("sparse_attention", q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k)
    attend = select_impl("sparse_attention", impl, {"reference": _SparseAttention.apply, "triton": _sparse_triton})
    return attend(q_BLHD, k_BLHD, v_BLHD, map_BHNK, block_q, block_k)


def linear_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, *, impl: str = "reference") -> Tensor:
    """Attend to all keys at linear cost, with phi the softmax over D: [B, L, H, D] in q's dtype.

    phi(q) (phi(k)^T v) / (1e-5 + phi(q) . sum phi(k))
    """
    check_layout("linear_attention", q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    check_dtype("linear_attention", FLOATS, q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    attend = select_impl("linear_attention", impl, {"reference": _linear_reference, "triton": _linear_triton})
    return attend(q_BLHD, k_BLHD, v_BLHD)


def sla_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    *,
    topk: float,
    block_q: int = 128,
    block_k: int = 64,
    impl: str = "reference",
) -> Tensor:
    """Add sparse attention and the projected linear attention: [B, L, H, D] in q's dtype.

    `impl` names the implementation of all three parts; "triton" fuses them where no gradient is asked for. The
    projection's parameters are kept in float32 and take part in the product in q's dtype. Gradients flow to q, k, v and
    the projection, not through the choice of blocks.
    Raises ValueError as its parts do.
    """
    check_sla("sla_attention", q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D, topk)
    implementations: dict[str, Callable[..., Tensor]] = {"reference": _sla_reference, "triton": _sla_triton}
    attend = select_impl("sla_attention", impl, implementations)
    return attend(q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D, topk, block_q, block_k)


def projected_linear_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    *,
    impl: str = "reference",
) -> Tensor:
    """Compute the second term of SLA: proj_l over linear attention, the product's factors in q's dtype."""
    check_layout("sla_attention", q_BLHD=q_BLHD, proj_weight_DD=proj_weight_DD, proj_bias_D=proj_bias_D)
    cheap = linear_attention(q_BLHD, k_BLHD, v_BLHD, impl=impl)
    return linear(cheap, proj_weight_DD.to(cheap.dtype), proj_bias_D.to(cheap.dtype))


def sparse_attention_forward(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, map_BHNK: Tensor, block_q: int, block_k: int
) -> tuple[Tensor, Tensor]:
    """Compute the reference forward: the output in q's dtype, and the log-sum-exp of each query's scaled scores.

    The latter is float32 [B, H, L]: what the backward needs to compute the probabilities again. The scores of one query
    block at a time are held. Not differentiable by itself; `sparse_attention` is.
    """
    B, L, H, D = q_BLHD.shape
    dtype = at_least_float32(q_BLHD.dtype)
    q, k, v = (heads_first(x).to(dtype) for x in (q_BLHD, k_BLHD, v_BLHD))
    out, lse = torch.empty_like(q), q.new_empty(B * H, L)
    for rows, keys, beyond in kept_keys(map_BHNK, L, block_q, block_k):
        scores = (q[:, rows] @ take_rows(k, keys).mT * D**-0.5).masked_fill_(beyond, -torch.inf)
        largest = scores.amax(dim=-1, keepdim=True)
        p = (scores - largest).exp()
        total = p.sum(dim=-1, keepdim=True)
        out[:, rows] = p.to(q_BLHD.dtype).to(dtype) @ take_rows(v, keys) / total
        lse[:, rows] = (largest + total.log()).squeeze(-1)
    return heads_last(out, B).to(q_BLHD.dtype), lse.unflatten(0, (B, H))


def sparse_attention_backward(
    grad_BLHD: Tensor,
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    map_BHNK: Tensor,
    out_BLHD: Tensor,
    lse_BHL: Tensor,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the reference gradients of q, k and v, as in FlashAttention-2 (arXiv 2307.08691, algorithm 2).

    The probabilities are computed again from the scores and the log-sum-exp:
    P = exp(S - lse), dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O)), dQ = dS K, dK = dS^T Q.
    """
    B, L, _, D = q_BLHD.shape
    low, dtype = q_BLHD.dtype, at_least_float32(q_BLHD.dtype)
    q, k, v, out, grad = (heads_first(x).to(dtype) for x in (q_BLHD, k_BLHD, v_BLHD, out_BLHD, grad_BLHD))
    lse, delta = lse_BHL.flatten(0, 1)[..., None], (grad * out).sum(dim=-1, keepdim=True)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, keys, beyond in kept_keys(map_BHNK, L, block_q, block_k):
        kept_k, kept_v = take_rows(k, keys), take_rows(v, keys)
        scores = (q[:, rows] @ kept_k.mT * D**-0.5).masked_fill_(beyond, -torch.inf)
        p = (scores - lse[:, rows]).exp()
        ds = p * (grad[:, rows] @ kept_v.mT - delta[:, rows])
        p, ds = p.to(low).to(dtype), ds.to(low).to(dtype)
        dq[:, rows] = ds @ kept_k * D**-0.5
        _add(dk, keys, ds.mT @ q[:, rows] * D**-0.5)
        _add(dv, keys, p.mT @ grad[:, rows])
    dq, dk, dv = (heads_last(x, B).to(low) for x in (dq, dk, dv))
    return dq, dk, dv


def check_sparse(
    op: str, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, map_BHNK: Tensor, block_q: int, block_k: int
) -> None:
    """Raise ValueError unless the tensors and the map's shape agree with each other and with the block sizes."""
    check_dtype(op, FLOATS, q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    check_dtype(op, (torch.int32,), map_BHNK=map_BHNK)
    sizes = check_layout(op, q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD, map_BHNK=map_BHNK)
    blocks, key_blocks = -(-sizes["L"] // block_q), -(-sizes["L"] // block_k)
    if sizes["N"] != blocks or not 1 <= sizes["K"] <= key_blocks:
        expected = f"[B, H, N={blocks}, K<={key_blocks}] for L={sizes['L']} in blocks of {block_q} and {block_k}"
        raise ValueError(f"{op}: map_BHNK must be {expected}, got {list(map_BHNK.shape)}")


def check_sla(
    op: str, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, proj_weight_DD: Tensor, proj_bias_D: Tensor, topk: float
) -> None:
    """Raise ValueError unless the tensors' shapes and dtypes agree and topk is a share."""
    check_layout(
        op, q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD, proj_weight_DD=proj_weight_DD, proj_bias_D=proj_bias_D
    )
    check_dtype(op, FLOATS, q_BLHD=q_BLHD, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
    _check_topk(op, topk)


def check_map(map_BHNK: Tensor, blocks: int) -> None:
    """Raise ValueError for a map that is not ascending or names a block that does not exist.

    Waits for the GPU, except in the capture of a graph, where that is not possible.
    """
    if map_BHNK.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if map_BHNK.min() < 0 or map_BHNK.max() >= blocks or (map_BHNK.diff(dim=-1) <= 0).any():
        raise ValueError(f"map_BHNK must hold ascending blocks from 0 to {blocks - 1}")


def kept_keys(map_BHNK: Tensor, num_keys: int, block_q: int, block_k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield for each query block the slice of its rows, the positions of its kept keys, and which are past the end.

    The positions are int64 [B * H, K * block_k]; those past the end of a ragged last block point to the last row, so
    that they can be read, and are marked in a bool mask [B * H, 1, K * block_k].
    Raises ValueError for a map that is not ascending or names a block that does not exist.
    """
    check_map(map_BHNK, -(-num_keys // block_k))
    inside = torch.arange(block_k, device=map_BHNK.device)
    for n, map_BHK in enumerate(map_BHNK.long().unbind(dim=2)):
        keys = (map_BHK[..., None] * block_k + inside).flatten(2).flatten(0, 1)
        yield slice(n * block_q, (n + 1) * block_q), keys.clamp_max(num_keys - 1), (keys >= num_keys)[:, None]


def heads_first(x_BLHD: Tensor) -> Tensor:
    """Move heads first: [B, L, H, D] -> contiguous [B * H, L, D], the layout of batched matrix products."""
    return x_BLHD.transpose(1, 2).flatten(0, 1).contiguous()


def heads_last(x: Tensor, batch: int) -> Tensor:
    """Move heads back: [B * H, L, D] -> [B, L, H, D]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def take_rows(x: Tensor, positions: Tensor) -> Tensor:
    """Gather the rows of x [B * H, L, D] at positions [B * H, P]: [B * H, P, D]."""
    return x.flatten(0, 1)[_flat(x, positions)].unflatten(0, positions.shape)


def _check_topk(op: str, topk: float) -> None:
    if not 0 < topk <= 1:
        raise ValueError(f"{op}: topk must be above 0 and at most 1, got {topk}")


class _SparseAttention(torch.autograd.Function):
    """`sparse_attention` with a backward that keeps one float a row; autograd's own would keep all kept scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, map_BHNK: Tensor, block_q: int, block_k: int) -> Tensor:
        out, lse = sparse_attention_forward(q, k, v, map_BHNK, block_q, block_k)
        ctx.save_for_backward(q, k, v, map_BHNK, out, lse)
        ctx.blocks = block_q, block_k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *sparse_attention_backward(grad, *ctx.saved_tensors, *ctx.blocks), None, None, None


def _sla_reference(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    proj_weight_DD: Tensor,
    proj_bias_D: Tensor,
    topk: float,
    block_q: int,
    block_k: int,
) -> Tensor:
    kept = block_map(q_BLHD, k_BLHD, topk=topk, block_q=block_q, block_k=block_k)
    sparse = sparse_attention(q_BLHD, k_BLHD, v_BLHD, kept, block_q=block_q, block_k=block_k)
    return sparse + projected_linear_attention(q_BLHD, k_BLHD, v_BLHD, proj_weight_DD, proj_bias_D)


def _map_reference(q_BLHD: Tensor, k_BLHD: Tensor, topk: float, block_q: int, block_k: int) -> Tensor:
    k = k_BLHD.float()
    pooled_q = _pool(q_BLHD.float(), block_q)
    pooled_k = _pool(k - k.mean(dim=1, keepdim=True), block_k)
    scores = torch.einsum("bnhd,bmhd->bhnm", pooled_q, pooled_k)
    kept = max(1, int(topk * scores.shape[-1]))
    # topk() promises no order among equals; a stable sort keeps the lower index first.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :kept].sort(dim=-1).values.int()


def _pool(x_BLHD: Tensor, block: int) -> Tensor:
    """Take the mean of each block of tokens, [B, N, H, D]; a ragged last block is the mean of the tokens it has."""
    return torch.stack([tokens.mean(dim=1) for tokens in x_BLHD.split(block, dim=1)], dim=1)


def _linear_reference(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    low, dtype = q_BLHD.dtype, at_least_float32(q_BLHD.dtype)
    phi_q, phi_k = (x.to(dtype).softmax(dim=-1).to(low).to(dtype) for x in (q_BLHD, k_BLHD))
    kv_BHDE = torch.einsum("blhd,blhe->bhde", phi_k, v_BLHD.to(dtype)).to(low).to(dtype)
    weights = torch.einsum("blhd,bhd->blh", phi_q, phi_k.sum(dim=1))
    return (torch.einsum("blhd,bhde->blhe", phi_q, kv_BHDE) / (LINEAR_EPS + weights)[..., None]).to(low)


def _add(x: Tensor, positions: Tensor, values: Tensor) -> None:
    """Add values [B * H, P, D] to the rows of x [B * H, L, D] at positions [B * H, P], in place."""
    x.flatten(0, 1).index_add_(0, _flat(x, positions), values.flatten(0, 1))


def _flat(x: Tensor, positions: Tensor) -> Tensor:
    heads, length, _ = x.shape
    return (positions + torch.arange(heads, device=x.device)[:, None] * length).flatten()


# The kernels' modules import triton, which not every machine has: they are imported when they are chosen.


def _map_triton(q_BLHD: Tensor, k_BLHD: Tensor, *others: Any) -> Tensor:
    check_triton("block_map", q_BLHD=q_BLHD, k_BLHD=k_BLHD)
    from turbodiffusion.ops.attention.kernels.block_map import block_map as kernel

    return kernel(q_BLHD, k_BLHD, *others)


def _sparse_triton(q: Tensor, k: Tensor, v: Tensor, map_BHNK: Tensor, block_q: int, block_k: int) -> Tensor:
    check_triton("sparse_attention", q_BLHD=q.detach(), k_BLHD=k.detach(), v_BLHD=v.detach(), map_BHNK=map_BHNK)
    check_map(map_BHNK, -(-k.shape[1] // block_k))
    from turbodiffusion.ops.attention.kernels.sla import sparse_attention as kernel

    return kernel(q, k, v, map_BHNK, block_q, block_k)


def _linear_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_triton("linear_attention", q_BLHD=q.detach(), k_BLHD=k.detach(), v_BLHD=v.detach())
    from turbodiffusion.ops.attention.kernels.sla import linear_attention as kernel

    return kernel(q, k, v)


def _sla_triton(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    check_triton("sla_attention", q_BLHD=q.detach(), k_BLHD=k.detach(), v_BLHD=v.detach())
    from turbodiffusion.ops.attention.kernels.sla import sla_attention as kernel

    return kernel(q, k, v, *others)
