"""All that stands between two convolutions of the Wan VAE, as one read and one write.

    s = x + bias + residual                                the bias is that of the convolution that made x
    y = silu(s / ||s||_channels * sqrt(C) * gamma)         what the next convolution reads
    y with the cached frames before it in front            because that convolution is causal in time

Channels are innermost in memory. Between two convolutions of the full-resolution stage of a video (81 frames at
832x480, 96 channels, bfloat16: 6.2 GB) eager PyTorch reads and writes these tensors some ten times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, select_impl
from turbodiffusion.ops.vae.winograd import WinogradProducts, transform_input, transform_output

EPS = 1e-24  # keeps an all-zero position zero


@dataclass(frozen=True)
class NormSiluOutput:
    """What `norm_silu` returns."""

    y: Tensor  # [B, cache_frames + T, H, W, C]: the cache, then x's frames; transformed: v [4, B, T / 2, H, W, C]
    cache_BNHWC: Tensor  # the last `cache_frames` frames of y, in memory of their own
    sum_BTHWC: Tensor | None  # s, if asked for


def norm_silu(
    x_BTHWC: Tensor | Sequence[Tensor] | WinogradProducts,
    gamma_C: Tensor | None = None,
    *,
    bias_C: Tensor | None = None,
    residual_BTHWC: Tensor | None = None,
    cache_BNHWC: Tensor | None = None,
    cache_frames: int = 0,
    activate: bool = True,
    keep_sum: bool = False,
    transform: bool = False,
    impl: str = "reference",
) -> NormSiluOutput:
    """Add up s, norm and activate it as above, in float32 and rounded once to x's dtype. No gradient from "triton".

    x: one tensor; or the four phases of a picture twice as high and wide: its position (2i + a, 2j + b) is (i, j) of
    x[2a + b]; or the products of a convolution by `winograd.py`. gamma: None leaves the norm out; activate=False the
    SiLU (which needs the norm). cache: the `cache_frames` frames in front of x, zeros where it is None. transform: y is
    made into what a convolution by `winograd.py` reads; cache_frames must be 2 and T even. Raises ValueError for shapes
    or dtypes that do not agree.
    """
    op = "norm_silu"
    products = isinstance(x_BTHWC, WinogradProducts)
    parts = (
        (x_BTHWC,)
        if isinstance(x_BTHWC, Tensor)
        else x_BTHWC.m
        if isinstance(x_BTHWC, WinogradProducts)
        else tuple(x_BTHWC)
    )
    if len(parts) not in (1, 4):
        raise ValueError(f"{op}: x is one tensor, four phases or WinogradProducts, got {len(parts)} tensors")
    for part in parts[1:]:
        check_layout(op, x_BTHWC=parts[0], part_BTHWC=part)
    sizes = check_layout(op, x_BTHWC=parts[0])
    scale = 2 if len(parts) == 4 and not products else 1
    frames = 2 * sizes["T"] if products else sizes["T"]
    if transform and (cache_frames != 2 or frames % 2):
        raise ValueError(f"{op}: transform needs two frames before an even number, got {cache_frames} before {frames}")
    shape = [sizes["B"], frames, scale * sizes["H"], scale * sizes["W"], sizes["C"]]
    for name, tensor, expected in (
        ("gamma_C", gamma_C, shape[-1:]),
        ("bias_C", bias_C, shape[-1:]),
        ("residual_BTHWC", residual_BTHWC, shape),
        ("cache_BNHWC", cache_BNHWC, [shape[0], cache_frames, *shape[2:]]),
    ):
        if tensor is not None and list(tensor.shape) != expected:
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    same = {"residual_BTHWC": residual_BTHWC, "cache_BNHWC": cache_BNHWC}
    named = {f"part{number}_BTHWC": part for number, part in enumerate(parts)}
    check_dtype(op, FLOATS, **named, **{name: tensor for name, tensor in same.items() if tensor is not None})
    for name, tensor in {"gamma_C": gamma_C, "bias_C": bias_C}.items():
        if tensor is not None:
            check_dtype(op, FLOATS, **{name: tensor})
    function = select_impl(op, impl, {"reference": _reference, "triton": _triton})
    activate = activate and gamma_C is not None
    return function(
        parts, products, gamma_C, bias_C, residual_BTHWC, cache_BNHWC, cache_frames, activate, keep_sum, transform
    )


def interleave_phases(phases: Sequence[Tensor]) -> Tensor:
    """Interleave four [B, T, H, W, C] to [B, T, 2H, 2W, C]: row 2i + a, column 2j + b is that of phases[2a + b]."""
    rows = [torch.stack(tuple(pair), dim=4).flatten(3, 4) for pair in (phases[:2], phases[2:])]
    return torch.stack(rows, dim=3).flatten(2, 3)


def _reference(
    parts: Sequence[Tensor],
    products: bool,
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    cache_BNHWC: Tensor | None,
    cache_frames: int,
    activate: bool,
    keep_sum: bool,
    transform: bool,
) -> NormSiluOutput:
    rounded, dtype = parts[0].dtype, at_least_float32(parts[0].dtype)
    wide = [part.to(dtype) for part in parts]
    s = transform_output(wide) if products else interleave_phases(wide) if len(wide) > 1 else wide[0]
    if bias_C is not None:
        s = s + bias_C.to(dtype)
    if residual_BTHWC is not None:
        s = s + residual_BTHWC.to(dtype)
    y = s
    if gamma_C is not None:
        # sqrt(C) is inside the mean.
        y = s * (s.square().mean(dim=-1, keepdim=True) + EPS).rsqrt() * gamma_C.to(dtype)
    y = silu(y) if activate else y
    if cache_BNHWC is None:
        cache_BNHWC = y.new_zeros((len(y), cache_frames, *y.shape[2:]))
    y = torch.cat((cache_BNHWC.to(dtype), y), dim=1)
    cache = y[:, y.shape[1] - cache_frames :].to(rounded, copy=True)
    y = transform_input(y) if transform else y
    return NormSiluOutput(y.to(rounded).contiguous(), cache, s.to(rounded) if keep_sum else None)


def _triton(
    parts: Sequence[Tensor],
    products: bool,
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    cache_BNHWC: Tensor | None,
    cache_frames: int,
    activate: bool,
    keep_sum: bool,
    transform: bool,
) -> NormSiluOutput:
    given = {"x": parts[0], "gamma": gamma_C, "bias": bias_C, "residual": residual_BTHWC, "cache": cache_BNHWC}
    check_triton("norm_silu", **{name: tensor for name, tensor in given.items() if tensor is not None})
    from turbodiffusion.ops.vae.kernels.norm_silu import norm_silu as kernel

    y, cache, s = kernel(
        parts, products, gamma_C, bias_C, residual_BTHWC, cache_BNHWC, cache_frames, activate, keep_sum, transform, EPS
    )
    return NormSiluOutput(y, cache, s)
