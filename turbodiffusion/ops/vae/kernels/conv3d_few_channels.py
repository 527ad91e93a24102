"""The sum over the taps of `conv3d_few_channels` (col2im) in Triton: a program makes a run of positions of a frame."""

import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 256  # of a program


@triton.jit
def _sum_taps(p, bias, y, P, H, W, X, O: tl.constexpr, POSITIONS: tl.constexpr):  # noqa: E741
    T = P - 2
    batch, t = tl.program_id(1) // T, tl.program_id(1) % T
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    row, column = position // W, position % W
    inside = position < H * W
    for o in tl.static_range(O):
        total = tl.zeros((POSITIONS,), tl.float32) + tl.load(bias + o).to(tl.float32)
        for tap in tl.static_range(27):
            h, w = row + (tap // 3 % 3 - 1), column + (tap % 3 - 1)
            seen = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            frame = (batch * P + t + tap // 9).to(tl.int64)
            start = p + (tap * O + o) * X.to(tl.int64) + frame * (H * W)
            total += tl.load(start + h * W + w, mask=seen, other=0.0).to(tl.float32)
        place = y + (tl.program_id(1).to(tl.int64) * (H * W) + position) * O + o
        tl.store(place, total.to(y.dtype.element_ty), mask=inside)


def sum_taps(p_KX: Tensor, bias_O: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum products [27 * O, B * P * H * W], rows (kt, kh, kw, o), to [B, P - 2, H, W, O]."""
    B, P, H, W = shape
    out = bias_O.shape[0]
    y = p_KX.new_empty((B, P - 2, H, W, out))
    if y.numel():
        _sum_taps[(triton.cdiv(H * W, POSITIONS), B * (P - 2))](
            p_KX.contiguous(),
            bias_O.contiguous(),
            y,
            P,
            H,
            W,
            p_KX.shape[1],
            O=out,
            POSITIONS=POSITIONS,
            num_warps=4,
        )
    return y
