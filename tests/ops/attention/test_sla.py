import pytest
import torch
from inputs import RAGGED, attention_inputs, golden, projection, relative_l2, strided
from torch.utils._python_dispatch import TorchDispatchMode

from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.sla import (
    block_map,
    linear_attention,
    sla_attention,
    sparse_attention,
    sparse_attention_forward,
)

# Float64 formulas that differ in the order of their sums; gradients are sums of a few hundred terms of order one.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def token_mask(map_BHNK, tokens, block_q, block_k):
    """The map as a bool mask [B, H, L, L]."""
    shape = (*map_BHNK.shape[:3], -(-tokens // block_k))
    kept = torch.zeros(shape, dtype=torch.bool).scatter_(-1, map_BHNK.long(), True)
    return kept.repeat_interleave(block_q, 2).repeat_interleave(block_k, 3)[:, :, :tokens, :tokens]


def masked_scores(q, k, mask):
    scores = torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf)


def naive_sparse(q, k, v, mask):
    return torch.einsum("bhls,bshd->blhd", masked_scores(q, k, mask).softmax(-1), v)


def naive_linear(q, k, v):
    weights = torch.einsum("blhd,bshd->bhls", q.softmax(-1), k.softmax(-1))
    return torch.einsum("bhls,bshd->blhd", weights / (1e-5 + weights.sum(-1, keepdim=True)), v)


def gradients(out, inputs):
    generator = torch.Generator().manual_seed(5)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=generator).to(out.dtype))


def test_golden_output():
    """The two terms and the projection's product rounded to bfloat16 reproduce another team's code."""
    g = golden("sla_op")
    out = sla_attention(g["q"], g["k"], g["v"], g["proj_l_weight"], g["proj_l_bias"], topk=g["topk"].item())
    assert out.dtype == torch.bfloat16
    # 3e-3 is the bound set for this file: bfloat16 rounds each value by up to 2e-3 of itself.
    assert relative_l2(out, g["out"]) < 3e-3


@pytest.mark.parametrize("tokens", RAGGED)
@pytest.mark.parametrize(
    ("head_dim", "block_q", "block_k"), [(64, 128, 64), (128, 64, 64), (64, 64, 128), (64, 96, 32)]
)
def test_sparse_equals_a_masked_softmax(tokens, head_dim, block_q, block_k):
    q, k, v = attention_inputs(tokens, head_dim, batch=2, dtype=torch.float64)
    blocks = {"block_q": block_q, "block_k": block_k}
    kept = block_map(q, k, topk=0.3, **blocks)
    mask = token_mask(kept, tokens, block_q, block_k)
    torch.testing.assert_close(sparse_attention(q, k, v, kept, **blocks), naive_sparse(q, k, v, mask), **EXACT)


@pytest.mark.parametrize("tokens", [65, 300])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_all_blocks_equal_dense_attention_and_its_gradients(tokens, head_dim):
    inputs = tuple(x.requires_grad_() for x in attention_inputs(tokens, head_dim, dtype=torch.float64))
    out = sparse_attention(*inputs, block_map(*inputs[:2], topk=1.0))
    expected = dense_attention(*inputs, impl="reference")
    torch.testing.assert_close(out, expected, **EXACT)
    for grad, expected_grad in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(grad, expected_grad, **EXACT)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, strided])
@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 64), (129, 64), (333, 64), (333, 128)])
def test_sla_and_its_gradients_equal_the_formula(tokens, head_dim, layout):
    """q, k, v, the projection's weight and bias; the choice of blocks has no gradient."""
    inputs = attention_inputs(tokens, head_dim, batch=2, dtype=torch.float64)
    inputs = tuple(layout(x).requires_grad_() for x in (*inputs, *projection(head_dim, dtype=torch.float64)))
    q, k, v, weight, bias = inputs
    out = sla_attention(*inputs, topk=0.4)
    mask = token_mask(block_map(q, k, topk=0.4), tokens, 128, 64)
    expected = naive_sparse(q, k, v, mask) + naive_linear(q, k, v) @ weight.T + bias
    torch.testing.assert_close(out, expected, **EXACT)
    for grad, expected_grad in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(grad, expected_grad, **EXACT)


def test_bfloat16_is_within_one_percent_gradients_included():
    """1% is the bound for SLA in bfloat16 against float32 on an identical map."""
    exact = tuple(x.requires_grad_() for x in attention_inputs(780, 64))
    low = tuple(x.detach().bfloat16().requires_grad_() for x in exact)
    kept = block_map(*low[:2], topk=0.25)
    out, expected = (sparse_attention(*x, kept) for x in (low, exact))
    assert relative_l2(out, expected) < 0.01
    assert relative_l2(linear_attention(*low), linear_attention(*exact)) < 0.01
    for grad, expected_grad in zip(gradients(out, low), gradients(expected, exact), strict=True):
        assert grad.dtype == torch.bfloat16
        assert relative_l2(grad, expected_grad) < 0.01


