"""Rounding to 8 bits inside Triton kernels: what `rounding.py` does, on a tile in registers."""

import triton
import triton.language as tl

# Adding 1.5 * 2^23 to a float32 below 2^22 in size rounds it to the nearest integer, halves to even, and leaves that in
# its last bits: the lowest 8 are it as an int8. Converting would take a unit that is eight times slower.
ROUNDER = tl.constexpr(12582912.0)

# The bits of SMALLEST_AMAX = 1e-8 as a float32.
SMALLEST_AMAX_BITS = tl.constexpr(0x322BCC77)

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

FP8_LEVELS = tl.constexpr(448.0)
INT8_LEVELS = tl.constexpr(127.0)


@triton.jit
def largest_magnitude(x, AXIS: tl.constexpr):
    """max(|x|, 1e-8) along an axis (None: of all) of a float32 tile. What is not finite stays visible.

    Floats without their sign are ordered as their bits are, a NaN above all, which a maximum of floats would skip.
    """
    bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, AXIS)
    return tl.maximum(bits, SMALLEST_AMAX_BITS).to(tl.float32, bitcast=True)


@triton.jit
def levels_of(dtype: tl.constexpr):
    """The largest number that values of this dtype are scaled to."""
    if dtype == tl.int8:
        return INT8_LEVELS
    else:
        return FP8_LEVELS


@triton.jit
def to_8bit(x, dtype: tl.constexpr):
    """Scaled float32 values as int8 (the caller keeps them in range) or float8e4nv (which saturates)."""
    if dtype == tl.int8:
        return (x + ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        return x.to(dtype)


@triton.jit
def gelu_tanh(x):
    """GELU's tanh form, on a GPU by its own tanh, an instruction of relative error 2^-11: off by |x| 2^-12 at most.

    The outputs are rounded to bfloat16 (2^-9) or 8 bits. The interpreter has no assembler and takes x times a logistic
    function: 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)).
    """
    u = x * (0.7978845608028654 + 0.035677408136300125 * x * x)
    if INTERPRETED:
        return x / (1 + tl.exp(-2 * u))
    else:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], tl.float32, True, 1)
        return half + half * tanh
