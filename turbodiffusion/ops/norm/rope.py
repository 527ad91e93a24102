"""Rotary position embedding (arXiv 2104.09864, equation 34) over the three axes of a video.

Each head's dimensions are split among time, height and width, in this order: height and width get (D // 6) * 2 each and
time the rest. Pair (2i, 2i + 1) of an axis with d dimensions is rotated by position * theta^(-2i / d).

A table of cosines and sines, `cos_sin` [2, L, D // 2], serves every layer and step of a video; `video_cos_sin` makes
it.
"""

from functools import lru_cache

import torch
from torch import Tensor

from turbodiffusion.ops.contract import FLOATS, at_least_float32, check_dtype, check_layout, select_impl


def rope_angles(
    grid_THW: tuple[int, int, int],
    head_dim: int,
    theta: float = 10000.0,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute the angles of every token, in radians: float64 [T * H * W, head_dim // 2], tokens in (t, h, w) order.

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


def rope_cos_sin(angles: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Take cosines and sines of `angles` [L, D // 2] in float64 and round them once: [2, L, D // 2]."""
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def video_cos_sin(grid_THW: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Return the table of a video of that many tokens a side: float32 [2, T * H * W, head_dim // 2].

    Kept for the next step and the next video of that size. Not in two cases: torch.compile cannot trace a cache keyed
    by sizes, so it gets an operator that runs once a forward; and a CUDA graph in capture makes its own table, since
    the cached one may be gone when the graph is replayed.
    """
    if torch.compiler.is_compiling():
        return _video_cos_sin_op(*grid_THW, head_dim, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _video_cos_sin(grid_THW, head_dim, device)
    return _cached_video_cos_sin(grid_THW, head_dim, device)


def _video_cos_sin(grid_THW: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    return rope_cos_sin(rope_angles(grid_THW, head_dim, device=device))


@lru_cache(maxsize=4)
def _cached_video_cos_sin(grid_THW: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may use what generation computed first
        return _video_cos_sin(grid_THW, head_dim, device)


@torch.library.custom_op("turbodiffusion::video_cos_sin", mutates_args=())
def _video_cos_sin_op(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Compute the table inside torch.compile as an operator of its own.

    The compiler would otherwise fuse the float64 sines into every use of them: on an H200 the demo model then trained
    at 4.4 steps a second instead of 13.7. Outside of it the operator's first call would import the compiler, for a
    second and more.
    """
    return _video_cos_sin((time, height, width), head_dim, device)


@_video_cos_sin_op.register_fake
def _(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    return torch.empty(2, time * height * width, head_dim // 2, device=device)


def apply_rope(x_BLHD: Tensor, cos_sin: Tensor, *, impl: str = "reference") -> Tensor:
    """Rotate each interleaved pair of x [B, L, H, D] by `cos_sin` [2, L, D // 2], from `rope_cos_sin`.

    Computed in float32 (float64 for a float64 x) and rerotated in x's dtype. Raises ValueError when L or D do not fit.
    """
    sizes = check_layout("apply_rope", x_BLHD=x_BLHD)
    check_dtype("apply_rope", FLOATS, x_BLHD=x_BLHD)
    check_dtype("apply_rope", (torch.float32, torch.float64), cos_sin=cos_sin)
    if sizes["D"] % 2 or tuple(cos_sin.shape) != (2, sizes["L"], sizes["D"] // 2):
        expected = f"[2, L={sizes['L']}, D/2={sizes['D'] / 2:g}]"
        raise ValueError(f"apply_rope: cos_sin must be {expected}, got {list(cos_sin.shape)}")
    return select_impl("apply_rope", impl, {"reference": _reference})(x_BLHD, cos_sin)


def _reference(x_BLHD: Tensor, cos_sin: Tensor) -> Tensor:
    dtype = at_least_float32(x_BLHD.dtype)
    cos, sin = cos_sin.to(dtype)[:, :, None]
    even, odd = x_BLHD.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x_BLHD.dtype)