def test_bfloat16_factors_and_float32_sums():
    """The rounding of P and dS that a bfloat16 kernel does, written out with one dense mask."""
    q, k, v = (x.requires_grad_() for x in attention_inputs(333, 64, dtype=torch.bfloat16))
    kept = block_map(q, k, topk=0.4)
    out = sparse_attention(q, k, v, kept)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).bfloat16()
    actual = (out, *torch.autograd.grad(out, (q, k, v), grad))

    qf, kf, vf, gf, of = (x.detach().double() for x in (q, k, v, grad, out))
    scores = masked_scores(qf, kf, token_mask(kept, 333, 128, 64))
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    total = exponentials.sum(-1).transpose(1, 2)[..., None]
    p = exponentials / exponentials.sum(-1, keepdim=True)
    ds = p * (torch.einsum("blhd,bshd->bhls", gf, vf) - (gf * of).sum(-1).transpose(1, 2)[..., None])
    ds = ds.bfloat16().double() / 8
    expected = (
        torch.einsum("bhls,bshd->blhd", exponentials.bfloat16().double(), vf) / total,
        torch.einsum("bhls,bshd->blhd", ds, kf),
        torch.einsum("bhls,blhd->bshd", ds, qf),
        torch.einsum("bhls,blhd->bshd", p.bfloat16().double(), gf),
    )
    for got, want in zip(actual, expected, strict=True):
        # float32 sums flip few of the roundings; leaving out one of them differs by 1.2e-3 to 1.7e-3.
        assert relative_l2(got, want.bfloat16()) < 5e-4


def test_bfloat16_factors_of_the_linear_part():
    q, k, v = attention_inputs(333, 64, dtype=torch.bfloat16)
    phi_q, phi_k = (x.double().softmax(-1).bfloat16().double() for x in (q, k))
    kv = torch.einsum("blhd,blhe->bhde", phi_k, v.double()).bfloat16().double()
    weights = torch.einsum("blhd,bhd->blh", phi_q, phi_k.sum(dim=1))[..., None]
    expected = torch.einsum("blhd,bhde->blhe", phi_q, kv) / (1e-5 + weights)
    # float32 sums flip few of the roundings; leaving out one of them differs by more than 1e-3.
    assert relative_l2(linear_attention(q, k, v), expected.bfloat16()) < 5e-4


def test_log_sum_exp():
    q, k, v = attention_inputs(129, 64, batch=2, dtype=torch.float64)
    kept = block_map(q, k, topk=0.4)
    _, lse = sparse_attention_forward(q, k, v, kept, 128, 64)
    torch.testing.assert_close(lse, masked_scores(q, k, token_mask(kept, 129, 128, 64)).logsumexp(-1), **EXACT)


