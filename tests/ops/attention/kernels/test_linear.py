"""The linear part's kernels: on a GPU if there is one, else in Triton's interpreter (conftest.py)."""

import pytest
import torch
from inputs import attention_inputs, projection, relative_l2, strided

from turbodiffusion.ops.attention.kernels.linear import key_state, linear_forward
from turbodiffusion.ops.attention.sla import linear_attention

# Kernels in the interpreter: seconds in all, too long for make test-fast.
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Float32 sums in another order; exp2 of a scaled number against exp.
FLOAT32 = 2e-6
# phi(q) over the denominator, the state and the output are rounded to 8 bits each, 2^-9 at most; so are the
# reference's, elsewhere: three such roundings each, independent of each other.
BFLOAT16 = 6**0.5 * 2**-9


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)])
@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 64), (65, 128), (300, 64)])
def test_equals_the_reference(tokens, head_dim, dtype, tolerance, poisoned):
    q, k, v = attention_inputs(tokens, head_dim, dtype=dtype, device=DEVICE)
    out = linear_forward(q, key_state(k, v, 64))
    assert out.dtype == dtype
    assert relative_l2(out, linear_attention(q, k, v)) < tolerance


@pytest.mark.parametrize("programs", [2, 6])
@pytest.mark.parametrize("block_k", [64, 128])
def test_parts_of_the_sequence_add_up(programs, block_k, poisoned):
    """One part, and as many as there are blocks or fewer; k and v inside a larger projection."""
    kv = torch.full((1, 300, 2, 2, 80), torch.nan, device=DEVICE)
    _, kv[:, :, 0, :, :64], kv[:, :, 1, :, :64] = attention_inputs(300, 64, device=DEVICE)
    k, v = kv[..., :64].unbind(2)
    weight, _ = projection(64)
    state = key_state(k, v, block_k, weight.to(DEVICE), programs=programs)
    phi = k.double().softmax(-1)
    expected = torch.einsum("bshd,bshe->bhde", phi, v.double()) @ weight.to(DEVICE).double().T
    assert relative_l2(state.state_BHDE, expected) < FLOAT32
    assert relative_l2(state.key_sum_BHD, phi.sum(1)) < FLOAT32
    assert relative_l2(state.mean_BHD, k.double().mean(1)) < FLOAT32
    assert torch.equal(state.largest_BHD, v.abs().amax(1))
    pooled = torch.stack([rows.double().mean(1) for rows in k.split(block_k, dim=1)], dim=2)
    assert relative_l2(state.pooled_BHND, pooled) < FLOAT32


def test_strides_that_no_descriptor_takes(poisoned):
    q, k, v = (strided(x) for x in attention_inputs(70, 64, batch=2, heads=1, device=DEVICE))
    assert relative_l2(linear_forward(q, key_state(k, v, 64)), linear_attention(q, k, v)) < FLOAT32
