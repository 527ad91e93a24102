import pytest
import torch
from inputs import RAGGED, linear_inputs, relative_l2, strided

from turbodiffusion.ops.linear.fp8 import fp8_row_linear, quantize_fp8_row


@pytest.mark.parametrize("rows", RAGGED)
def test_error_on_gaussian_data(rows):
    """4% is the bound for fp8 rows: 3 mantissa bits round each factor by 2.6% in the mean square, together 3.7%.

    So many outputs that the error of a single token is known to a few percent of itself.
    """
    x, weight, bias = linear_inputs(rows, 520, 2000)
    y = fp8_row_linear(x, *quantize_fp8_row(weight), bias)
    assert relative_l2(y, x @ weight.T + bias) < 0.04


def test_each_row_has_its_own_scale():
    """A power of two changes a row's scale and nothing else."""
    x = linear_inputs(5, 96, 1)[0]
    factors = torch.tensor([1.0, 2.0, 0.25, 1024.0, 2.0**-20])
    (values, scale), (scaled, scaled_scale) = quantize_fp8_row(x), quantize_fp8_row(x * factors[:, None])
    assert values.dtype == torch.float8_e4m3fn
    assert torch.equal(values.float(), scaled.float())
    assert torch.equal(scale * factors, scaled_scale)
    assert (values.float().abs().amax(dim=1) == 448).all()


def test_linear_equals_scaled_products_of_the_stored_values():
    x, weight, bias = linear_inputs(200, 3000, 150)
    (x8, x_scale), (w8, w_scale) = quantize_fp8_row(x), quantize_fp8_row(weight)
    expected = x8.double() @ w8.double().T * x_scale[:, None].double() * w_scale.double() + bias
    # float32 sums of 3000 terms.
    assert relative_l2(fp8_row_linear(x, w8, w_scale, bias), expected) < 1e-6


def test_what_is_not_finite_stays_visible():
    x, weight, _ = linear_inputs(4, 64, 8)
    for value in (torch.nan, torch.inf):
        x[2, 3] = value
        assert fp8_row_linear(x, *quantize_fp8_row(weight), None)[2].isnan().all()


def test_leading_dimensions_strides_and_dtype():
    x, weight, bias = linear_inputs(130, 96, 40)
    quantized = quantize_fp8_row(strided(weight))
    y = fp8_row_linear(strided(x.reshape(2, 65, 96)), *quantized, bias)
    assert torch.equal(y, fp8_row_linear(x, *quantized, bias).reshape(2, 65, 40))
    assert fp8_row_linear(x.bfloat16(), *quantized, None).dtype == torch.bfloat16


def test_invalid_arguments_raise():
    x, weight, bias = linear_inputs(4, 256, 300)
    values, scale = quantize_fp8_row(weight)
    with pytest.raises(ValueError, match=r"x_MK must be \[M, K=256\], got \[4, 255\]"):
        fp8_row_linear(x[:, 1:], values, scale, bias)
    with pytest.raises(ValueError, match=r"weight_OK must be one of torch.float8_e4m3fn, got torch.float32"):
        fp8_row_linear(x, weight, scale, bias)
    with pytest.raises(ValueError, match=r"scale must be \[300\], got \[299\]"):
        fp8_row_linear(x, values, scale[1:], bias)
    with pytest.raises(ValueError, match=r"scale must be one of torch.float32, got torch.bfloat16"):
        fp8_row_linear(x, values, scale.bfloat16(), bias)
    with pytest.raises(ValueError, match="unknown impl 'cuda', expected one of 'reference'"):
        fp8_row_linear(x, values, scale, bias, impl="cuda")
    with pytest.raises(ValueError, match="has no gradient, but x requires one"):
        fp8_row_linear(x.requires_grad_(), values, scale, bias)
