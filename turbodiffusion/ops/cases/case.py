"""What a case is, and the sizes and inputs that cases of every subject share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.ops.implementations import FP8_GPU, TRITON_GPU
from turbodiffusion.ops.rounding import FP8

GRID = (21, 30, 52)  # 81 frames at 832x480: 32760 tokens, a multiple of no tile
RAGGED = (1, 63, 65, 127, 129, 780)  # around tiles and blocks, and a multiple of nothing
FORMATS = {torch.int8: "int8", FP8: "fp8"}
NEEDS = {torch.int8: TRITON_GPU, FP8: FP8_GPU}
MEMORY = "one pass over memory"  # what bounds a case that multiplies nothing


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    make(tokens, seed) gives its inputs; run(impl, *inputs) its output, or several; exact(*inputs) the float32 result
    that outputs are compared with, None where that is the reference itself. A quantized output is (values, scale).
    """

    name: str
    group: str  # a field of Kernels
    shape: str
    make: Callable[[int, int], tuple[Any, ...]]
    run: Callable[..., Any]
    work: float  # operations, or bytes read and written, at `tokens`; 0: it is timed as part of another case
    unit: str  # of work in 1e12 a second: TB/s, TFLOP/s (bfloat16) or TOP/s (8 bits)
    how: str = MEMORY
    exact: Callable[..., Any] | None = None
    bound: float | None = None  # of the error, in any case
    needs: tuple[int, int] = TRITON_GPU  # the oldest GPU, by its compute capability
    tokens: int = GRID[0] * GRID[1] * GRID[2]
    impl: str = "triton"  # or "torch": PyTorch's own, to compare with; it is timed and not checked
    target: float | None = None  # of the rate
    distance: Callable[[Any, Any], float] | None = None  # None: `error`

    @property
    def title(self) -> str:
        return f"{self.name}.{self.shape}"


def random(
    device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, scale: float = 1.0
) -> Tensor:
    """Draw a Gaussian tensor times `scale`."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)
