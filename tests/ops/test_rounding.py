import pytest
import torch

from turbodiffusion.ops.rounding import to_fp8, to_int8


def test_int8_rounds_half_to_even_within_127_levels():
    x = torch.tensor([127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.6])
    values, scale = to_int8(x, x.abs().amax())
    assert scale == 1
    assert values.tolist() == [127, -127, 0, 2, 2, 0, -2, 127]


def test_fp8_takes_the_largest_value_to_448():
    x = torch.tensor([3.0, -3.0, 1.5, 0.0])
    values, scale = to_fp8(x, x.abs().amax())
    assert values.float().tolist() == [448, -448, 224, 0]
    torch.testing.assert_close(scale, torch.tensor(3 / 448))


@pytest.mark.parametrize("rounding", [to_int8, to_fp8])
def test_no_magnitude_leaves_the_range(rounding):
    """A division by amax / levels may give more than the last level; the stored value may not be more."""
    amax = 10 ** torch.linspace(-6, 6, 10_000)
    values, scale = rounding(torch.stack((amax, -amax)), amax)
    torch.testing.assert_close(values.float() * scale, torch.stack((amax, -amax)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rounding", [to_int8, to_fp8])
def test_zeros_stay_zeros_with_a_usable_scale(rounding):
    values, scale = rounding(torch.zeros(4), torch.zeros(1))
    assert (values.float() == 0).all()
    assert scale > 0


@pytest.mark.parametrize(("rounding", "bound"), [(to_int8, 0.5 / 127), (to_fp8, 2**-4)])
def test_error_is_at_most_half_a_step(rounding, bound):
    """int8: half a level of the largest magnitude. fp8: half of the last of 3 mantissa bits of the value itself."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    values, scale = rounding(x, x.abs().amax())
    unit = x.abs().amax() if rounding is to_int8 else x.abs().clamp_min(2**-6 * scale)
    assert ((values.float() * scale - x).abs() <= bound * unit * (1 + 1e-5)).all()
