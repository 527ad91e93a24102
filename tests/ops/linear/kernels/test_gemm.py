"""The 8-bit products in Triton against their references: on a GPU, else interpreted."""

import pytest
import torch
from inputs import linear_inputs, relative_l2, strided

from turbodiffusion.errors import MachineError
from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row
from turbodiffusion.ops.linear.int8 import int8_block_linear, int8_row_linear, quantize_int8_block, quantize_int8_row
from turbodiffusion.ops.linear.per_token import per_token_linear, quantize_per_token
from turbodiffusion.ops.rounding import FP8

gemm_kernels = pytest.importorskip("turbodiffusion.ops.linear.kernels.gemm", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"int8": torch.int8, "fp8": FP8}
FORMATS = {
    "int8_row": (quantize_int8_row, int8_row_linear),
    "int8_block": (quantize_int8_block, int8_block_linear),
    "fp8_row": (quantize_fp8_row, fp8_row_linear),
}
# Tiles far smaller than a GPU wants, so that a few rows have several tiles and ragged ones; both ways of transport.
SMALL = {
    "tma": gemm_kernels.Config(m=32, n=32, k=32, stages=2, warps=4, group=2),
    "pointers": gemm_kernels.Config(m=32, n=32, k=32, stages=2, warps=4, group=2, tma=False),
}


def on_device(*tensors):
    return tuple(x.to(DEVICE) for x in tensors)


@pytest.mark.parametrize("transport", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features", "out"), [(1, 16, 16), (33, 80, 48), (70, 144, 112)])
def test_product_with_per_token_scales(rows, features, out, dtype, transport):
    x, weight, bias = on_device(*linear_inputs(rows, features, out))
    x8, w8 = quantize_per_token(x, DTYPES[dtype]), quantize_per_token(weight, DTYPES[dtype])
    y = gemm_kernels.gemm(*x8, *w8, bias, dtype=torch.float32, config=SMALL[transport])
    expected = x8[0].double() @ w8[0].double().T * x8[1][:, None].double() * w8[1].double() + bias
    # int8 sums are exact and then scaled in float32; Hopper adds fp8 products with 14 bits.
    assert relative_l2(y, expected) < (1e-6 if dtype == "int8" or DEVICE == "cpu" else 2**-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "features", "out"),
    [(3, 16, 16), (999, 1552, 1520), (6000, 400, 1536), (999, 8208, 1520), (6000, 8320, 1536)],
)
def test_products_of_hoppers_own_kernel(rows, features, out, dtype):
    """Ragged in every direction; three videos, whose gates a tile may cross; tiles for more and for fewer programs, of
    short sums and of long ones.
    """
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper GPU")
    from turbodiffusion.ops.linear.kernels.gemm_hopper_gluon import gemm_rows

    x, weight, bias = on_device(*linear_inputs(rows, features, out))
    residual = linear_inputs(rows, out, 1, seed=3)[0].to(DEVICE, torch.bfloat16)
    gates = linear_inputs(3, out, 1, seed=4)[0].to(DEVICE)
    x8, w8 = quantize_per_token(x, DTYPES[dtype]), quantize_per_token(weight, DTYPES[dtype])
    for fused in (
        {},
        {"bias_N": bias.bfloat16(), "gelu": True},
        {"bias_N": bias, "gate_BN": gates[:1], "residual_MN": residual},
        {"gate_BN": gates, "residual_MN": residual},
    ):
        arguments = {"bias_N": None, "gate_BN": None, "residual_MN": None, "gelu": False} | fused
        y = torch.full((rows, out), float("nan"), device=DEVICE, dtype=torch.bfloat16)
        gemm_rows(y, *x8, *w8, **arguments)
        expected = per_token_linear(
            *x8, *w8, arguments["bias_N"], dtype=torch.float32, gelu=arguments["gelu"],
            gate_BO=arguments["gate_BN"], residual=None if "residual_MN" not in fused else residual.float(),
        )  # fmt: skip
        assert relative_l2(y.float(), expected) < (2**-8 if dtype == "int8" else 2**-7)


