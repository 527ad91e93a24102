"""Kernels without a GPU: Triton's interpreter, which tests/conftest.py turned on before anything imported Triton."""

import numpy as np
import pytest
import torch

from turbodiffusion.ops import cases
from turbodiffusion.ops.rounding import FP8, FP8_MAX

NARROW = {"bf16": (torch.bfloat16, np.uint16), "fp8e4nv": (FP8, np.uint8)}


@pytest.fixture(autouse=True, scope="session")
def interpreter_rounds_as_a_gpu():
    """Triton's interpreter loses the carry where rounding down to a narrow float raises the exponent (31.9 -> 16).

    PyTorch rounds to nearest, halves to even, as a GPU does; a GPU's conversion to fp8 saturates.
    """
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def round_to_nearest(x, source, target, rounding_mode):
        if str(source) != "fp32" or str(target) not in NARROW:
            return convert(x, source, target, rounding_mode)
        dtype, storage = NARROW[str(target)]
        wide = torch.from_numpy(np.array(x, np.float32))
        wide = wide.clamp(-FP8_MAX, FP8_MAX) if dtype == FP8 else wide
        return wide.to(dtype).view(getattr(torch, storage.__name__)).numpy().reshape(x.shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", round_to_nearest)
        yield


@pytest.fixture(autouse=True, scope="session")
def interpreter_multiplies_bf16():
    """Triton's interpreter multiplies the bits of bfloat16 tiles as integers; a GPU multiplies the numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self, a, b, *others):
        return create_dot(self, widen(a), widen(b), *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", dot)
        yield


@pytest.fixture
def poisoned():
    """Every buffer that an op allocates without filling it is full of NaN (integers: of their largest value)."""
    with cases.poisoned():
        assert torch.empty(1).isnan()
        yield
