import pytest
import torch
from inputs import linear_inputs, strided
from torch.nn.functional import gelu

from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import int8_row_linear, quantize_int8_row
from turbodiffusion.ops.linear.per_token import per_token_linear, quantize_per_token
from turbodiffusion.ops.rounding import FP8

FORMATS = {torch.int8: (quantize_int8_row, int8_row_linear), FP8: (quantize_fp8_row, fp8_row_linear)}


@pytest.mark.parametrize("dtype", FORMATS)
def test_both_halves_are_the_linear_of_that_format(dtype):
    quantize, linear = FORMATS[dtype]
    x, weight, bias = linear_inputs(6, 64, 16, dtype=torch.bfloat16)
    w8, x8 = quantize(weight), quantize_per_token(strided(x.reshape(2, 3, 64)), dtype)
    assert x8[0].dtype == dtype and x8[1].shape == (2, 3)
    y = per_token_linear(*x8, *w8, bias, dtype=x.dtype)
    assert torch.equal(y, linear(x.reshape(2, 3, 64), *w8, bias))


def test_gelu_comes_before_the_rounding_and_is_not_rounded_itself():
    x = linear_inputs(5, 64, 16, dtype=torch.bfloat16)[0]
    values, scale = quantize_per_token(x, torch.int8, gelu=True)
    expected = quantize_int8_row(gelu(x.float(), approximate="tanh"))
    assert torch.equal(values, expected[0]) and torch.equal(scale, expected[1])


def test_what_follows_the_product():
    x, weight, bias = linear_inputs(6, 64, 16)
    x8, w8 = quantize_per_token(x.reshape(2, 3, 64), torch.int8), quantize_per_token(weight, torch.int8)
    gate, residual = torch.randn(2, 16), torch.randn(2, 3, 16)
    plain = per_token_linear(*x8, *w8, bias, dtype=torch.float32)
    y = per_token_linear(*x8, *w8, bias, dtype=torch.float32, gelu=True, gate_BO=gate, residual=residual)
    torch.testing.assert_close(y, residual + gate[:, None] * gelu(plain, approximate="tanh"))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    x, weight, bias = linear_inputs(6, 64, 16)
    x8, w8 = quantize_per_token(x, torch.int8), quantize_per_token(weight, torch.int8)

    def call(x=x8, w=w8, bias=bias, **kwargs):
        return per_token_linear(*x, *w, bias, **{"dtype": torch.float32, "impl": impl, **kwargs})

    with pytest.raises(ValueError, match=r"weight_OK must be torch.int8 as x is, got torch.float8_e4m3fn"):
        call(w=quantize_per_token(weight, FP8))
    with pytest.raises(ValueError, match=r"scale must be \[6\], got \[5\]"):
        call(x=(x8[0], x8[1][:5]))
    with pytest.raises(ValueError, match="6 rows do not split into 4 gates"):
        call(gate_BO=torch.zeros(4, 16))
    with pytest.raises(ValueError, match=r"gate_BO must be \[B, O=16\], got \[1, 17\]"):
        call(gate_BO=torch.zeros(1, 17))
    with pytest.raises(ValueError, match=r"residual must be \[6, 16\], got \[5, 16\]"):
        call(residual=torch.zeros(5, 16))
    with pytest.raises(ValueError, match=r"residual must be one of torch.float32, got torch.bfloat16"):
        call(residual=torch.zeros(6, 16, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"dtype must be torch.int8 or torch.float8_e4m3fn, got torch.uint8"):
        quantize_per_token(x, torch.uint8, impl=impl)
