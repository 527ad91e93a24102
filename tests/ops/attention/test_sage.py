import pytest
import torch
from inputs import RAGGED, attention_inputs, relative_l2, strided

from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.sage import quantize, sage_attention
from turbodiffusion.ops.cases import BOUNDS


def emulation(q, k, v, block_q, block_k):
    """Row by row in integers and float64: what int8 scores and an fp8 product give."""
    x = quantize(q, k, v, block_q, block_k, "int8")
    out = torch.empty(q.shape, dtype=torch.float64)
    for b, row, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        integers = x.k_BSHD[b, :, h].int() @ x.q_BLHD[b, row, h].int()
        k_scale = x.k_scale_BHN[b, h].repeat_interleave(block_k)[: k.shape[1]]
        scores = integers.double() * x.q_scale_BHN[b, h, row // block_q] * k_scale / q.shape[-1] ** 0.5
        p = (scores - scores.max()).exp()
        p8 = (448 * p).to(torch.float8_e4m3fn).double()
        out[b, row, h] = p8 @ x.v_BSHD[b, :, h].double() / 448 / p.sum() * x.v_scale_BHD[b, h]
    return out


@pytest.mark.parametrize("qk", ["int8", "fp8"])
@pytest.mark.parametrize("tokens", RAGGED)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_error_on_gaussian_data(tokens, head_dim, qk):
    q, k, v = attention_inputs(tokens, head_dim)
    assert relative_l2(sage_attention(q, k, v, qk=qk), dense_attention(q, k, v, impl="reference")) < BOUNDS[qk]


@pytest.mark.parametrize("tokens", [1, 65, 130])
def test_equals_integer_arithmetic(tokens):
    q, k, v = attention_inputs(tokens, 128, keys=67, heads=1)
    # A probability on the edge between two fp8 numbers may fall either way in float32: 6% of one of some 67 terms.
    assert relative_l2(sage_attention(q, k, v), emulation(q, k, v, 128, 64)) < 1e-3


def test_float32_holds_the_largest_int32_score():
    """127 * 127 * 128 is below 2^24, also when one is taken off the last product."""
    q = torch.full((1, 128), 127.0)
    k = torch.full((128, 2), 127.0)
    k[0, 1] = 126.0
    assert (q @ k).tolist() == [[127 * 127 * 128, 127 * 127 * 128 - 127]]


def test_scales_are_per_block_head_and_channel():
    q, k, v = attention_inputs(129, 64, keys=65, batch=2)
    x = quantize(q, k, v, 128, 64, "int8")
    centred = k - k.mean(dim=1, keepdim=True)
    torch.testing.assert_close(x.q_scale_BHN[1, 0, 1], q[1, 128:, 0].abs().max() / 127)
    torch.testing.assert_close(x.k_scale_BHN[0, 1, 0], centred[0, :64, 1].abs().max() / 127)
    torch.testing.assert_close(x.v_scale_BHD[1, 1, 7], v[1, :, 1, 7].abs().max() / 448)
    assert x.q_scale_BHN.shape == x.k_scale_BHN.shape == (2, 2, 2)
    assert x.q_BLHD.dtype == x.k_BSHD.dtype == torch.int8
    assert x.v_BSHD.dtype == torch.float8_e4m3fn


def test_a_mean_of_k_costs_no_precision():
    """A constant that all keys share, ten times their spread, is taken off before the rounding."""
    q, k, v = attention_inputs(256, 64)
    expected = dense_attention(q, k, v, impl="reference")
    assert relative_l2(sage_attention(q, k + 10, v), expected) < BOUNDS["int8"]


def test_a_single_key_returns_its_value():
    """p is 1 and each channel's only value is its own largest: nothing is rounded but in float32."""
    q, k, v = attention_inputs(5, 64, keys=1)
    torch.testing.assert_close(sage_attention(q, k, v), v.expand_as(q), rtol=1e-6, atol=0)


def test_strided_bfloat16():
    q, k, v = (x.bfloat16() for x in attention_inputs(129, 64))
    out = sage_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    assert torch.equal(sage_attention(strided(q), strided(k), strided(v)), out)


def test_invalid_arguments_raise():
    q, k, v = attention_inputs(8, 64)
    with pytest.raises(ValueError, match=r"v_BSHD must be \[B=1, S=8, H=2, D=64\], got \[1, 7, 2, 64\]"):
        sage_attention(q, k, v[:, :7])
    with pytest.raises(ValueError, match="unknown impl 'cuda', expected one of 'reference'"):
        sage_attention(q, k, v, impl="cuda")
    with pytest.raises(ValueError, match="qk: unknown format 'int4', expected 'int8' or 'fp8'"):
        sage_attention(q, k, v, qk="int4")
    with pytest.raises(ValueError, match="has no gradient, but v_BSHD requires one"):
        sage_attention(q, k, v.requires_grad_())
