"""nn.linear: 8-bit layers keep the published names, quantize what they are given, and compute what their op does."""

import pytest
import torch

from turbodiffusion.config import LINEAR_KINDS
from turbodiffusion.nn.linear import (
    PER_TOKEN_DTYPES,
    QuantizedLinear,
    fuse_linears,
    fused_linear,
    fused_weights,
    linear,
)
from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import int8_block_linear, int8_row_linear, quantize_int8_block, quantize_int8_row
from turbodiffusion.ops.linear.per_token import quantize_per_token

IN, OUT = 200, 136  # neither is a multiple of 128
OPS = {
    "int8_block": (quantize_int8_block, int8_block_linear),
    "int8_row": (quantize_int8_row, int8_row_linear),
    "fp8_row": (quantize_fp8_row, fp8_row_linear),
}
KEYS = {
    "int8_block": {"int8_weight": (OUT, IN), "scale": (2, 2), "bias": (OUT,)},
    "int8_row": {"int8_weight": (OUT, IN), "scale": (OUT,), "bias": (OUT,)},
    "fp8_row": {"fp8_weight": (OUT, IN), "scale": (OUT,), "bias": (OUT,)},
}
# Relative rounding error of a Gaussian, for weight and activation in quadrature. int8: step / sqrt(12) with a step of
# amax / 127 and amax near 4 sigma: 0.9 % each, 1.3 % together. fp8 (3 mantissa bits): at worst 2^-4 / sqrt(3) = 3.6 %
# each, just above a power of two, and 2.6 % on average: 3.7 % together.
ERRORS = {"int8_block": 0.02, "int8_row": 0.02, "fp8_row": 0.05}


def test_off_is_pytorchs():
    layer = linear(IN, OUT, kind="off", dtype=torch.bfloat16)
    assert type(layer) is torch.nn.Linear
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KEYS)
def test_state_has_the_published_names(kind):
    layer = linear(IN, OUT, kind=kind, dtype=torch.bfloat16)
    assert {key: tuple(w.shape) for key, w in layer.state_dict().items()} == KEYS[kind]
    assert layer.scale.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KEYS)
@torch.no_grad()
def test_forward_is_the_op_on_the_quantized_weight(kind):
    torch.manual_seed(0)
    quantize, multiply = OPS[kind]
    layer = linear(IN, OUT, kind=kind)
    weight, x = torch.randn(OUT, IN), torch.randn(2, 7, IN)
    layer.load_weight(weight)
    torch.nn.init.normal_(layer.bias)
    y = layer(x)
    assert torch.equal(y, multiply(x, *quantize(weight), layer.bias))
    exact = torch.nn.functional.linear(x, weight, layer.bias)
    assert (y - exact).norm() < ERRORS[kind] * exact.norm()


@torch.no_grad()
def test_autocast_does_not_reach_inside():
    layer, x = linear(IN, OUT, kind="int8_row"), torch.randn(3, IN)
    layer.reset_parameters()
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", KEYS)
@torch.no_grad()
def test_reset_parameters_gives_a_weight_to_measure_with(kind):
    layer = QuantizedLinear(IN, OUT, kind=kind)
    layer.reset_parameters()
    # Xavier: variance 2 / (in + out) for each weight, so in times that for each output of unit input; 27,200 of them
    assert layer(torch.randn(200, IN)).var() == pytest.approx(2 * IN / (IN + OUT), rel=0.1)
    assert not layer.bias.any()


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="'int4' is not one of int8_block, int8_row, fp8_row"):
        linear(IN, OUT, kind="int4")
    with pytest.raises(ValueError, match=r"must be \[136, 200\], got \[200, 136\]"):
        linear(IN, OUT, kind="int8_row").load_weight(torch.zeros(IN, OUT))
    with pytest.raises(ValueError, match="meta device"):
        linear(IN, OUT, kind="int8_row", device="meta").load_weight(torch.zeros(OUT, IN))


def test_kinds_are_the_ones_tested_here():
    assert set(LINEAR_KINDS) == {"off", *KEYS}


@pytest.mark.parametrize(("kind", "first"), [("off", OUT), ("int8_row", OUT), ("fp8_row", OUT), ("int8_block", 128)])
@torch.no_grad()
def test_fused_layers_are_one_product(kind, first):
    torch.manual_seed(0)
    widths = [first, 128, OUT]
    layers = [linear(IN, out, kind=kind) for out in widths]
    for layer in layers:
        if kind != "off":
            layer.reset_parameters()
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 7, IN)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    with pytest.raises(RuntimeError, match="do not lie side by side"):
        fused_weights(layers)
    fuse_linears(layers)
    assert all(torch.equal(layer(x), y) for layer, y in zip(layers, expected.split(widths, -1), strict=True))
    y = fused_linear(layers, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)  # a wider product may sum in another order


@pytest.mark.parametrize("kind", ["int8_row", "fp8_row"])
@torch.no_grad()
def test_forward_quantized_is_forward_with_gate_and_residual(kind):
    torch.manual_seed(0)
    layer = linear(IN, OUT, kind=kind)
    layer.reset_parameters()
    x, gate, residual = torch.randn(2, 7, IN), torch.randn(2, OUT), torch.randn(2, 7, OUT)
    x8 = quantize_per_token(x, PER_TOKEN_DTYPES[kind])
    y = layer.forward_quantized(x8, torch.float32, gate_BO=gate, residual=residual)
    torch.testing.assert_close(y, residual + gate[:, None] * layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KEYS)
@torch.no_grad()
def test_float_weight_is_what_the_8_bits_stand_for(kind):
    torch.manual_seed(0)
    layer, weight = linear(IN, OUT, kind=kind), torch.randn(OUT, IN)
    layer.load_weight(weight)
    assert 0 < (layer.float_weight() - weight).norm() < ERRORS[kind] * weight.norm()
    assert layer.float_weight().dtype == torch.float32
