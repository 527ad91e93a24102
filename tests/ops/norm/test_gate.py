import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.gate import add_gated


def test_equals_the_formula_with_a_gate_per_video():
    x, y, gate = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 7, 12), (2, 7, 12), (2, 12)))
    expected = torch.stack([x[video] + y[video] * gate[video] for video in range(2)])
    torch.testing.assert_close(add_gated(x, y, gate), expected)
    assert torch.equal(add_gated(strided(x), strided(y), gate), add_gated(x, y, gate))


def test_bfloat16_with_a_float32_gate_is_rounded_once():
    x, y, gate = torch.randn(2, 7, 96).bfloat16(), torch.randn(2, 7, 96).bfloat16(), torch.randn(2, 96)
    out = add_gated(x, y, gate)
    assert out.dtype == torch.bfloat16
    # Half of the last of bfloat16's 8 bits is the most that one rounding of each value can add.
    assert relative_l2(out, add_gated(x.double(), y.double(), gate.double())) < 2**-9


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    x = torch.randn(2, 5, 96)
    with pytest.raises(ValueError, match=r"gate_BM must be \[B=2, M=96\], got \[96\]"):
        add_gated(x, x, torch.ones(96), impl=impl)
    with pytest.raises(ValueError, match=r"y_BLM must be torch.float32 as x_BLM is, got torch.bfloat16"):
        add_gated(x, x.bfloat16(), torch.ones(2, 96), impl=impl)
