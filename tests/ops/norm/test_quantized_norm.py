import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.layer_norm import layer_norm, modulated_layer_norm
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.rounding import FP8

EPS = 1e-6
# Relative rounding error of a Gaussian. int8: a step of amax / 127 with amax near 3 sigma, over sqrt(12): 0.7 %. fp8:
# 2.6 % on average, 3.6 % at worst (2^-4 / sqrt(3)).
ERRORS = {torch.int8: 0.01, FP8: 0.04}
OPS = {
    "modulated": (quantized_modulated_layer_norm, modulated_layer_norm),
    "affine": (quantized_layer_norm, layer_norm),
}


def tensors(op):
    """x [2, 37, 96] with a mean far from zero; shift and scale of each video, or weight and bias."""
    shape = (2, 96) if op == "modulated" else (96,)
    return torch.randn(2, 37, 96).bfloat16() + 3, torch.randn(shape), torch.randn(shape)


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("op", OPS)
def test_values_times_scale_are_the_norm(op, dtype):
    quantized, norm = OPS[op]
    x, a, b = tensors(op)
    values, scale = quantized(strided(x), a, b, EPS, dtype)
    assert (values.dtype, values.shape) == (dtype, x.shape) and (scale.dtype, scale.shape) == (torch.float32, (2, 37))
    assert relative_l2(values.float() * scale[..., None], norm(x.float(), a, b, EPS)) < ERRORS[dtype]


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_invalid_arguments_raise(op, impl):
    x, a, b = tensors(op)
    with pytest.raises(ValueError, match=r"dtype must be torch.int8 or torch.float8_e4m3fn, got torch.bfloat16"):
        OPS[op][0](x, a, b, EPS, torch.bfloat16, impl=impl)
    with pytest.raises(ValueError, match=r"must be .*M"):
        OPS[op][0](x, a[..., :95], b, EPS, torch.int8, impl=impl)
    with pytest.raises(ValueError, match="has no gradient"):
        OPS[op][0](x.requires_grad_(), a, b, EPS, torch.int8, impl=impl)
