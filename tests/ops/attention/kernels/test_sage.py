"""8-bit attention by kernels: on a GPU if there is one, else in Triton's interpreter (conftest.py)."""

import pytest
import torch
from inputs import attention_inputs, relative_l2, strided

from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.kernels.linear import key_state
from turbodiffusion.ops.attention.kernels.quantize import KEY_ORDER, pack
from turbodiffusion.ops.attention.kernels.sage import attend_packed, sage_attention, sage_sparse_attention
from turbodiffusion.ops.attention.kernels.sla import linear_term
from turbodiffusion.ops.attention.kernels.sparse import HOPPER_EIGHT_BITS, Launch
from turbodiffusion.ops.attention.sage import quantize
from turbodiffusion.ops.attention.sage import sage_attention as reference
from turbodiffusion.ops.attention.sagesla import sage_sparse_attention as sparse_reference
from turbodiffusion.ops.attention.sla import block_map, sparse_attention
from turbodiffusion.ops.cases import BOUNDS, OF_THE_EMULATION

# Kernels in the interpreter: seconds in all, too long for make test-fast.
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("qk", ["int8", "fp8"])
@pytest.mark.parametrize(("tokens", "block_q", "block_k"), [(65, 128, 64), (530, 64, 128)])
def test_values_scales_and_order_are_the_references(tokens, block_q, block_k, qk, poisoned):
    """A block for each program at most, and several."""
    q, k, v = attention_inputs(tokens, 64, device=DEVICE)
    q, k, v = strided(q), strided(k), strided(v)
    state = key_state(k, v, block_k)
    packed, pooled = pack(q, k, v, state, block_q, block_k, qk)
    x = quantize(q, k, v, block_q, block_k, qk)
    scales = packed.scales
    for scale, expected in (
        (scales.q_BHN, x.q_scale_BHN),
        (scales.k_BHN, x.k_scale_BHN),
        (scales.v_BHD, x.v_scale_BHD),
    ):
        torch.testing.assert_close(scale, expected, rtol=1e-5, atol=0)  # k's mean is a sum in another order
    order = torch.tensor(KEY_ORDER, device=DEVICE)
    keys = (torch.arange(block_k, device=DEVICE) // 16 * 16).add(order.repeat(block_k // 16))
    unpermuted = torch.empty_like(packed.v.float())
    unpermuted[..., keys] = packed.v.float()
    for actual, expected in (
        (packed.q, x.q_BLHD),
        (packed.k, x.k_BSHD),
        (unpermuted.mT, x.v_BSHD),
    ):
        rows = actual.float().flatten(2, 3).transpose(1, 2)
        assert (rows[:, tokens:] == 0).all()
        # A value on the edge between two levels may fall either way, and no further: a level of int8 or of fp8.
        close = torch.isclose(rows[:, :tokens], expected.float(), rtol=0.13, atol=1)
        assert close.all()
        assert (rows[:, :tokens] == expected.float()).float().mean() > 0.99
    means = torch.stack([rows.mean(1) for rows in q.split(block_q, dim=1)], dim=2)
    torch.testing.assert_close(pooled, means, rtol=1e-5, atol=1e-6)
    sums = (q.double().exp() * (state.key_sum_BHD[:, None] + 1e-5)).sum(-1).transpose(1, 2)
    torch.testing.assert_close(packed.shift_BHL.double(), -sums.log2(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("tokens", "keys", "head_dim", "block_k"), [(1, 1, 64, 64), (65, 130, 128, 64), (150, 300, 64, 128)]
)
def test_dense_is_as_exact_as_its_emulation(tokens, keys, head_dim, block_k, qk, poisoned):
    q, k, v = attention_inputs(tokens, head_dim, keys=keys, device=DEVICE)
    exact = dense_attention(q, k, v, impl="reference")
    error = relative_l2(sage_attention(q, k, v, 128, block_k, qk), exact)
    assert error < BOUNDS[qk]
    assert error <= OF_THE_EMULATION * relative_l2(reference(q, k, v, block_k=block_k, qk=qk), exact) + 1e-6


@pytest.mark.parametrize("launch", [Launch(), Launch(rows=64, pair=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_is_as_exact_as_its_emulation(dtype, launch, poisoned):
    q, k, v = attention_inputs(300, 64, dtype=dtype, device=DEVICE)
    kept = block_map(q, k, topk=0.6)
    exact = sparse_attention(*(x.double() for x in (q, k, v)), kept)
    out = sage_sparse_attention(q, k, v, kept, 128, 64, "int8", launch)
    assert out.dtype == dtype
    error = relative_l2(out, exact)
    assert error < BOUNDS["int8"]
    assert error <= OF_THE_EMULATION * relative_l2(sparse_reference(q, k, v, kept), exact)


def test_only_kept_blocks_are_read(poisoned):
    """What is not kept still has its part in the scales of v, so it is made large there and not NaN."""
    q, k, v = attention_inputs(200, 64, heads=1, device=DEVICE)
    kept = torch.tensor([[[[1], [3]]]], dtype=torch.int32, device=DEVICE).reshape(1, 1, 2, 1)
    packed, _ = pack(q, k, v, key_state(k, v, 64), 128, 64, "int8")
    expected = sage_sparse_attention(q, k, v, kept, 128, 64, "int8")
    packed.k[:, :, 0], packed.k[:, :, 2] = 127, -127
    assert torch.equal(attend_packed(packed, kept, q.shape, 200, q.dtype), expected)


def test_a_single_key_returns_its_value(poisoned):
    q, k, v = attention_inputs(5, 64, keys=1, device=DEVICE)
    torch.testing.assert_close(sage_attention(q, k, v, 128, 64, "int8"), v.expand_as(q), rtol=1e-6, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("qk", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("tokens", "kept"), [(1, None), (65, 1), (780, 5), (780, 6), (5000, None), (30000, 40), (30000, 41)]
)
def test_hoppers_own_attention_is_tritons(tokens, kept, qk):
    """Odd and even maps, dense, fewer query blocks than programs and more; with the linear term and without."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper GPU")
    q, k, v = attention_inputs(tokens, 128, device=DEVICE, dtype=torch.bfloat16, heads=3)
    keys = key_state(k, v, 64, torch.eye(128, device=DEVICE))
    packed, _ = pack(q, k, v, keys, 128, 64, qk)
    blocks = torch.rand(1, 3, -(-tokens // 128), -(-tokens // 64), device=DEVICE)
    chosen = None if kept is None else blocks.topk(kept).indices.sort().values.int()
    term = linear_term(q, keys, packed.shift_BHL, torch.randn(128, device=DEVICE))
    for linear in (None, term):
        if linear is None and chosen is not None:  # both against float32, on the same map
            exact = sparse_attention(q.float(), k.float(), v.float(), chosen, block_q=128, block_k=64)
            own, other = (
                relative_l2(attend_packed(packed, chosen, q.shape, tokens, q.dtype, launch=launch), exact)
                for launch in (None, HOPPER_EIGHT_BITS)
            )
            assert own < 1.1 * other
        actual = attend_packed(packed, chosen, q.shape, tokens, q.dtype, linear=linear)
        expected = attend_packed(packed, chosen, q.shape, tokens, q.dtype, linear=linear, launch=HOPPER_EIGHT_BITS)
        # Even maps have other pairs of blocks, and p is rounded to fp8 below the maximum of each.
        assert relative_l2(actual, expected) < (2**-5 if kept is not None and kept % 2 == 0 else 2**-8)
