import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.layer_norm import layer_norm, modulated_layer_norm


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 7, 96), (3, 96), (3, 96)))


def formula(x, shift, scale, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return torch.stack([normed[b] * (1 + scale[b]) + shift[b] for b in range(len(x))])


def test_equals_the_formula_with_a_modulation_per_video():
    x, shift, scale = tensors()
    # Two float64 formulas that differ in the order of a few operations.
    torch.testing.assert_close(
        modulated_layer_norm(x, shift, scale, 1e-6), formula(x, shift, scale, 1e-6), rtol=1e-12, atol=1e-12
    )


def test_bfloat16_with_float32_modulation_is_rounded_once():
    x, shift, scale = tensors(torch.float32)
    out = modulated_layer_norm(x.bfloat16(), shift, scale, 1e-6)
    assert out.dtype == torch.bfloat16
    # Half of the last of bfloat16's 8 bits is the most that one rounding of each value can add.
    assert relative_l2(out, formula(x.bfloat16().double(), shift.double(), scale.double(), 1e-6)) < 2**-9


def test_strided_input():
    x, shift, scale = tensors()
    torch.testing.assert_close(
        modulated_layer_norm(strided(x), shift, scale, 1e-6), modulated_layer_norm(x, shift, scale, 1e-6)
    )


def test_invalid_arguments_raise():
    x, shift, scale = tensors()
    with pytest.raises(ValueError, match=r"shift_BM must be \[B=3, M=96\], got \[96\]"):
        modulated_layer_norm(x, shift[0], scale, 1e-6)
    with pytest.raises(ValueError, match=r"scale_BM must be torch.float64 as shift_BM is, got torch.float32"):
        modulated_layer_norm(x, shift, scale.float(), 1e-6)
    with pytest.raises(ValueError, match="unknown impl 'fused'"):
        modulated_layer_norm(x, shift, scale, 1e-6, impl="fused")


def test_affine_is_the_modulated_one_with_other_weights():
    x, shift, scale = tensors()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        row = x[0].to(dtype)
        expected = modulated_layer_norm(row[None], shift[:1], scale[:1], 1e-6)[0]
        out = layer_norm(row, 1 + scale[0], shift[0], 1e-6)
        assert out.dtype == dtype
        # roundings of the dtype; in bfloat16 at most a flip of the last bit
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_affine_weights_of_another_width_are_named():
    with pytest.raises(ValueError, match=r"weight and bias must be \[M\] for x \[..., M\], got \[95\]"):
        layer_norm(torch.zeros(2, 96), torch.ones(95), torch.zeros(96), 1e-6)
