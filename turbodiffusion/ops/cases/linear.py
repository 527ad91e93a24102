"""Products of 8-bit numbers and the rounding before them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from turbodiffusion.ops.cases.case import FORMATS, NEEDS, Case, random
from turbodiffusion.ops.linear.int8 import int8_block_linear, quantize_int8_block
from turbodiffusion.ops.linear.per_token import per_token_linear, quantize_per_token
from turbodiffusion.ops.rounding import FP8

# Of two products of the same 8-bit inputs, each rounded to bfloat16 once (0.25% in all). Hopper's tensor cores cut fp8
# products to 13 bits below the sum so far, which is 0.3% of Gaussian sums of 13824; int8 ones are exact.
PRODUCTS = {torch.int8: 2**-8, FP8: 2**-7}


def quantize_cases(device: torch.device, width: int, hidden: int) -> Iterator[Case]:
    """Make rounding per token, alone and after an ffn's GELU; the published rounding by blocks is in `block_cases`."""

    def of(features: int) -> Callable[[int, int], tuple[Tensor, ...]]:
        return lambda tokens, seed: (random(device, tokens, features, seed=seed),)

    for dtype, name in FORMATS.items():
        yield Case(
            f"quantize.{name}",
            "linear",
            str(width),
            of(width),
            lambda impl, x, dtype=dtype: quantize_per_token(x, dtype, impl=impl),
            3.0 * Case.tokens * width,
            "TB/s",
            exact=lambda x: x.float(),
            needs=NEEDS[dtype],
        )
        yield Case(
            f"quantize.{name}.gelu",
            "linear",
            str(hidden),
            of(hidden),
            lambda impl, x, dtype=dtype: quantize_per_token(x, dtype, gelu=True, impl=impl),
            3.0 * Case.tokens * hidden,
            "TB/s",
            exact=lambda x: gelu(x.float(), approximate="tanh"),
            needs=NEEDS[dtype],
        )


def product_cases(device: torch.device, features: int, out: int) -> Iterator[Case]:
    """Make products of 8-bit tokens, what follows fused: GELU where they widen, gate and residual where they do not."""
    shape, work = f"{features}x{out}", 2.0 * Case.tokens * features * out
    weight, bias = random(device, out, features, seed=1001, scale=features**-0.5), random(device, out, seed=1002)
    gate = random(device, 1, out, dtype=torch.float32, seed=1003)
    for dtype, name in FORMATS.items():
        w8 = quantize_per_token(weight, dtype)

        def make(tokens: int, seed: int, dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
            x = random(device, tokens, features, seed=seed)
            return *quantize_per_token(x, dtype), random(device, 1, tokens, out, seed=seed + 1)

        def product(impl: str, x: Tensor, scale: Tensor, residual: Tensor, w8: Any = w8, **fused: Any) -> Tensor:
            if "gate_BO" in fused:
                fused["residual"] = residual[0]
            return per_token_linear(x, scale, w8[0], w8[1], bias, dtype=torch.bfloat16, impl=impl, **fused)

        kinds: dict[str, dict[str, Any]] = {"": {}}
        kinds |= {".gelu": {"gelu": True}} if out > features else {".gate": {"gate_BO": gate}}
        for kind, fused in kinds.items():
            yield Case(
                f"product.{name}{kind}",
                "linear",
                shape,
                make,
                lambda *a, product=product, fused=fused: product(*a, **fused),
                work,
                "TOP/s",
                f"{name} tensor cores",
                bound=PRODUCTS[dtype],
                needs=NEEDS[dtype],
            )


def block_cases(device: torch.device, features: int, out: int) -> Iterator[Case]:
    """Make the published format: int8 in blocks of 128 x 128, rounding and product in one op."""
    weight, bias = random(device, out, features, seed=1001, scale=features**-0.5), random(device, out, seed=1002)
    w8, float32 = quantize_int8_block(weight), weight.float()
    yield Case(
        "linear.int8_block",
        "linear",
        f"{features}x{out}",
        lambda tokens, seed: (random(device, tokens, features, seed=seed),),
        lambda impl, x: int8_block_linear(x, *w8, bias, impl=impl),
        2.0 * Case.tokens * features * out,
        "TOP/s",
        "int8 tensor cores",
        exact=lambda x: torch.addmm(bias.float(), x.float(), float32.T),
        bound=0.015,
    )
