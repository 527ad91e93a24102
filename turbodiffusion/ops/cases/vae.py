"""What stands between the VAE's convolutions, and its last one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.ops.cases.case import Case, random
from turbodiffusion.ops.vae.conv3d_few_channels import convolve_to_few
from turbodiffusion.ops.vae.norm_silu import advance_stream

# Of a convolution to few channels, whose 27 products are rounded to bfloat16 before they are added up.
TAPS = 2**-7


def vae_cases(device: torch.device, channels: int) -> Iterator[Case]:
    """What stands between convolutions of that many channels, and the last convolution, on two frames 3 pixels wide."""
    gamma = random(device, channels, dtype=torch.float32, seed=1001)
    bias = random(device, channels, seed=1002)
    weight = random(device, 3, channels, 3, 3, 3, seed=1003, scale=(27 * channels) ** -0.5)

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        rows = -(-tokens // 6)
        return tuple(random(device, 1, 2, rows, 3, channels, seed=seed + part) for part in range(3))

    def advance(impl: str, x: Tensor, residual: Tensor, past: Tensor, transform: bool = False) -> list[Tensor]:
        out = advance_stream(
            x, gamma, bias_C=bias, residual_BTHWC=residual, past_BNHWC=past, before=2, keep_sum=True,
            transform=transform, impl=impl,
        )  # fmt: skip
        assert out.sum_BTHWC is not None
        return [out.y, out.past_BNHWC, out.sum_BTHWC]

    def exact(x: Tensor, residual: Tensor, past: Tensor, transform: bool = False) -> list[Tensor]:
        return advance("reference", x.float(), residual.float(), past.float(), transform)

    def case(name: str, run: Callable, accesses: int, **others: Any) -> Case:
        """accesses: bytes for each number of the frames."""
        work = float(accesses * Case.tokens * channels)
        return Case(name, "vae", f"{channels} channels", make, run, work, "TB/s", **others)

    yield case("advance_stream", advance, 12, exact=exact)
    yield case("advance_stream.winograd", partial(advance, transform=True), 14, exact=partial(exact, transform=True))
    yield case(
        "convolve_to_few",
        lambda impl, x, residual, past: convolve_to_few(torch.cat((past, x), 1), weight, bias[:3], impl=impl),
        8,
        bound=TAPS,
    )
