"""Rows of a matrix inside Triton kernels: a program holds one in registers as two pieces, each a power of two long.

Model widths are 1.5, 1.25, 1.1 and 1.7 times a power of two; the next one would have threads work on up to 60% padding.
A program goes through its rows one by one, so none waits for the reductions of another; a multiprocessor has as many
programs as fit it.
"""

import triton
import triton.language as tl

from turbodiffusion.ops.kernels.rounding import SMALLEST_AMAX_BITS

# Rows are held in registers: 64 values a thread at most, with the 16 warps of the widest.
MAX_COLUMNS = 32768


def row_pieces(op: str, columns: int) -> tuple[int, int]:
    """Cover a row by two powers of two, WIDE <= columns <= WIDE + REST. ValueError where registers cannot hold it."""
    if not 0 < columns <= MAX_COLUMNS:
        raise ValueError(f"{op}: impl 'triton' takes rows of 1 to {MAX_COLUMNS} values, got {columns}; use 'reference'")
    wide = max(triton.next_power_of_2(columns) // 2, 1)
    return wide, triton.next_power_of_2(max(columns - wide, 1))


def row_warps(wide: int, rest: int) -> int:
    """Choose the warps for a row: 48 to 144 values a thread.

    `rest` is no less than what they load at a time if that allows it: a thread loads 16 values side by side, and
    `sum_pieces` then folds the pieces without leaving it.
    """
    least, most = (triton.next_power_of_2(max((wide + rest) // values, 1)) for values in (4608, 2048))
    return min(max(rest // 512, least), most, 16)


@triton.jit
def load_pieces(x, columns, step, WIDE: tl.constexpr, REST: tl.constexpr):
    """The float32 values of a row at x, zeros past its end."""
    first, second = tl.arange(0, WIDE), WIDE + tl.arange(0, REST)
    wide = tl.load(x + first * step)
    rest = tl.load(x + second * step, mask=second < columns, other=0.0)
    return wide.to(tl.float32), rest.to(tl.float32)


@triton.jit
def store_pieces(y, wide, rest, columns):
    """Both in y's dtype, side by side."""
    WIDE: tl.constexpr = wide.shape[0]
    second = WIDE + tl.arange(0, rest.shape[0])
    tl.store(y + tl.arange(0, WIDE), wide.to(y.dtype.element_ty))
    tl.store(y + second, rest.to(y.dtype.element_ty), mask=second < columns)


@triton.jit
def sum_pieces(wide, rest):
    """The sum over a row: within threads as far as it goes, then once between them."""
    REST: tl.constexpr = rest.shape[0]
    return tl.sum(tl.sum(wide.reshape((wide.shape[0] // REST, REST)), 0) + rest, 0)


@triton.jit
def largest_of_pieces(wide, rest):
    """Take `rounding.largest_magnitude` of a row."""
    REST: tl.constexpr = rest.shape[0]
    bits = tl.max((wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF).reshape((wide.shape[0] // REST, REST)), 0)
    bits = tl.max(tl.maximum(bits, rest.to(tl.int32, bitcast=True) & 0x7FFFFFFF), 0)
    return tl.maximum(bits, SMALLEST_AMAX_BITS).to(tl.float32, bitcast=True)
