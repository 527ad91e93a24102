"""`advance_stream` in Triton: sum, norm, SiLU and the causal past in one pass over the tensors.

A program takes a run of positions of one frame, all channels of each in registers in float32. Programs of the frames
before x copy the past. Whatever is among the last `before` frames of y is written twice, so the next chunk's past does
not keep this chunk's buffer alive. Four phases are four launches that write every second row and column.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values of a program: 32 a thread


@triton.jit
def _advance(
    x, gamma, bias, residual, past, y, new_past, total, T, H, W,
    x_b, x_t, x_h, x_w, r_b, r_t, r_h, r_w, p_b, p_t, p_h, p_w, y_b, y_t, y_h, y_w, n_b, n_t, n_h, n_w,
    s_b, s_t, s_h, s_w, eps, C: tl.constexpr,
    BEFORE: tl.constexpr, NORM: tl.constexpr, ACTIVATE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    PAST: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    frames = T + BEFORE
    batch, frame = tl.program_id(1) // frames, tl.program_id(1) % frames
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = (position // W)[:, None], (position % W)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (position < H * W)[:, None] & (channel < C)
    batch, frame = batch.to(tl.int64), frame.to(tl.int64)
    if frame < BEFORE:
        out = tl.zeros((ROWS, WIDTH), tl.float32)
        if PAST:
            from_past = past + batch * p_b + frame * p_t + (row * p_h + column * p_w + channel)
            out = tl.load(from_past, mask=inside, other=0.0).to(tl.float32)
    else:
        t = frame - BEFORE
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
        if NORM:
            factor = tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32)
            out = out * tl.rsqrt(tl.sum(out * out, 1) / C + eps)[:, None] * factor
        if ACTIVATE:
            out = out / (1 + tl.exp(-out))
    rounded = out.to(y.dtype.element_ty)
    tl.store(y + batch * y_b + frame * y_t + (row * y_h + column * y_w + channel), rounded, mask=inside)
    if frame >= T:
        to_past = new_past + batch * n_b + (frame - T) * n_t + (row * n_h + column * n_w + channel)
        tl.store(to_past, rounded, mask=inside)


def advance(
    phases: Sequence[Tensor],
    gamma_C: Tensor | None,
    bias_C: Tensor | None,
    residual: Tensor | None,
    past: Tensor | None,
    before: int,
    activate: bool,
    keep_sum: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y [B, before + T, H, W, C], its last `before` frames again, and the sum [B, T, H, W, C] if it is to be kept."""
    step = 1 if len(phases) == 1 else 2
    B, T, H, W, C = phases[0].shape
    y = phases[0].new_empty((B, before + T, step * H, step * W, C))
    new_past = phases[0].new_empty((B, before, step * H, step * W, C))
    total = phases[0].new_empty((B, T, step * H, step * W, C)) if keep_sum else None
    residual, past = (None if given is None else _channels_innermost(given) for given in (residual, past))
    width = triton.next_power_of_2(C)
    rows = max(TILE // width, 1)
    if not y.numel():
        return y, new_past, total
    for number, phase in enumerate(phases):
        a, b = divmod(number, 2)
        x = _channels_innermost(phase)
        part = [None if full is None else full[:, :, a::step, b::step] for full in (residual, past, y, new_past, total)]
        strides = [(0,) * 4 if tensor is None else tensor.stride()[:4] for tensor in part]
        _advance[(triton.cdiv(H * W, rows), B * (before + T))](
            x,
            None if gamma_C is None else gamma_C.contiguous(),
            None if bias_C is None else bias_C.contiguous(),
            *part,
            T,
            H,
            W,
            *x.stride()[:4],
            *[stride for tensor in strides for stride in tensor],
            eps,
            C=C,
            BEFORE=before,
            NORM=gamma_C is not None,
            ACTIVATE=activate,
            BIAS=bias_C is not None,
            RESIDUAL=residual is not None,
            PAST=past is not None,
            KEEP=keep_sum,
            ROWS=rows,
            WIDTH=width,
            num_warps=4,
        )
    return y, new_past, total


def _channels_innermost(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
