"""Dense attention's tangent against PyTorch's own derivative of the written-out softmax, in float64."""

import pytest
import torch
from inputs import RAGGED, attention_inputs, relative_l2, strided
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from turbodiffusion.ops.attention.dense import attention_tangent, dense_attention

# PyTorch's own: its forward mode compiles decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(tokens, head_dim, keys=None, **others):
    """q, k, v and a direction of the same shapes."""
    given = {"keys": keys, "heads": 2, **others}
    return *attention_inputs(tokens, head_dim, **given), *attention_inputs(tokens, head_dim, **given, seed=5)


def exact(*x):
    """PyTorch's forward mode through products and a softmax."""

    def attend(*qkv):
        return scaled_dot_product_attention(*(y.transpose(1, 2) for y in qkv)).transpose(1, 2)

    x = tuple(y.double() for y in x)
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(attend, x[:3], x[3:])


@pytest.mark.parametrize("tokens", RAGGED[:-1])
def test_the_reference_is_the_derivative(tokens):
    x = inputs(tokens, 64, keys=tokens + 3, batch=2, dtype=torch.float64)
    for actual, expected in zip(attention_tangent(*x), exact(*x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (63, 65), (64, 64), (129, 70), (65, 300)])
def test_the_kernel_is_the_derivative(poisoned, tokens, keys, head_dim):
    x = tuple(strided(y) for y in inputs(tokens, head_dim, keys, device=DEVICE))
    for actual, expected in zip(attention_tangent(*x, impl="triton"), exact(*x), strict=True):
        assert relative_l2(actual, expected) < 2e-6  # float32 sums in another order


def test_the_kernel_in_bfloat16_is_as_exact_as_attention_is(poisoned):
    x = inputs(129, 64, dtype=torch.bfloat16, device=DEVICE)
    out, moved = attention_tangent(*x, impl="triton")
    assert out.dtype == moved.dtype == torch.bfloat16
    for actual, expected in zip((out, moved), exact(*x), strict=True):
        assert relative_l2(actual, expected) < 0.01  # SLA's bound for bfloat16: probabilities are rounded once


@pytest.mark.parametrize("impl", ["reference", "sdpa", "cudnn"])
@pytest.mark.parametrize("which", [(0, 1, 2), (1,)])
def test_dual_tensors_carry_it_through_dense_attention(impl, which):
    x = inputs(9, 64, 5, device=DEVICE)
    direction = [dx if n in which else torch.zeros_like(dx) for n, dx in enumerate(x[3:])]
    with forward_ad.dual_level():
        dual = [
            forward_ad.make_dual(y, dx) if n in which else y for n, (y, dx) in enumerate(zip(x[:3], x[3:], strict=True))
        ]
        out, moved = forward_ad.unpack_dual(dense_attention(*dual, impl=impl))
    for actual, expected in zip((out, moved), exact(*x[:3], *direction), strict=True):
        assert relative_l2(actual, expected) < 2e-6


def test_invalid_arguments_raise():
    x = inputs(4, 64)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="has no gradient, but q_BLHD requires one"):
        dense_attention(forward_ad.make_dual(x[0].clone().requires_grad_(), x[3]), *x[1:3])
    with pytest.raises(ValueError, match=r"forward_ad, not torch\.func's"):
        torch.func.jvp(lambda q: dense_attention(q, *x[1:3], impl="cudnn"), x[:1], x[3:4])
    with pytest.raises(ValueError, match=r"dv_BSHD must be \[B=1, S=4, H=2, D=64\], got \[1, 3, 2, 64\]"):
        attention_tangent(*x[:5], x[5][:, :3])
    with pytest.raises(ValueError, match="takes a head dim of 32, 64, 128, got 16; use 'reference'"):
        attention_tangent(*inputs(4, 16, device=DEVICE), impl="triton")
