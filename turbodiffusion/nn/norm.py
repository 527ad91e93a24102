"""RMS norm (arXiv 1910.07467) and layer norm (arXiv 1607.06450); weights are float32 whatever the model's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbodiffusion.ops.norm.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, float32 inside, returned in x's dtype."""

    def __init__(self, dim: int, eps: float, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias over the last dimension, float32 inside, returned in x's dtype."""

    def __init__(self, dim: int, eps: float, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)
