"""Norms, rotary embedding with its norms, and the gated sum."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from turbodiffusion.ops.cases.case import FORMATS, GRID, NEEDS, Case, random
from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import layer_norm as row_layer_norm
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import video_cos_sin

EPS = 1e-6


def norm_cases(device: torch.device, width: int, heads: int) -> Iterator[Case]:
    """Make norms and gated sums. Weights have seeds of 1001 on: inputs of a small seed must not be the same numbers."""
    size = float(Case.tokens * width)
    shift, scale = random(device, 2, 1, width, dtype=torch.float32, seed=1001).unbind()
    weight, bias = random(device, 2, width, dtype=torch.float32, seed=1002).unbind()

    def make(tokens: int, seed: int) -> tuple[Tensor, ...]:
        return (random(device, 1, tokens, width, seed=seed) + 1,)

    def modulated(x: Tensor) -> Tensor:
        return modulated_layer_norm(x.float(), shift, scale, EPS)

    def affine(x: Tensor) -> Tensor:
        return layer_norm(x.float(), (width,), weight, bias, EPS)

    def case(name: str, run: Callable, accesses: int, exact: Callable, make: Callable = make, **others: Any) -> Case:
        """accesses: bytes for each number of one activation."""
        return Case(name, "norm", str(width), make, run, accesses * size, "TB/s", exact=exact, **others)

    yield case(
        "modulated_layer_norm", lambda impl, x: modulated_layer_norm(x, shift, scale, EPS, impl=impl), 4, modulated
    )
    yield case("layer_norm", lambda impl, x: row_layer_norm(x, weight, bias, EPS, impl=impl), 4, affine)
    yield case(
        "rms_norm",
        lambda impl, x: rms_norm(x, weight, EPS, impl=impl),
        4,
        lambda x: rms_norm(x.float(), weight, EPS),
    )
    for dtype, name in FORMATS.items():
        yield case(
            f"quantized_modulated_layer_norm.{name}",
            lambda impl, x, dtype=dtype: quantized_modulated_layer_norm(x, shift, scale, EPS, dtype, impl=impl),
            3,
            modulated,
            needs=NEEDS[dtype],
        )
        yield case(
            f"quantized_layer_norm.{name}",
            lambda impl, x, dtype=dtype: quantized_layer_norm(x, weight, bias, EPS, dtype, impl=impl),
            3,
            affine,
            needs=NEEDS[dtype],
        )
    yield case(
        "add_gated",
        lambda impl, x, y: add_gated(x, y, shift, impl=impl),
        6,
        lambda x, y: add_gated(x.float(), y.float(), shift),
        lambda tokens, seed: make(tokens, seed) + make(tokens, seed + 1),
    )
    for blocks, name in ((None, "norm_rope_qk"), ((128, 64), "norm_rope_qk.pooled")):

        def rotate(impl: str, qkv: Tensor, cos_sin: Tensor, blocks: Any = blocks) -> list[Tensor]:
            out = norm_rope_qk(qkv, weight, bias, cos_sin, heads, EPS, blocks=blocks, impl=impl)
            return [x for x in vars(out).values() if x is not None]

        yield case(
            name,
            rotate,
            8,
            lambda qkv, cos_sin, rotate=rotate: rotate("reference", qkv.float(), cos_sin),
            lambda tokens, seed: (
                random(device, 1, tokens, 3 * width, seed=seed),
                _cos_sin(tokens, width // heads, device),
            ),
        )


def _cos_sin(tokens: int, head_dim: int, device: torch.device) -> Tensor:
    grid = GRID if tokens == Case.tokens else (tokens, 1, 1)
    return video_cos_sin(grid, head_dim, device)
