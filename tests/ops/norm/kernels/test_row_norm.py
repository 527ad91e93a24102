"""The norms, the rotation and the gated sum in Triton against their references: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import layer_norm, modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import rope_angles, rope_cos_sin
from turbodiffusion.ops.rounding import FP8

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
# One row, and ragged groups of the 16 rows that a program takes; a width that is no power of two.
LENGTHS = (1, 16, 37)
WIDTH = 96


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tensors(length, dtype=torch.float32):
    """x [2, L, 96] with a mean far from zero, and two rows of weights for each of the two videos."""
    return random(2, length, WIDTH, dtype=dtype) + 3, random(2, WIDTH, seed=1), random(2, WIDTH, seed=2)


OPS = {
    "modulated_layer_norm": lambda x, a, b, **kw: modulated_layer_norm(x, a, b, EPS, **kw),
    "layer_norm": lambda x, a, b, **kw: layer_norm(x, a[0], b[0], EPS, **kw),
    "rms_norm": lambda x, a, b, **kw: rms_norm(x, a[0].to(x.dtype), EPS, **kw),
    "add_gated": lambda x, a, b, **kw: add_gated(x, x.flip(1), a, **kw),
}
QUANTIZED = {
    "modulated": lambda x, a, b, dtype, **kw: quantized_modulated_layer_norm(x, a, b, EPS, dtype, **kw),
    "affine": lambda x, a, b, dtype, **kw: quantized_layer_norm(x, a[0], b[0], EPS, dtype, **kw),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", OPS)
def test_float32(op, length):
    x, a, b = tensors(length)
    exact = OPS[op](x.double(), a.double(), b.double())
    error = relative_l2(OPS[op](x, a, b), exact)
    # Twice the float32 reference's own error, and no less than a float32 rounding.
    assert relative_l2(OPS[op](x, a, b, impl="triton"), exact) <= max(2 * error, 2**-23)
    assert torch.equal(OPS[op](strided(x), a, b, impl="triton"), OPS[op](x, a, b, impl="triton"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_low_precision_is_rounded_once(op, dtype):
    x, a, b = tensors(37, dtype)
    exact = OPS[op](x.double(), a.double(), b.double())
    actual = OPS[op](x, a, b, impl="triton")
    assert actual.dtype == dtype
    error = relative_l2(OPS[op](x, a, b), exact)
    # Both round float32 results that hardly differ: the errors agree to a hundredth.
    assert relative_l2(actual, exact) < 1.01 * error


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", QUANTIZED)
def test_quantized_norms(op, length, dtype):
    x, a, b = tensors(length, torch.bfloat16)
    values, scale = QUANTIZED[op](strided(x), a, b, dtype, impl="triton")
    expected_values, expected_scale = QUANTIZED[op](x, a, b, dtype)
    assert (values.dtype, values.shape, scale.shape) == (dtype, x.shape, x.shape[:2])
    torch.testing.assert_close(scale, expected_scale, rtol=2e-6, atol=0)
    # A norm that differs in its last bits moves one value in thousands over the edge between two levels.
    assert (values.float() != expected_values.float()).sum() <= 2
    assert relative_l2(values.float() * scale[..., None], expected_values.float() * expected_scale[..., None]) < 0.01


@pytest.mark.parametrize("op", QUANTIZED)
def test_what_is_not_finite_stays_visible(op):
    x, a, b = tensors(5)
    for value in (torch.nan, torch.inf):
        x[0, 2, 7] = value
        _, scale = QUANTIZED[op](x, a, b, torch.int8, impl="triton")
        assert not scale[0, 2].isfinite()
        assert scale[1].isfinite().all()


def qkv(length, dtype=torch.float32, head_dim=24):
    """q, k and v of four heads beside each other, as one projection writes them."""
    buffer = random(2, length, 3 * 4 * head_dim, dtype=dtype)
    weights = random(2, 4 * head_dim, seed=1)
    cos_sin = rope_cos_sin(rope_angles((length, 1, 1), head_dim, device=DEVICE))
    return buffer, weights[0], weights[1], cos_sin


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("blocks", [None, (16, 8), (7, 50)])
def test_norm_and_rope_of_a_fused_buffer(length, blocks):
    buffer, weight_q, weight_k, cos_sin = qkv(length)
    actual = norm_rope_qk(buffer, weight_q, weight_k, cos_sin, 4, EPS, blocks=blocks, impl="triton")
    single = norm_rope_qk(buffer, weight_q, weight_k, cos_sin, 4, EPS, blocks=blocks)
    exact = norm_rope_qk(buffer.double(), weight_q.double(), weight_k.double(), cos_sin.double(), 4, EPS, blocks=blocks)
    for name, value in vars(exact).items():
        if value is None:
            assert getattr(actual, name) is None
        else:
            error = relative_l2(getattr(single, name), value)
            # Twice the float32 reference's own error, and no less than two float32 roundings.
            assert relative_l2(getattr(actual, name), value) <= max(2 * error, 2**-22)


def test_norm_and_rope_round_once_to_bfloat16():
    buffer, weight_q, weight_k, cos_sin = qkv(37, torch.bfloat16)
    actual = norm_rope_qk(strided(buffer), weight_q, weight_k, cos_sin, 4, EPS, blocks=(16, 8), impl="triton")
    exact = norm_rope_qk(buffer.double(), weight_q.double(), weight_k.double(), cos_sin.double(), 4, EPS)
    assert actual.q_BLHD.dtype == torch.bfloat16
    for name in ("q_BLHD", "k_BLHD"):
        # Half of the last of bfloat16's 8 bits is the most that one rounding of each value can add.
        assert relative_l2(getattr(actual, name), getattr(exact, name)) < 2**-9
    # The means are those of what was written, as the choice of blocks takes them.
    expected = torch.stack([rows.float().mean(dim=1) for rows in actual.q_BLHD.split(16, dim=1)], dim=1)
    torch.testing.assert_close(actual.pooled_q_BNHD, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    buffer, weight_q, weight_k, cos_sin = qkv(5)
    with pytest.raises(ValueError, match=r"cos_sin must be \[2, 5, 12\], got \[2, 4, 12\]"):
        norm_rope_qk(buffer, weight_q, weight_k, cos_sin[:, :4], 4, EPS, impl=impl)
    with pytest.raises(ValueError, match="100 columns do not hold q and k of 4 heads of 96 columns"):
        norm_rope_qk(buffer[..., :100], weight_q, weight_k, cos_sin, 4, EPS, impl=impl)
    with pytest.raises(ValueError, match=r"blocks must hold at least one token, got \(0, 64\)"):
        norm_rope_qk(buffer, weight_q, weight_k, cos_sin, 4, EPS, blocks=(0, 64), impl=impl)
    x, a, b = tensors(5)
    with pytest.raises(ValueError, match=r"dtype must be torch.int8 or torch.float8_e4m3fn, got torch.bfloat16"):
        quantized_layer_norm(x, a[0], b[0], EPS, torch.bfloat16, impl=impl)
    with pytest.raises(ValueError, match=r"gate_BM must be \[B=2, M=96\], got \[96\]"):
        add_gated(x, x, a[0], impl=impl)


@pytest.mark.parametrize("op", OPS)
def test_kernels_raise_for_a_gradient_and_float64(op):
    x, a, b = tensors(5)
    with pytest.raises(ValueError, match="impl 'triton': has no gradient, but x"):
        OPS[op](x.requires_grad_(), a, b, impl="triton")
    with pytest.raises(ValueError, match=r"impl 'triton' computes in float32, x.* is float64"):
        OPS[op](x.detach().double(), a.double(), b.double(), impl="triton")
