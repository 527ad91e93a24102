"""`norm_silu` in Triton: sum, norm, SiLU and the cached frames in one pass over the tensors.

A program takes a run of positions of one frame, all channels of each in registers in float32. Programs of the frames
before x copy the cache. Whatever is among the last `cache_frames` frames of y is written twice, so the next cache does
not keep this chunk's buffer alive. Four phases are four launches that write every second row and column.

Where a convolution by `winograd.py` comes before or after, a program takes a run of positions of all frames, two at a
time, and carries the two before them in registers.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values of a program: 32 a thread
PAIR_TILE = 2048  # of one that holds two frames and the two before them


@triton.jit
def _norm_activate(x, factor, eps, C: tl.constexpr, NORM: tl.constexpr, ACTIVATE: tl.constexpr):
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 1) / C + eps)[:, None] * factor
    if ACTIVATE:
        x = x / (1 + tl.exp(-x))
    return x


@triton.jit
def _norm_silu(
    x, gamma, bias, residual, cache, y, new_cache, total, T, H, W,
    x_b, x_t, x_h, x_w, r_b, r_t, r_h, r_w, p_b, p_t, p_h, p_w, y_b, y_t, y_h, y_w, n_b, n_t, n_h, n_w,
    s_b, s_t, s_h, s_w, eps, C: tl.constexpr,
    CACHE_FRAMES: tl.constexpr, NORM: tl.constexpr, ACTIVATE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    CACHE: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    frames = T + CACHE_FRAMES
    batch, frame = tl.program_id(1) // frames, tl.program_id(1) % frames
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = (position // W)[:, None], (position % W)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (position < H * W)[:, None] & (channel < C)
    batch, frame = batch.to(tl.int64), frame.to(tl.int64)
    if frame < CACHE_FRAMES:
        out = tl.zeros((ROWS, WIDTH), tl.float32)
        if CACHE:
            from_cache = cache + batch * p_b + frame * p_t + (row * p_h + column * p_w + channel)
            out = tl.load(from_cache, mask=inside, other=0.0).to(tl.float32)
    else:
        t = frame - CACHE_FRAMES
        from_x = x + batch * x_b + t * x_t + (row * x_h + column * x_w + channel)
        out = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            out += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
        if RESIDUAL:
            from_residual = residual + batch * r_b + t * r_t + (row * r_h + column * r_w + channel)
            out += tl.load(from_residual, mask=inside, other=0.0).to(tl.float32)
        if KEEP:
            to_total = total + batch * s_b + t * s_t + (row * s_h + column * s_w + channel)
            tl.store(to_total, out.to(total.dtype.element_ty), mask=inside)
        factor = tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32) if NORM else 0
        out = _norm_activate(out, factor, eps, C, NORM, ACTIVATE)
    rounded = out.to(y.dtype.element_ty)
    tl.store(y + batch * y_b + frame * y_t + (row * y_h + column * y_w + channel), rounded, mask=inside)
    if frame >= T:
        to_cache = new_cache + batch * n_b + (frame - T) * n_t + (row * n_h + column * n_w + channel)
        tl.store(to_cache, rounded, mask=inside)


@triton.jit
def _norm_silu_pairs(
    x, m1, m2, m3, gamma, bias, residual, cache, y, new_cache, total, pairs, H, W,
    x_b, x_t, x_h, x_w, r_b, r_t, r_h, r_w, p_b, p_t, p_h, p_w, y_b, y_t, y_h, y_w, n_b, n_t, n_h, n_w,
    s_b, s_t, s_h, s_w, v_g, eps, C: tl.constexpr,
    CACHE_FRAMES: tl.constexpr, NORM: tl.constexpr, ACTIVATE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    CACHE: tl.constexpr, KEEP: tl.constexpr, PRODUCTS: tl.constexpr, TRANSFORM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = (position // W)[:, None], (position % W)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (position < H * W)[:, None] & (channel < C)
    batch = tl.program_id(1).to(tl.int64)
    from_x = batch * x_b + (row * x_h + column * x_w + channel)
    from_residual = residual + batch * r_b + (row * r_h + column * r_w + channel) if RESIDUAL else 0
    to_total = total + batch * s_b + (row * s_h + column * s_w + channel) if KEEP else 0
    to_y = y + batch * y_b + (row * y_h + column * y_w + channel)
    factor = tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32) if NORM else 0
    offset = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32) if BIAS else 0
    # The two frames before the pair.
    d0 = tl.zeros((ROWS, WIDTH), tl.float32)
    d1 = tl.zeros((ROWS, WIDTH), tl.float32)
    if CACHE and CACHE_FRAMES > 0:
        from_cache = cache + batch * p_b + (row * p_h + column * p_w + channel)
        d1 = tl.load(from_cache + (CACHE_FRAMES - 1) * p_t, mask=inside, other=0.0).to(tl.float32)
        if CACHE_FRAMES == 2:
            d0 = tl.load(from_cache, mask=inside, other=0.0).to(tl.float32)
    if not TRANSFORM:
        if CACHE_FRAMES == 2:
            tl.store(to_y, d0.to(y.dtype.element_ty), mask=inside)
        if CACHE_FRAMES > 0:
            tl.store(to_y + (CACHE_FRAMES - 1) * y_t, d1.to(y.dtype.element_ty), mask=inside)
        to_y += CACHE_FRAMES * y_t
    v_g = tl.cast(v_g, tl.int64)
    for index in range(pairs):
        pair = tl.cast(index, tl.int64)
        if PRODUCTS:
            place = from_x + pair * x_t
            p1 = tl.load(m1 + place, mask=inside, other=0.0).to(tl.float32)
            p2 = tl.load(m2 + place, mask=inside, other=0.0).to(tl.float32)
            s0 = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + (p1 + p2)
            s1 = (p1 - p2) - tl.load(m3 + place, mask=inside, other=0.0).to(tl.float32)
        else:
            place = from_x + 2 * pair * x_t
            s0 = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            s1 = tl.load(x + place + x_t, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            s0 += offset
            s1 += offset
        if RESIDUAL:
            s0 += tl.load(from_residual + 2 * pair * r_t, mask=inside, other=0.0).to(tl.float32)
            s1 += tl.load(from_residual + 2 * pair * r_t + r_t, mask=inside, other=0.0).to(tl.float32)
        if KEEP:
            tl.store(to_total + 2 * pair * s_t, s0.to(total.dtype.element_ty), mask=inside)
            tl.store(to_total + 2 * pair * s_t + s_t, s1.to(total.dtype.element_ty), mask=inside)
        s0 = _norm_activate(s0, factor, eps, C, NORM, ACTIVATE)
        s1 = _norm_activate(s1, factor, eps, C, NORM, ACTIVATE)
        if TRANSFORM:
            to_v = to_y + pair * y_t
            tl.store(to_v, (d0 - s0).to(y.dtype.element_ty), mask=inside)
            tl.store(to_v + v_g, (d1 + s0).to(y.dtype.element_ty), mask=inside)
            tl.store(to_v + 2 * v_g, (s0 - d1).to(y.dtype.element_ty), mask=inside)
            tl.store(to_v + 3 * v_g, (d1 - s1).to(y.dtype.element_ty), mask=inside)
        else:
            tl.store(to_y + 2 * pair * y_t, s0.to(y.dtype.element_ty), mask=inside)
            tl.store(to_y + 2 * pair * y_t + y_t, s1.to(y.dtype.element_ty), mask=inside)
        d0 = s0
        d1 = s1
    to_cache = new_cache + batch * n_b + (row * n_h + column * n_w + channel)
    if CACHE_FRAMES == 2:
        tl.store(to_cache, d0.to(y.dtype.element_ty), mask=inside)
    if CACHE_FRAMES > 0:
        tl.store(to_cache + (CACHE_FRAMES - 1) * n_t, d1.to(y.dtype.element_ty), mask=inside)


def norm_silu(
    parts: Sequence[Tensor],
    products: bool,
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual: Tensor | None,
    cache: Tensor | None,
    cache_frames: int,
    activate: bool,
    keep_sum: bool,
    transform: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return y as `NormSiluOutput` has it, its last frames as the next cache, and the sum [B, T, H, W, C] if asked."""
    step = 2 if len(parts) == 4 and not products else 1
    B, T, H, W, C = parts[0].shape
    T = 2 * T if products else T
    new = parts[0].new_empty
    size = step * H, step * W, C
    y = new((4, B, T // 2, *size)) if transform else new((B, cache_frames + T, *size))
    new_cache = new((B, cache_frames, *size))
    total = new((B, T, *size)) if keep_sum else None
    residual, cache = (None if given is None else _channels_innermost(given) for given in (residual, cache))
    width = triton.next_power_of_2(C)
    pairwise = products or transform
    rows = max((PAIR_TILE if pairwise else TILE) // width, 1)
    if not y.numel():
        return y, new_cache, total
    weights = [None if weight is None else weight.contiguous() for weight in (gamma_C, bias_C)]
    settings = {
        "C": C, "CACHE_FRAMES": cache_frames, "NORM": gamma_C is not None, "ACTIVATE": activate,
        "BIAS": bias_C is not None, "RESIDUAL": residual is not None, "CACHE": cache is not None, "KEEP": keep_sum,
        "ROWS": rows, "WIDTH": width,
        "num_warps": 4,
    }  # fmt: skip
    for number, part in enumerate(parts[:1] if products else parts):
        a, b = divmod(number, 2)
        x = _channels_innermost(part)
        # A phase's positions in the whole picture; y may have the axis of v in front.
        whole = [residual, cache, y[0] if transform else y, new_cache, total]
        tensors = [None if full is None else full[:, :, a::step, b::step] for full in whole]
        strides = list(x.stride()[:4])
        for tensor in tensors:
            strides += (0,) * 4 if tensor is None else tensor.stride()[:4]
        if pairwise:
            m: list[Any] = [_channels_innermost(other) for other in parts[1:]] if products else [None] * 3
            if products and any(other.stride() != x.stride() for other in m):
                x, *m = (other.contiguous() for other in parts)
                strides[:4] = x.stride()[:4]
            grid = triton.cdiv(H * W, rows), B
            v_step = y.stride(0) if transform else 0
            flags = {"PRODUCTS": products, "TRANSFORM": transform}
            _norm_silu_pairs[grid](x, *m, *weights, *tensors, T // 2, H, W, *strides, v_step, eps, **settings, **flags)
        else:
            grid = triton.cdiv(H * W, rows), B * (cache_frames + T)
            _norm_silu[grid](x, *weights, *tensors, T, H, W, *strides, eps, **settings)
    return y, new_cache, total


def _channels_innermost(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
