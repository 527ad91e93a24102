"""Attention: the choice of blocks, the sparse and the linear part alone, the whole modules."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sage_sparse_attention, sagesla_attention
from turbodiffusion.ops.attention.sla import (
    block_map,
    linear_attention,
    projected_linear_attention,
    sla_attention,
    sparse_attention,
)
from turbodiffusion.ops.cases.case import MEMORY, Case, random
from turbodiffusion.ops.cases.compare import missed_blocks
from turbodiffusion.ops.implementations import FP8_GPU

HEAD_DIM = 128
# Against float32 on Gaussian data and the same map of blocks; int8 and fp8 are the formats of q and k, and p and v in
# fp8 alone cost about 3.5%.
BOUNDS = {"bf16": 0.01, "int8": 0.045, "fp8": 0.06}
MISSED_BLOCKS = 0.01  # of those that the reference keeps: float32 sums in another order decide near ties differently


@dataclass(frozen=True)
class _Attention:
    """The inputs of attention at one shape, and its exact results; both sides attend by the kernel's own map."""

    device: torch.device
    heads: int
    head_dim: int
    block_q: int
    block_k: int
    topk: float
    tokens: int
    weight: Tensor
    bias: Tensor

    @property
    def blocks(self) -> dict[str, Any]:
        return {"block_q": self.block_q, "block_k": self.block_k}

    def qkv(self, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw Gaussian views into one projection; keys have a mean of their own per head and channel, as Wan's do."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(1, tokens, 3, self.heads, self.head_dim, generator=generator, device=self.device)
        x[:, :, 1] += 2 * torch.randn(1, 1, self.heads, self.head_dim, generator=generator, device=self.device)
        q, k, v = x.bfloat16().unbind(2)
        return q, k, v

    def mapped(self, tokens: int, seed: int) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(tokens, seed)
        return q, k, v, block_map(q, k, topk=self.topk, impl="triton", **self.blocks)

    def all_blocks(self, tokens: int) -> Tensor:
        rows, columns = -(-tokens // self.block_q), -(-tokens // self.block_k)
        every = torch.arange(columns, dtype=torch.int32, device=self.device)
        return every.expand(1, self.heads, rows, columns)

    def exact_sparse(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        return sparse_attention(q.float(), k.float(), v.float(), kept, **self.blocks)

    def exact_whole(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        linear = projected_linear_attention(q.float(), k.float(), v.float(), self.weight, self.bias)
        return self.exact_sparse(q, k, v, kept) + linear

    def whole(self, impl: str, fused: Callable, sparse: Callable, *x: Tensor) -> Tensor:
        """A module by its kernels, or its emulation on the map that the kernels chose."""
        q, k, v, kept = x
        if impl != "reference":
            return fused(q, k, v, self.weight, self.bias, topk=self.topk, impl=impl, **self.blocks)
        linear = projected_linear_attention(q, k, v, self.weight, self.bias)
        return sparse(q, k, v, kept, **self.blocks) + linear

    def case(self, name: str, make: Callable, run: Callable, work: float, how: str = MEMORY, **others: Any) -> Case:
        shape = f"{self.heads}x{self.head_dim}.{self.block_q}.{self.block_k}"
        unit = "TB/s" if how == MEMORY else "TFLOP/s" if "bf16" in how else "TOP/s"
        return Case(name, "attention", shape, make, run, work, unit, how, tokens=self.tokens, **others)


def attention_cases(
    device: torch.device,
    heads: int,
    *,
    head_dim: int = HEAD_DIM,
    block_q: int = 128,
    block_k: int = 64,
    topk: float = 0.1,
    tokens: int = Case.tokens,
    dense: bool = True,
) -> Iterator[Case]:
    """Make the choice of blocks, the parts and the whole modules; `dense`: SageAttention over all keys too."""
    weight = random(device, head_dim, head_dim, dtype=torch.float32, seed=1001, scale=head_dim**-0.5)
    bias = random(device, head_dim, dtype=torch.float32, seed=1002, scale=0.1)
    x = _Attention(device, heads, head_dim, block_q, block_k, topk, tokens, weight, bias)
    yield from _part_cases(x)
    key_blocks = -(-tokens // block_k)
    work = 4.0 * tokens**2 * heads * head_dim
    sparse_work = work * max(1, int(topk * key_blocks)) / key_blocks
    yield x.case(
        "sla_attention",
        x.mapped,
        lambda impl, *qkvm: x.whole(impl, sla_attention, sparse_attention, *qkvm),
        sparse_work,
        "bf16 tensor cores",
        exact=x.exact_whole,
        bound=BOUNDS["bf16"],
    )
    yield x.case(
        "sagesla_attention",
        x.mapped,
        lambda impl, *qkvm: x.whole(impl, sagesla_attention, sage_sparse_attention, *qkvm),
        sparse_work,
        "int8 and fp8 tensor cores",
        exact=x.exact_whole,
        bound=BOUNDS["int8"],
        needs=FP8_GPU,
    )
    if dense:
        yield x.case(
            "sage_attention",
            x.qkv,
            lambda impl, q, k, v: sage_attention(q, k, v, impl=impl, **x.blocks),
            work,
            "int8 and fp8 tensor cores",
            # Dense attention as sparse with every block: a block of queries at a time, so that its scores fit.
            exact=lambda q, k, v: x.exact_sparse(q, k, v, x.all_blocks(q.shape[1])),
            bound=BOUNDS["int8"],
            needs=FP8_GPU,
        )


def _part_cases(x: _Attention) -> Iterator[Case]:
    """The sparse parts are checked alone and timed in their modules: alone they wait for the GPU to check the map."""
    qkv_bytes = 8.0 * x.tokens * x.heads * x.head_dim
    yield x.case(
        "block_map",
        lambda tokens, seed: x.qkv(tokens, seed)[:2],
        lambda impl, q, k: block_map(q, k, topk=x.topk, impl=impl, **x.blocks),
        qkv_bytes / 2,
        bound=MISSED_BLOCKS,
        distance=missed_blocks,
    )
    yield x.case(
        "linear_attention",
        x.qkv,
        lambda impl, q, k, v: linear_attention(q, k, v, impl=impl),
        qkv_bytes,
        exact=lambda q, k, v: linear_attention(q.float(), k.float(), v.float()),
        bound=BOUNDS["bf16"],
    )
    yield x.case(
        "sparse_attention",
        x.mapped,
        lambda impl, *qkvm: sparse_attention(*qkvm, impl=impl, **x.blocks),
        0.0,
        "bf16 tensor cores",
        exact=x.exact_sparse,
        bound=BOUNDS["bf16"],
    )
    for qk in ("int8", "fp8"):
        yield x.case(
            f"sage_sparse_attention.{qk}",
            x.mapped,
            lambda impl, *qkvm, qk=qk: sage_sparse_attention(*qkvm, qk=qk, impl=impl, **x.blocks),
            0.0,
            "int8 and fp8 tensor cores" if qk == "int8" else "fp8 tensor cores",
            exact=x.exact_sparse,
            bound=BOUNDS[qk],
            needs=FP8_GPU,
        )
