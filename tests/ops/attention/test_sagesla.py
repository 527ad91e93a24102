import pytest
import torch
from inputs import RAGGED, attention_inputs, golden, projection, relative_l2, strided

from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sage_sparse_attention, sagesla_attention
from turbodiffusion.ops.attention.sla import block_map, projected_linear_attention, sparse_attention
from turbodiffusion.ops.cases import BOUNDS


@pytest.mark.parametrize("qk", ["int8", "fp8"])
@pytest.mark.parametrize("tokens", RAGGED)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_error_on_gaussian_data(tokens, head_dim, qk):
    """The sparse part alone: the linear part, which is not in 8 bits, would only make the bound easier."""
    q, k, v = attention_inputs(tokens, head_dim, batch=2)
    kept = block_map(q, k, topk=0.25)
    out = sage_sparse_attention(q, k, v, kept, qk=qk)
    assert relative_l2(out, sparse_attention(q, k, v, kept)) < BOUNDS[qk]


@pytest.mark.parametrize("tokens", [65, 300])
def test_all_blocks_equal_sage_attention(tokens):
    q, k, v = attention_inputs(tokens, 64)
    kept = block_map(q, k, topk=1.0)
    assert torch.equal(sage_sparse_attention(q, k, v, kept), sage_attention(q, k, v))


def test_is_the_sum_of_both_terms_on_slas_own_blocks():
    q, k, v = attention_inputs(300, 64, batch=2)
    weight, bias = projection(64)
    blocks = {"block_q": 64, "block_k": 128}
    sparse = sage_sparse_attention(q, k, v, block_map(q, k, topk=0.4, **blocks), **blocks)
    cheap = projected_linear_attention(q, k, v, weight, bias)
    assert torch.equal(sagesla_attention(q, k, v, weight, bias, topk=0.4, **blocks), sparse + cheap)


def test_golden_sla_output():
    g = golden("sla_op")
    out = sagesla_attention(g["q"], g["k"], g["v"], g["proj_l_weight"], g["proj_l_bias"], topk=g["topk"].item())
    assert out.dtype == torch.bfloat16
    # The golden file is SLA in bfloat16, itself within 1%.
    assert relative_l2(out, g["out"]) < BOUNDS["int8"] + BOUNDS["bf16"]


def test_strided_input():
    q, k, v = attention_inputs(129, 64)
    kept = block_map(q, k, topk=0.4)
    expected = sage_sparse_attention(q, k, v, kept)
    assert torch.equal(sage_sparse_attention(strided(q), strided(k), strided(v), kept), expected)


def test_invalid_arguments_raise():
    q, k, v = attention_inputs(300, 64)
    kept = block_map(q, k, topk=0.5)
    with pytest.raises(ValueError, match=r"sage_sparse_attention: map_BHNK must be \[B, H, N=3, K<=5\]"):
        sage_sparse_attention(q, k, v, kept[:, :, :2])
    with pytest.raises(ValueError, match="unknown impl 'cuda', expected one of 'reference'"):
        sage_sparse_attention(q, k, v, kept, impl="cuda")
    with pytest.raises(ValueError, match="has no gradient, but q_BLHD requires one"):
        sagesla_attention(q.requires_grad_(), k, v, *projection(64), topk=0.5)