@pytest.mark.parametrize("transport", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_after_the_product(dtype, transport, monkeypatch):
    """Three videos of 13 tokens: tiles of 32 rows cross from one gate to the next."""
    monkeypatch.setattr(gemm_kernels, "default_config", lambda *_, **__: SMALL[transport])
    x, weight, bias = on_device(*linear_inputs(39, 80, 48))
    residual = linear_inputs(39, 48, 1, seed=3)[0].to(DEVICE).reshape(3, 13, 48)
    gates = linear_inputs(3, 48, 1, seed=4)[0].to(DEVICE)
    x8, x_scale = quantize_per_token(x.reshape(3, 13, 80), DTYPES[dtype])
    for choice in (
        {"gelu": True},
        {"residual": residual},
        {"residual": strided(residual), "gate_BO": gates},
        {"residual": residual, "gate_BO": gates[:1], "gelu": True},
    ):
        arguments = (x8, x_scale, *quantize_per_token(weight, DTYPES[dtype]), bias)
        actual = per_token_linear(*arguments, dtype=torch.float32, impl="triton", **choice)
        expected = per_token_linear(*arguments, dtype=torch.float32, **choice)
        assert relative_l2(actual, expected) < (1e-6 if dtype == "int8" or DEVICE == "cpu" else 2**-12)


@pytest.mark.parametrize("transport", SMALL)
def test_output_is_rounded_once(transport):
    x, weight, bias = on_device(*linear_inputs(33, 80, 48))
    x8, w8 = quantize_per_token(x, torch.int8), quantize_per_token(weight, torch.int8)
    arguments = {"bias_N": bias, "config": SMALL[transport]}
    exact = gemm_kernels.gemm(*x8, *w8, dtype=torch.float32, **arguments)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(gemm_kernels.gemm(*x8, *w8, dtype=dtype, **arguments), exact.to(dtype))


@pytest.mark.parametrize("kind", FORMATS)
def test_linear_with_the_tiles_of_a_gpu(kind):
    """The op as a module calls it, with leading dimensions, strides and a weight that starts between 16 bytes."""
    quantize, linear = FORMATS[kind]
    x, weight, bias = on_device(*linear_inputs(130, 144, 160, dtype=torch.bfloat16))
    values, scale = quantize(weight)
    shifted = torch.empty(values.numel() + 1, dtype=values.dtype, device=DEVICE)[1:].view_as(values).copy_(values)
    y = linear(strided(x.reshape(2, 65, 144)), shifted, scale, bias, impl="triton")
    assert (y.shape, y.dtype) == ((2, 65, 160), torch.bfloat16)
    # Both round to bfloat16 at the end: where a sum lies on an edge, they may differ by one of its 8 bits.
    assert relative_l2(y.reshape(130, 160), linear(x, values, scale, bias)) < 2**-9
    exact = x.double() @ weight.double().T + bias.double()
    error = relative_l2(linear(x, values, scale, bias), exact)
    assert relative_l2(y.reshape(130, 160), exact) < 1.02 * error


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_not_finite_stays_visible(kind):
    quantize, linear = FORMATS[kind]
    x, weight, _ = on_device(*linear_inputs(4, 64, 16))
    for value in (torch.nan, torch.inf, -torch.inf):
        x[2, 3] = value
        y = linear(x, *quantize(weight), None, impl="triton")
        assert not y[2].isfinite().any()
        assert kind == "int8_block" or y[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("kind", FORMATS)
def test_no_rows(kind):
    quantize, linear = FORMATS[kind]
    _, weight, bias = on_device(*linear_inputs(1, 64, 16))
    assert linear(torch.empty(2, 0, 64, device=DEVICE), *quantize(weight), bias, impl="triton").shape == (2, 0, 16)


def test_invalid_arguments_raise(monkeypatch):
    x, weight, bias = on_device(*linear_inputs(4, 64, 24))
    values, scale = quantize_int8_row(weight)
    with pytest.raises(ValueError, match="N and K to be multiples of 16, got 24 and 64; use 'reference'"):
        int8_row_linear(x, values, scale, bias, impl="triton")
    blocks = quantize_int8_block(x), quantize_int8_block(weight[:16])
    with pytest.raises(ValueError, match="block scales need tiles of at most 128 and k=128"):
        gemm_kernels.gemm(*blocks[0], *blocks[1], dtype=x.dtype, config=gemm_kernels.Config(n=256))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(MachineError, match="impl 'triton' needs x on a GPU, it is on cpu; use 'reference'"):
        int8_row_linear(x.cpu(), values.cpu(), scale.cpu(), bias.cpu(), impl="triton")
