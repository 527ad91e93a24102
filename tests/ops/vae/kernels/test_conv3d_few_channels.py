"""The VAE's last convolution in Triton against its reference: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.vae.conv3d_few_channels import conv3d_few_channels

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 8), (2, 5, 6, 50, 12)])
@pytest.mark.parametrize("out", [1, 3])
def test_convolution_to_few_channels(shape, out):
    x, weight, bias = random(*shape), random(out, shape[-1], 3, 3, 3, seed=1), random(out, seed=2)
    exact = conv3d_few_channels(x.double(), weight.double(), bias.double())
    actual = conv3d_few_channels(strided(x), weight, bias, impl="triton")
    assert actual.shape == exact.shape
    # Float32 sums in another order, of up to 324 products.
    assert relative_l2(actual, exact) <= max(4 * relative_l2(conv3d_few_channels(x, weight, bias), exact), 2**-21)


def test_convolution_to_few_channels_in_bfloat16():
    x, bias = random(2, 5, 6, 10, 96, dtype=torch.bfloat16), random(3, dtype=torch.bfloat16, seed=2)
    weight = random(3, 96, 3, 3, 3, dtype=torch.bfloat16, seed=1)
    exact = conv3d_few_channels(x.double(), weight.double(), bias.double())
    # The 27 products and their sum are rounded to bfloat16's 8 bits: on random data twice one rounding of each.
    assert relative_l2(conv3d_few_channels(x, weight, bias, impl="triton"), exact) < 2**-8