def test_no_more_than_a_query_block_of_scores_is_held():
    """At 32760 tokens all scores of a head would take 4 GB; forward and backward stay linear in L."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [x for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, torch.Tensor)]
            Largest.numel = max(Largest.numel, *(x.numel() for x in tensors), 0)
            return out

    tokens, head_dim = 2000, 64
    inputs = tuple(x.requires_grad_() for x in attention_inputs(tokens, head_dim, heads=1))
    with Largest():
        gradients(sla_attention(*inputs, *projection(head_dim), topk=0.25), inputs)
    kept_keys = tokens // 4 + 64
    assert 0 < Largest.numel <= max(tokens * head_dim, 128 * kept_keys)


def test_only_kept_blocks_are_read():
    q, k, v = attention_inputs(300, 64)
    kept = torch.tensor([[[[1], [3], [4]], [[0], [2], [4]]]], dtype=torch.int32)
    expected = sparse_attention(q, k, v, kept)
    for head, block in ((0, 0), (0, 2), (1, 1), (1, 3)):
        k[:, block * 64 : block * 64 + 64, head] = torch.nan
        v[:, block * 64 : block * 64 + 64, head] = torch.nan
    assert torch.equal(sparse_attention(q, k, v, kept), expected)


@pytest.mark.parametrize("tokens", RAGGED)
@pytest.mark.parametrize("topk", [0.01, 0.25, 0.9, 1.0])
def test_map_is_ascending_and_as_large_as_topk_says(tokens, topk):
    q, k, _ = attention_inputs(tokens, 64, batch=2)
    kept = block_map(q, k, topk=topk)
    blocks = -(-tokens // 64)
    assert kept.dtype == torch.int32
    assert kept.shape == (2, 2, -(-tokens // 128), max(1, int(topk * blocks)))
    assert kept.min() >= 0
    assert kept.max() < blocks
    assert (kept.diff(dim=-1) > 0).all()


def test_map_keeps_the_blocks_with_the_highest_pooled_scores():
    """Written out block by block, with a ragged last block that is pooled over its own 12 rows."""
    q, k, _ = attention_inputs(780, 64, dtype=torch.float64)
    kept = block_map(q, k, topk=0.25)
    centred = k - k.mean(dim=1, keepdim=True)
    for head in range(2):
        for n in range(7):
            pooled_q = q[0, n * 128 : (n + 1) * 128, head].mean(dim=0)
            scores = [pooled_q @ centred[0, m * 64 : (m + 1) * 64, head].mean(dim=0) for m in range(13)]
            assert kept[0, head, n].tolist() == sorted(torch.stack(scores).topk(3).indices.tolist())


def test_ties_go_to_the_lower_block():
    q, k = torch.ones(1, 640, 1, 64), torch.zeros(1, 640, 1, 64)
    assert (block_map(q, k, topk=0.3) == torch.tensor([0, 1, 2])).all()
    k[:, 5 * 64 : 6 * 64] = 1
    assert (block_map(q, k, topk=0.3) == torch.tensor([0, 1, 5])).all()


def test_map_does_not_depend_on_the_mean_of_k():
    """Small integers and power-of-two sizes: every mean is exact, so the maps are equal and not merely close.

    With a mean of 2^14 left in, scores in float32 would lose the differences between blocks.
    """
    q, k, _ = (x.mul(4).round() for x in attention_inputs(512, 64, batch=64))
    kept = block_map(q, k, topk=0.25)
    assert torch.equal(block_map(q, k + 2**14, topk=0.25), kept)


def test_map_is_chosen_in_float32_whatever_the_dtype_and_the_strides():
    q, k, _ = attention_inputs(4096, 64, dtype=torch.bfloat16)
    kept = block_map(q, k, topk=0.25)
    assert torch.equal(block_map(q.float(), k.float(), topk=0.25), kept)
    assert torch.equal(block_map(strided(q), strided(k), topk=0.25), kept)


def test_linear_attention_averages_the_values():
    """Its weights are positive and, up to the 1e-5 in the denominator, sum to one."""
    q, k, _ = attention_inputs(129, 64, dtype=torch.float64)
    v = torch.full_like(q, 3.0)
    weights = (q.softmax(-1) * k.softmax(-1).sum(dim=1, keepdim=True)).sum(-1, keepdim=True)
    torch.testing.assert_close(linear_attention(q, k, v), v * weights / (1e-5 + weights), **EXACT)


def test_invalid_arguments_raise():
    q, k, v = attention_inputs(300, 64)
    kept = block_map(q, k, topk=0.5)
    weight, bias = projection(64)
    with pytest.raises(ValueError, match="topk must be above 0 and at most 1, got 0"):
        block_map(q, k, topk=0)
    with pytest.raises(ValueError, match=r"k_BLHD must be \[B=1, L=300, H=2, D=64\], got \[1, 299, 2, 64\]"):
        sparse_attention(q, k[:, :299], v, kept)
    with pytest.raises(ValueError, match=r"map_BHNK must be one of torch.int32, got torch.int64"):
        sparse_attention(q, k, v, kept.long())
    with pytest.raises(ValueError, match=r"map_BHNK must be \[B, H, N=5, K<=5\] for L=300 in blocks of 64 and 64"):
        sparse_attention(q, k, v, kept, block_q=64)
    for wrong in (kept + 4, kept - 1, kept.flip(-1)):
        with pytest.raises(ValueError, match="map_BHNK must hold ascending blocks from 0 to 4"):
            sparse_attention(q, k, v, wrong)
    with pytest.raises(ValueError, match=r"proj_weight_DD must be \[D=64, D=64\], got \[64, 32\]"):
        sla_attention(q, k, v, weight[:, :32], bias, topk=0.5)
    for call in (
        lambda: block_map(q, k, topk=0.5, impl="cuda"),
        lambda: sparse_attention(q, k, v, kept, impl="cuda"),
        lambda: linear_attention(q, k, v, impl="cuda"),
        lambda: sla_attention(q, k, v, weight, bias, topk=0.5, impl="cuda"),
    ):
        with pytest.raises(ValueError, match="unknown impl 'cuda', expected one of 'reference'"):
            call()
