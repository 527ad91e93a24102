"""Linear layers of a transformer block, in floating point or 8 bits, chosen at construction."""

import torch
from torch import nn

LINEAR_KINDS = ("off",)


def linear(
    in_features: int,
    out_features: int,
    *,
    kind: str,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """nn.Linear for "off". Raises ValueError for an unknown kind."""
    if kind not in LINEAR_KINDS:
        raise ValueError(f"linear kind {kind!r} is not one of {', '.join(LINEAR_KINDS)}")
    return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
