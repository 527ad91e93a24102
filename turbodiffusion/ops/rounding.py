"""Rounding to 8 bits: integers with 127 levels a side, and the 8-bit float e4m3 (arXiv 2209.05433).

e4m3 has 4 exponent and 3 mantissa bits and no infinity; its largest number is 448. A scale is what a stored value is
multiplied with to get the number back. Dividing by it may give a little more than the last level, which the rounding to
the nearest level undoes.
"""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

# The floor of a largest magnitude, from the published int8 format: what is all zeros gets a scale that is not zero.
SMALLEST_AMAX = 1e-8


def to_int8(x: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8 in [-127, 127], half to even; return values and scale amax / 127 (float32); `amax` broadcasts."""
    scale = amax.float().clamp_min(SMALLEST_AMAX) / 127
    return (x.float() / scale).round().to(torch.int8), scale


def to_fp8(x: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    """Round to float8_e4m3fn in [-448, 448]; return values and scale amax / 448 (float32); `amax` broadcasts."""
    scale = amax.float().clamp_min(SMALLEST_AMAX) / FP8_MAX
    return (x.float() / scale).to(FP8), scale
