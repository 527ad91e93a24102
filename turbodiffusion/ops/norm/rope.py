"""Rotary position embedding (arXiv 2104.09864, equation 34) over the three axes of a video.

Each head's dimensions are split among time, height and width, in this order: height and width get (D // 6) * 2 each and
time the rest. Pair (2i, 2i + 1) of an axis with d dimensions turns by position * theta^(-2i / d).
"""

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, choose


def rope_angles(
    grid_THW: tuple[int, int, int],
    head_dim: int,
    theta: float = 10000.0,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Angles in radians, float64 [T * H * W, head_dim // 2], for tokens in (t, h, w) order.

    `grid_THW` counts tokens along each axis (not pixels). Raises ValueError for an odd or too small head_dim.
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"rope_angles: head_dim must be even and at least 6, got {head_dim}")
    side = head_dim // 6 * 2
    of_axis = []
    for size, dim in zip(grid_THW, (head_dim - 2 * side, side, side), strict=True):
        exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
        of_axis.append(torch.outer(torch.arange(size, dtype=torch.float64, device=device), theta**-exponents))
    time, height, width = of_axis
    angles_THWD = torch.cat(
        (
            time[:, None, None].expand(*grid_THW, -1),
            height[None, :, None].expand(*grid_THW, -1),
            width[None, None, :].expand(*grid_THW, -1),
        ),
        dim=-1,
    )
    return angles_THWD.flatten(0, 2)


def rope_turns(angles: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines and sines of `angles` [L, D // 2], taken in float64 and rounded once: [2, L, D // 2]."""
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


@torch.library.custom_op("turbodiffusion::video_turns", mutates_args=())
def video_turns(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """`rope_turns` of a grid of tokens, float32 [2, time * height * width, head_dim // 2].

    An operator of its own, because torch.compile would otherwise fuse the float64 sines into every use of them: on an
    H200 the demo model then trained at 4.4 steps a second instead of 13.7.
    """
    return rope_turns(rope_angles((time, height, width), head_dim, device=device))


@video_turns.register_fake
def _(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    return torch.empty(2, time * height * width, head_dim // 2, device=device)


def apply_rope(x_BLHD: Tensor, turns: Tensor, *, impl: str = "reference") -> Tensor:
    """Turn each interleaved pair of x; `turns` [2, L, D // 2] holds cosines and sines, from `rope_turns`.

    Computed in float32 (float64 for a float64 x) and returned in x's dtype. Raises ValueError when L or D do not fit.
    """
    sizes = check_layout("apply_rope", x_BLHD=x_BLHD)
    check_dtype("apply_rope", FLOATS, x_BLHD=x_BLHD)
    check_dtype("apply_rope", (torch.float32, torch.float64), turns=turns)
    if sizes["D"] % 2 or tuple(turns.shape) != (2, sizes["L"], sizes["D"] // 2):
        expected = f"[2, L={sizes['L']}, D/2={sizes['D'] / 2:g}]"
        raise ValueError(f"apply_rope: turns must be {expected}, got {list(turns.shape)}")
    return choose("apply_rope", impl, {"reference": _reference})(x_BLHD, turns)


def _reference(x_BLHD: Tensor, turns: Tensor) -> Tensor:
    dtype = at_least_float32(x_BLHD.dtype)
    cos, sin = turns.to(dtype)[:, :, None]
    even, odd = x_BLHD.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x_BLHD.dtype)
