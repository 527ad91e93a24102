"""The inputs that tests and benchmarks of ops share, and how two results are compared."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

# One token, one below, at and above a key block, around a query block, and the golden length: a multiple of nothing.
RAGGED = (1, 63, 64, 65, 127, 129, 780)


def attention_inputs(
    tokens: int,
    head_dim: int,
    *,
    keys: int | None = None,
    batch: int = 1,
    heads: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian q [B, L, H, D], k and v [B, S, H, D]; k has a mean of its own per head and channel, as Wan's keys do."""
    generator = torch.Generator().manual_seed(seed)
    keys = tokens if keys is None else keys
    q, k, v = (torch.randn(batch, n, heads, head_dim, generator=generator) for n in (tokens, keys, keys))
    k = k + 2 * torch.randn(1, 1, heads, head_dim, generator=generator)
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)


def projection(head_dim: int, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A weight [D, D] and a bias [D] for proj_l, which training starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(head_dim, head_dim, generator=generator) * head_dim**-0.5
    return weight.to(dtype), torch.randn(head_dim, generator=generator).mul(0.1).to(dtype)


def linear_inputs(
    rows: int, features: int, out: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian x [M, K], weight [O, K] and bias [O]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, features), (out, features), (out,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, bias


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between the elements and the dimensions in another order in memory."""
    order = torch.arange(x.ndim).flip(0).tolist()
    reordered = x.permute(order).contiguous().permute(order)
    return torch.stack((reordered, torch.full_like(reordered, torch.nan)), dim=-1)[..., 0]


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, in float64."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def golden(name: str) -> dict[str, Tensor]:
    """The tensors of an independent implementation: see tests/golden/README.md."""
    return load_file(Path(__file__).parents[1] / "golden" / f"{name}.safetensors")
