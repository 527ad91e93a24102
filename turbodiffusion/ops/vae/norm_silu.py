"""All that stands between two convolutions of the Wan VAE, as one read and one write.

    s = x + bias + residual                                the bias is that of the convolution that made x
    y = silu(s / ||s||_channels * sqrt(C) * gamma)         what the next convolution reads
    y with the frames before it in front                   because that convolution is causal in time

Channels are innermost in memory. Between two convolutions of the full-resolution stage of a video (81 frames at
832x480, 96 channels, bfloat16: 6.2 GB) eager PyTorch reads and writes these tensors some ten times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, check_triton, choose
from turbodiffusion.ops.vae.winograd import Products, join_products, transform_frames

EPS = 1e-24  # keeps an all-zero position zero


@dataclass(frozen=True)
class Stream:
    """What `advance_stream` returns."""

    y: Tensor  # [B, before + T, H, W, C]: the past's frames, then x's; transformed: v [4, B, T / 2, H, W, C]
    past_BNHWC: Tensor  # the last `before` frames of y, in memory of their own
    sum_BTHWC: Tensor | None  # s, if asked for


def advance_stream(
    x_BTHWC: Tensor | Sequence[Tensor] | Products,
    gamma_C: Tensor | None = None,
    *,
    bias_C: Tensor | None = None,
    residual_BTHWC: Tensor | None = None,
    past_BNHWC: Tensor | None = None,
    before: int = 0,
    activate: bool = True,
    keep_sum: bool = False,
    transform: bool = False,
    impl: str = "reference",
) -> Stream:
    """s and y as above, computed in float32 and rounded once, in x's dtype. No gradient from impl "triton".

    x: one tensor; or the four phases of a picture twice as high and wide: its position (2i + a, 2j + b) is (i, j) of
    x[2a + b]; or the products of a convolution by `winograd.py`. gamma: None leaves the norm out; activate=False the
    SiLU (which needs the norm). past: the `before` frames in front of x, zeros where it is None. transform: y is made
    into what a convolution by `winograd.py` reads; before must be 2 and T even. Raises ValueError for shapes or dtypes
    that do not agree.
    """
    op = "advance_stream"
    products = isinstance(x_BTHWC, Products)
    parts = (
        (x_BTHWC,) if isinstance(x_BTHWC, Tensor) else x_BTHWC.m if isinstance(x_BTHWC, Products) else tuple(x_BTHWC)
    )
    if len(parts) not in (1, 4):
        raise ValueError(f"{op}: x is one tensor, four phases or Products, got {len(parts)} tensors")
    for part in parts[1:]:
        check_layout(op, x_BTHWC=parts[0], part_BTHWC=part)
    sizes = check_layout(op, x_BTHWC=parts[0])
    scale = 2 if len(parts) == 4 and not products else 1
    frames = 2 * sizes["T"] if products else sizes["T"]
    if transform and (before != 2 or frames % 2):
        raise ValueError(f"{op}: transform needs two frames before an even number, got {before} before {frames}")
    shape = [sizes["B"], frames, scale * sizes["H"], scale * sizes["W"], sizes["C"]]
    for name, tensor, expected in (
        ("gamma_C", gamma_C, shape[-1:]),
        ("bias_C", bias_C, shape[-1:]),
        ("residual_BTHWC", residual_BTHWC, shape),
        ("past_BNHWC", past_BNHWC, [shape[0], before, *shape[2:]]),
    ):
        if tensor is not None and list(tensor.shape) != expected:
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    same = {"residual_BTHWC": residual_BTHWC, "past_BNHWC": past_BNHWC}
    named = {f"part{number}_BTHWC": part for number, part in enumerate(parts)}
    check_dtype(op, FLOATS, **named, **{name: tensor for name, tensor in same.items() if tensor is not None})
    for name, tensor in {"gamma_C": gamma_C, "bias_C": bias_C}.items():
        if tensor is not None:
            check_dtype(op, FLOATS, **{name: tensor})
    function = choose(op, impl, {"reference": _reference, "triton": _triton})
    activate = activate and gamma_C is not None
    return function(parts, products, gamma_C, bias_C, residual_BTHWC, past_BNHWC, before, activate, keep_sum, transform)


def join_phases(phases: Sequence[Tensor]) -> Tensor:
    """[B, T, 2H, 2W, C] of four [B, T, H, W, C]: rows 2i + a and columns 2j + b are those of phases[2a + b]."""
    rows = [torch.stack(tuple(pair), dim=4).flatten(3, 4) for pair in (phases[:2], phases[2:])]
    return torch.stack(rows, dim=3).flatten(2, 3)


def _reference(
    parts: Sequence[Tensor],
    products: bool,
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    past_BNHWC: Tensor | None,
    before: int,
    activate: bool,
    keep_sum: bool,
    transform: bool,
) -> Stream:
    rounded, dtype = parts[0].dtype, at_least_float32(parts[0].dtype)
    wide = [part.to(dtype) for part in parts]
    s = join_products(wide) if products else join_phases(wide) if len(wide) > 1 else wide[0]
    if bias_C is not None:
        s = s + bias_C.to(dtype)
    if residual_BTHWC is not None:
        s = s + residual_BTHWC.to(dtype)
    y = s
    if gamma_C is not None:
        # sqrt(C) is inside the mean.
        y = s * (s.square().mean(dim=-1, keepdim=True) + EPS).rsqrt() * gamma_C.to(dtype)
    y = silu(y) if activate else y
    if past_BNHWC is None:
        past_BNHWC = y.new_zeros((len(y), before, *y.shape[2:]))
    y = torch.cat((past_BNHWC.to(dtype), y), dim=1)
    past = y[:, y.shape[1] - before :].to(rounded, copy=True)
    y = transform_frames(y) if transform else y
    return Stream(y.to(rounded).contiguous(), past, s.to(rounded) if keep_sum else None)


def _triton(
    parts: Sequence[Tensor],
    products: bool,
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    past_BNHWC: Tensor | None,
    before: int,
    activate: bool,
    keep_sum: bool,
    transform: bool,
) -> Stream:
    given = {"x": parts[0], "gamma": gamma_C, "bias": bias_C, "residual": residual_BTHWC, "past": past_BNHWC}
    check_triton("advance_stream", **{name: tensor for name, tensor in given.items() if tensor is not None})
    from turbodiffusion.ops.vae.kernels.norm_silu import advance

    y, past, s = advance(
        parts, products, gamma_C, bias_C, residual_BTHWC, past_BNHWC, before, activate, keep_sum, transform, EPS
    )
    return Stream(y, past, s)
