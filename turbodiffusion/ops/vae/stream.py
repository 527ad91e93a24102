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

EPS = 1e-24  # keeps an all-zero position zero


@dataclass(frozen=True)
class Stream:
    """What `advance_stream` returns."""

    y_BPHWC: Tensor  # P = before + T frames: the past's, then x's
    past_BNHWC: Tensor  # the last `before` frames of y, in memory of their own
    sum_BTHWC: Tensor | None  # s, if asked for


def advance_stream(
    x_BTHWC: Tensor | Sequence[Tensor],
    gamma_C: Tensor | None = None,
    *,
    bias_C: Tensor | None = None,
    residual_BTHWC: Tensor | None = None,
    past_BNHWC: Tensor | None = None,
    before: int = 0,
    activate: bool = True,
    keep_sum: bool = False,
    impl: str = "reference",
) -> Stream:
    """s and y as above, computed in float32 and rounded once, in x's dtype. No gradient from impl "triton".

    x: one tensor, or the four phases of a picture twice as high and wide: its position (2i + a, 2j + b) is (i, j) of
    x[2a + b]. gamma: None leaves the norm out; activate=False the SiLU (which needs the norm). past: the `before`
    frames in front of x, zeros where it is None. Raises ValueError for shapes or dtypes that do not agree.
    """
    op = "advance_stream"
    phases = (x_BTHWC,) if isinstance(x_BTHWC, Tensor) else tuple(x_BTHWC)
    if len(phases) not in (1, 4):
        raise ValueError(f"{op}: x is one tensor or four phases, got {len(phases)}")
    for phase in phases[1:]:
        check_layout(op, x_BTHWC=phases[0], phase_BTHWC=phase)
    sizes = check_layout(op, x_BTHWC=phases[0])
    scale = 1 if len(phases) == 1 else 2
    shape = [sizes["B"], sizes["T"], scale * sizes["H"], scale * sizes["W"], sizes["C"]]
    for name, tensor, expected in (
        ("gamma_C", gamma_C, shape[-1:]),
        ("bias_C", bias_C, shape[-1:]),
        ("residual_BTHWC", residual_BTHWC, shape),
        ("past_BNHWC", past_BNHWC, [shape[0], before, *shape[2:]]),
    ):
        if tensor is not None and list(tensor.shape) != expected:
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    same = {"residual_BTHWC": residual_BTHWC, "past_BNHWC": past_BNHWC}
    named = {f"phase{number}_BTHWC": phase for number, phase in enumerate(phases)}
    check_dtype(op, FLOATS, **named, **{name: tensor for name, tensor in same.items() if tensor is not None})
    for name, tensor in {"gamma_C": gamma_C, "bias_C": bias_C}.items():
        if tensor is not None:
            check_dtype(op, FLOATS, **{name: tensor})
    function = choose(op, impl, {"reference": _reference, "triton": _triton})
    return function(
        phases, gamma_C, bias_C, residual_BTHWC, past_BNHWC, before, activate and gamma_C is not None, keep_sum
    )


def join_phases(phases: Sequence[Tensor]) -> Tensor:
    """[B, T, 2H, 2W, C] of four [B, T, H, W, C]: rows 2i + a and columns 2j + b are those of phases[2a + b]."""
    rows = [torch.stack(tuple(pair), dim=4).flatten(3, 4) for pair in (phases[:2], phases[2:])]
    return torch.stack(rows, dim=3).flatten(2, 3)


def _reference(
    phases: Sequence[Tensor],
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    past_BNHWC: Tensor | None,
    before: int,
    activate: bool,
    keep_sum: bool,
) -> Stream:
    x = join_phases(phases) if len(phases) > 1 else phases[0]
    dtype = at_least_float32(x.dtype)
    s = x.to(dtype)
    if bias_C is not None:
        s = s + bias_C.to(dtype)
    if residual_BTHWC is not None:
        s = s + residual_BTHWC.to(dtype)
    y = s
    if gamma_C is not None:
        # sqrt(C) is inside the mean.
        y = s * (s.square().mean(dim=-1, keepdim=True) + EPS).rsqrt() * gamma_C.to(dtype)
    y = (silu(y) if activate else y).to(x.dtype)
    if past_BNHWC is None:
        past_BNHWC = y.new_zeros((len(y), before, *y.shape[2:]))
    y = torch.cat((past_BNHWC, y), dim=1).contiguous()
    return Stream(y, y[:, y.shape[1] - before :].clone(), s.to(x.dtype) if keep_sum else None)


def _triton(
    phases: Sequence[Tensor],
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual_BTHWC: Tensor | None,
    past_BNHWC: Tensor | None,
    before: int,
    activate: bool,
    keep_sum: bool,
) -> Stream:
    given = {"x": phases[0], "gamma": gamma_C, "bias": bias_C, "residual": residual_BTHWC, "past": past_BNHWC}
    check_triton("advance_stream", **{name: tensor for name, tensor in given.items() if tensor is not None})
    from turbodiffusion.ops.vae.stream_triton import advance

    y, past, s = advance(phases, gamma_C, bias_C, residual_BTHWC, past_BNHWC, before, activate, keep_sum, EPS)
    return Stream(y, past, s)
