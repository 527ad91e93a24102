"""Muon: momentum whose singular values are all brought near one, for the matrices inside a network.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of "Muon is scalable
for LLM training" (arXiv 2502.16982, equation 4): an update's root mean square is 0.2 of the learning rate whatever the
matrix's shape, about that of AdamW, so that both share a learning rate. A convolution's weight is the matrix of its
output channels by all that each reads. Matrices of one shape are taken together: one by one, a small network would wait
for thousands of kernels.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Of the Newton-Schulz iteration: steep at zero, and near one for singular values in (0, 1].
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(x_NRC: Tensor) -> Tensor:
    """Matrices [N, R, C] with the singular vectors of x and singular values near one (0.7 to 1.2), bfloat16."""
    x = x_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For the weights of products and convolutions (no embeddings), [out, in] or [out, in, *taps]."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for shape, params in same_shape.items():
                grads = [p.grad for p in params if p.grad is not None]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
                matrices = torch.stack(ahead).flatten(2)
                update = orthogonalize(matrices).float() * (0.2 * max(matrices.shape[1:]) ** 0.5)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.unflatten(2, shape[1:]).unbind()), alpha=-group["lr"])
