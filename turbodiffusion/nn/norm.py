"""RMS norm (arXiv 1910.07467) and layer norm (arXiv 1607.06450); weights are float32 whatever the model's dtype."""

import torch
from torch import Tensor, nn

from turbodiffusion.ops.norm.layer_norm import layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """Compute x / rms(x) * weight over the last dimension, float32 inside, returned in x's dtype."""

    def __init__(
        self, dim: int, eps: float, *, impl: str = "reference", device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.eps, self.impl = eps, impl
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, impl=self.impl)


class LayerNorm(nn.Module):
    """Compute (x - mean) / std * weight + bias over the last dimension, float32 inside, returned in x's dtype."""

    def __init__(
        self, dim: int, eps: float, *, impl: str = "reference", device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.eps, self.impl = eps, impl
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, impl=self.impl)
