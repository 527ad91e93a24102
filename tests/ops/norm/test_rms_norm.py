import pytest
import torch
from inputs import relative_l2, strided
from torch.nn import functional as F

from turbodiffusion.ops.norm.rms_norm import rms_norm


def test_equals_pytorch_in_float64():
    x, weight = torch.randn(2, 7, 96, dtype=torch.float64), torch.randn(96, dtype=torch.float64)
    # Two float64 formulas that differ in the order of a few operations.
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), F.rms_norm(x, (96,), weight, 1e-6), rtol=1e-13, atol=1e-13)


def test_bfloat16_is_rounded_once_at_the_end():
    x, weight = torch.randn(2, 7, 96).bfloat16(), torch.randn(96)
    expected = F.rms_norm(x.double(), (96,), weight.double(), 1e-6)
    # Half of the last of bfloat16's 8 bits is the most that one rounding of each value can add.
    assert relative_l2(rms_norm(x, weight, 1e-6), expected) < 2**-9


def test_strided_input_and_output_dtype():
    x, weight = torch.randn(2, 7, 96), torch.randn(96)
    torch.testing.assert_close(rms_norm(strided(x), weight, 1e-6), rms_norm(x, weight, 1e-6))
    assert rms_norm(x.half(), weight, 1e-6).dtype == torch.float16


def test_large_values_do_not_overflow_in_half_precision():
    x = torch.full((1, 64), 6e4, dtype=torch.float16)
    assert (rms_norm(x, torch.ones(64), 1e-6) == 1).all()


def test_invalid_arguments_raise():
    x = torch.randn(2, 96)
    with pytest.raises(ValueError, match=r"weight must be \[M\] for x \[..., M\], got \[64\] for \[2, 96\]"):
        rms_norm(x, torch.ones(64), 1e-6)
    with pytest.raises(ValueError, match=r"rms_norm: x must be one of .* got torch.int32"):
        rms_norm(x.int(), torch.ones(96), 1e-6)
    with pytest.raises(ValueError, match="rms_norm: unknown impl 'fused', expected one of 'reference'"):
        rms_norm(x, torch.ones(96), 1e-6, impl="fused")
