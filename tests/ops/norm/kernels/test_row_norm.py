"""The norms in Triton, quantized and not, against their references: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.layer_norm import layer_norm, modulated_layer_norm
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.rounding import FP8

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
# One row, and ragged groups of the 16 rows that a program takes; a width that is no power of two.
LENGTHS = (1, 16, 37)
WIDTH = 96


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tensors(length, dtype=torch.float32):
    """x [2, L, 96] with a mean far from zero, and two rows of weights for each of the two videos."""
    return random(2, length, WIDTH, dtype=dtype) + 3, random(2, WIDTH, seed=1), random(2, WIDTH, seed=2)


OPS = {
    "modulated_layer_norm": lambda x, a, b, **kw: modulated_layer_norm(x, a, b, EPS, **kw),
    "layer_norm": lambda x, a, b, **kw: layer_norm(x, a[0], b[0], EPS, **kw),
    "rms_norm": lambda x, a, b, **kw: rms_norm(x, a[0].to(x.dtype), EPS, **kw),
}
QUANTIZED = {
    "modulated": lambda x, a, b, dtype, **kw: quantized_modulated_layer_norm(x, a, b, EPS, dtype, **kw),
    "affine": lambda x, a, b, dtype, **kw: quantized_layer_norm(x, a[0], b[0], EPS, dtype, **kw),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", OPS)
def test_float32(op, length):
    x, a, b = tensors(length)
    exact = OPS[op](x.double(), a.double(), b.double())
    error = relative_l2(OPS[op](x, a, b), exact)
    # Twice the float32 reference's own error, and no less than a float32 rounding.
    assert relative_l2(OPS[op](x, a, b, impl="triton"), exact) <= max(2 * error, 2**-23)
    assert torch.equal(OPS[op](strided(x), a, b, impl="triton"), OPS[op](x, a, b, impl="triton"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_low_precision_is_rounded_once(op, dtype):
    x, a, b = tensors(37, dtype)
    exact = OPS[op](x.double(), a.double(), b.double())
    actual = OPS[op](x, a, b, impl="triton")
    assert actual.dtype == dtype
    error = relative_l2(OPS[op](x, a, b), exact)
    # Both round float32 results that hardly differ: the errors agree to a hundredth.
    assert relative_l2(actual, exact) < 1.01 * error


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", QUANTIZED)
def test_quantized_norms(op, length, dtype):
    x, a, b = tensors(length, torch.bfloat16)
    values, scale = QUANTIZED[op](strided(x), a, b, dtype, impl="triton")
    expected_values, expected_scale = QUANTIZED[op](x, a, b, dtype)
    assert (values.dtype, values.shape, scale.shape) == (dtype, x.shape, x.shape[:2])
    torch.testing.assert_close(scale, expected_scale, rtol=2e-6, atol=0)
    # A norm that differs in its last bits moves one value in thousands over the edge between two levels.
    assert (values.float() != expected_values.float()).sum() <= 2
    assert relative_l2(values.float() * scale[..., None], expected_values.float() * expected_scale[..., None]) < 0.01


@pytest.mark.parametrize("op", QUANTIZED)
def test_what_is_not_finite_stays_visible(op):
    x, a, b = tensors(5)
    for value in (torch.nan, torch.inf):
        x[0, 2, 7] = value
        _, scale = QUANTIZED[op](x, a, b, torch.int8, impl="triton")
        assert not scale[0, 2].isfinite()
        assert scale[1].isfinite().all()


@pytest.mark.parametrize("op", OPS)
def test_kernels_raise_for_a_gradient_and_float64(op):
    x, a, b = tensors(5)
    with pytest.raises(ValueError, match="impl 'triton': has no gradient, but x"):
        OPS[op](x.requires_grad_(), a, b, impl="triton")
    with pytest.raises(ValueError, match=r"impl 'triton' computes in float32, x.* is float64"):
        OPS[op](x.detach().double(), a.double(), b.double(), impl="triton")
