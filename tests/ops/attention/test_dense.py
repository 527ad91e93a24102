import pytest
import torch
from inputs import RAGGED, attention_inputs, relative_l2, strided

from turbodiffusion.ops.attention.dense import dense_attention


def loop(q, k, v):
    """One row at a time, from the definition."""
    out = torch.empty_like(q)
    for b, row, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        weights = (k[b, :, h] @ q[b, row, h] / q.shape[-1] ** 0.5).exp()
        out[b, row, h] = weights @ v[b, :, h] / weights.sum()
    return out


@pytest.mark.parametrize("impl", ["reference", "sdpa", "cudnn"])
def test_equals_the_definition_with_other_keys_than_queries(impl):
    q, k, v = attention_inputs(5, 64, keys=9, batch=2, dtype=torch.float64)
    torch.testing.assert_close(dense_attention(q, k, v, impl=impl), loop(q, k, v))


def test_cudnn_is_asked_first_and_only_inside():
    before = torch._C._get_sdp_priority_order()
    q, k, v = attention_inputs(5, 64)
    dense_attention(q, k, v, impl="cudnn")
    assert torch._C._get_sdp_priority_order() == before


@pytest.mark.parametrize("tokens", RAGGED)
def test_sdpa_equals_reference(tokens):
    q, k, v = (strided(x) for x in attention_inputs(tokens, 64, heads=1))
    # Two float32 evaluations of the same formula.
    assert relative_l2(dense_attention(q, k, v), dense_attention(q, k, v, impl="reference")) < 2e-6


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_bfloat16_is_within_one_percent(impl):
    exact = attention_inputs(129, 128)
    low = tuple(x.bfloat16() for x in exact)
    out = dense_attention(*low, impl=impl)
    assert out.dtype == torch.bfloat16
    assert relative_l2(out, dense_attention(*(x.double() for x in low), impl="reference")) < 0.01


def test_invalid_arguments_raise():
    q, k, v = attention_inputs(8, 64)
    with pytest.raises(ValueError, match=r"v_BSHD must be \[B=1, S=8, H=2, D=64\], got \[1, 7, 2, 64\]"):
        dense_attention(q, k, v[:, :7])
    with pytest.raises(ValueError, match=r"k_BSHD must be \[B=1, S, H=2, D=64\], got \[1, 8, 1, 64\]"):
        dense_attention(q, k[:, :, :1], v)
    with pytest.raises(ValueError, match=r"k_BSHD must be torch.float32 as q_BLHD is, got torch.bfloat16"):
        dense_attention(q, k.bfloat16(), v)
    with pytest.raises(ValueError, match="unknown impl 'flash', expected one of 'reference', 'sdpa'"):
        dense_attention(q, k, v, impl="flash")
