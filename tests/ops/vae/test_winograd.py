import pytest
import torch
import torch.nn.functional as F

from turbodiffusion.ops.vae.winograd import WinogradProducts, transform_input, transform_output, transform_weight


def test_winograd_is_a_convolution():
    y, weight = torch.randn(2, 8, 6, 10, 12, dtype=torch.float64), torch.randn(7, 12, 3, 3, 3, dtype=torch.float64)
    expected = F.conv3d(y.movedim(-1, 1), weight, padding=(0, 1, 1)).movedim(1, -1)
    m = [
        F.conv2d(v.flatten(0, 1).movedim(-1, 1), kernel, padding=1).movedim(1, -1).unflatten(0, (2, -1))
        for v, kernel in zip(transform_input(y), transform_weight(weight), strict=True)
    ]
    torch.testing.assert_close(transform_output(m), expected)


def test_weights_are_rounded_once():
    weight = torch.randn(7, 12, 3, 3, 3).bfloat16()
    for kernel, exact in zip(transform_weight(weight), transform_weight(weight.double()), strict=True):
        assert kernel.dtype == torch.bfloat16 and torch.equal(kernel, exact.bfloat16())


def test_products_of_two_shapes_raise():
    m = torch.zeros(1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="shapes and dtypes must agree"):
        WinogradProducts((m, m, m, m[:, :1]))
