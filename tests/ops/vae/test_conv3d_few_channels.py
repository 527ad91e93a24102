import pytest
import torch
import torch.nn.functional as F
from inputs import strided

from turbodiffusion.ops.vae.conv3d_few_channels import conv3d_few_channels


def test_is_a_convolution_without_padding_in_time():
    x, weight, bias = torch.randn(2, 5, 6, 7, 12), torch.randn(3, 12, 3, 3, 3), torch.randn(3)
    y = conv3d_few_channels(strided(x), weight, bias)
    padded = F.pad(x.movedim(-1, 1), (1, 1, 1, 1))  # of the picture alone
    torch.testing.assert_close(y, F.conv3d(padded, weight, bias).movedim(1, -1), rtol=1e-5, atol=1e-5)
    assert y.shape == (2, 3, 6, 7, 3)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    x, weight, bias = torch.ones(2, 3, 4, 5, 12), torch.ones(3, 12, 3, 3, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"P at least 3, got \[3, 12, 3, 3, 3\] and P=2"):
        conv3d_few_channels(x[:, :2], weight, bias, impl=impl)
    with pytest.raises(ValueError, match=r"weight must be \[3, 12, 3, 3, 3\]"):
        conv3d_few_channels(x, weight[:, :11], bias, impl=impl)
