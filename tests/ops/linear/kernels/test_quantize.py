"""Rounding to 8 bits in Triton against its references: on a GPU, else interpreted."""

import pytest
import torch
from inputs import linear_inputs, relative_l2, strided

from turbodiffusion.ops.linear.int8 import quantize_int8_block
from turbodiffusion.ops.linear.per_token import quantize_per_token
from turbodiffusion.ops.rounding import FP8

quantize_kernels = pytest.importorskip("turbodiffusion.ops.linear.kernels.quantize", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"int8": torch.int8, "fp8": FP8}


def on_device(*tensors):
    return tuple(x.to(DEVICE) for x in tensors)


def assert_same_rounding(actual, expected, *, block=False):
    """Equal scales, and values within a level; the order of multiplications decides for one of 10,000 on an edge."""
    (values, scale), (expected_values, expected_scale) = actual, expected
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    other = values.float() != expected_values.float()
    assert other.float().mean() <= 1e-4 if values.numel() > 10_000 else other.sum() <= 1
    # The neighbour of an fp8 value is at most 1/8 of it away.
    assert relative_l2(values.float(), expected_values.float()) < 0.01


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (5, 300), (33, 1536)])
def test_per_token_quantization(rows, columns, dtype, gelu):
    x = on_device(linear_inputs(rows, columns, 1)[0])[0]
    actual = quantize_per_token(x, DTYPES[dtype], gelu=gelu, impl="triton")
    assert actual[0].dtype == DTYPES[dtype]
    assert_same_rounding(actual, quantize_per_token(x, DTYPES[dtype], gelu=gelu))


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_token_quantization_of_strided_bfloat16_in_any_dimensions(dtype):
    x = on_device(linear_inputs(12, 96, 1, dtype=torch.bfloat16)[0])[0].reshape(3, 4, 96)
    values, scale = quantize_per_token(strided(x), DTYPES[dtype], impl="triton")
    assert (values.shape, scale.shape) == ((3, 4, 96), (3, 4))
    assert_same_rounding((values, scale), quantize_per_token(x, DTYPES[dtype]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 128), (129, 300)])
def test_block_quantization(rows, columns):
    x = on_device(linear_inputs(rows, columns, 1)[0])[0]
    assert_same_rounding(quantize_kernels.quantize_blocks(strided(x)), quantize_int8_block(x))


def test_zeros_and_halves_round_as_in_the_reference():
    x = torch.zeros(2, 64, device=DEVICE)
    x[0, :6] = torch.tensor([127.0, -127.0, 0.5, 1.5, -0.5, 2.5])
    values, scale = quantize_per_token(x, torch.int8, impl="triton")
    assert values[0, :6].tolist() == [127, -127, 0, 2, 0, 2]
    assert (values[1] == 0).all()
    assert scale.tolist() == [1.0, pytest.approx(1e-8 / 127)]
    values, scale = quantize_kernels.quantize_blocks(x * 128 / 127)
    assert values[0, :2].tolist() == [127, -128]


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="rows of 1 to 32768 values, got 32769"):
        quantize_per_token(torch.zeros(1, 32769, device=DEVICE), torch.int8, impl="triton")
    with pytest.raises(ValueError, match="computes in float32, x is float64"):
        quantize_per_token(torch.zeros(4, 64, device=DEVICE).double(), torch.int8, impl="triton")
