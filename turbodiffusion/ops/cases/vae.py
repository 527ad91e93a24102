"""What stands between the VAE's convolutions, and its last one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.ops.cases.case import Case, random
from turbodiffusion.ops.vae.conv3d_few_channels import conv3d_few_channels
from turbodiffusion.ops.vae.norm_silu import norm_silu

# Of a convolution to few channels, whose 27 products are rounded to bfloat16 before they are added up.
FEW_CHANNELS_BOUND = 2**-7


def vae_cases(device: torch.device, channels: int) -> Iterator[Case]:
    """Make what stands between convolutions of that many channels, and the last one, on two frames 3 pixels wide."""
    gamma = random(device, channels, dtype=torch.float32, seed=1001)
    bias = random(device, channels, seed=1002)
    weight = random(device, 3, channels, 3, 3, 3, seed=1003, scale=(27 * channels) ** -0.5)

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        rows = -(-tokens // 6)
        return tuple(random(device, 1, 2, rows, 3, channels, seed=seed + part) for part in range(3))

    def fused(impl: str, x: Tensor, residual: Tensor, cache: Tensor, transform: bool = False) -> list[Tensor]:
        out = norm_silu(
            x, gamma, bias_C=bias, residual_BTHWC=residual, cache_BNHWC=cache, cache_frames=2, keep_sum=True,
            transform=transform, impl=impl,
        )  # fmt: skip
        assert out.sum_BTHWC is not None
        return [out.y, out.cache_BNHWC, out.sum_BTHWC]

    def exact(x: Tensor, residual: Tensor, cache: Tensor, transform: bool = False) -> list[Tensor]:
        return fused("reference", x.float(), residual.float(), cache.float(), transform)

    def case(name: str, run: Callable, accesses: int, **others: Any) -> Case:
        """accesses: bytes for each number of the frames."""
        work = float(accesses * Case.tokens * channels)
        return Case(name, "vae", f"{channels} channels", make, run, work, "TB/s", **others)

    yield case("norm_silu", fused, 12, exact=exact)
    yield case("norm_silu.winograd", partial(fused, transform=True), 14, exact=partial(exact, transform=True))
    yield case(
        "conv3d_few_channels",
        lambda impl, x, residual, cache: conv3d_few_channels(torch.cat((cache, x), 1), weight, bias[:3], impl=impl),
        8,
        bound=FEW_CHANNELS_BOUND,
    )
