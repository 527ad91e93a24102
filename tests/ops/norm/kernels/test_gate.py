"""The gated sum in Triton against its reference: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.gate import add_gated

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One row, and ragged groups of the 16 rows that a program takes; a width that is no power of two.
LENGTHS = (1, 16, 37)
WIDTH = 96


def tensors(length, dtype=torch.float32):
    """x and y [2, L, 96] and a gate for each of the two videos."""
    generator = torch.Generator().manual_seed(length)
    x, y, gate = (torch.randn(shape, generator=generator) for shape in ((2, length, WIDTH),) * 2 + ((2, WIDTH),))
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype), gate.to(DEVICE)


@pytest.mark.parametrize("length", LENGTHS)
def test_float32(length):
    x, y, gate = tensors(length)
    exact = add_gated(x.double(), y.double(), gate.double())
    error = relative_l2(add_gated(x, y, gate), exact)
    # Twice the float32 reference's own error, and no less than a float32 rounding.
    assert relative_l2(add_gated(x, y, gate, impl="triton"), exact) <= max(2 * error, 2**-23)
    assert torch.equal(add_gated(strided(x), strided(y), gate, impl="triton"), add_gated(x, y, gate, impl="triton"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    x, y, gate = tensors(37, dtype)
    exact = add_gated(x.double(), y.double(), gate.double())
    actual = add_gated(x, y, gate, impl="triton")
    assert actual.dtype == dtype
    # Both round float32 results that hardly differ: the errors agree to a hundredth.
    assert relative_l2(actual, exact) < 1.01 * relative_l2(add_gated(x, y, gate), exact)


def test_kernels_raise_for_a_gradient_and_float64():
    x, y, gate = tensors(5)
    with pytest.raises(ValueError, match="impl 'triton': has no gradient, but x"):
        add_gated(x.requires_grad_(), y, gate, impl="triton")
    with pytest.raises(ValueError, match=r"impl 'triton' computes in float32, x.* is float64"):
        add_gated(x.detach().double(), y.double(), gate.double(), impl="triton")
