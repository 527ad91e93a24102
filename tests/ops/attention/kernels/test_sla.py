"""SLA and SageSLA by kernels, gradients included: on a GPU if there is one, else in Triton's interpreter."""

from itertools import pairwise

import pytest
import torch
from inputs import attention_inputs, projection, relative_l2

from turbodiffusion.errors import MachineError
from turbodiffusion.ops.attention.kernels.sparse_backward import invert
from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sage_sparse_attention, sagesla_attention
from turbodiffusion.ops.attention.sla import block_map, linear_attention, sla_attention, sparse_attention
from turbodiffusion.ops.cases import BOUNDS, OF_THE_EMULATION

# Kernels in the interpreter: seconds in all, too long for make test-fast.
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Float32 sums in another order; a gradient's are sums of a few hundred terms that cancel.
FLOAT32 = 5e-6


def with_gradients(op, inputs, *others):
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = op(*inputs, *others)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
    # As a transposed view, which is how the gradient of an output projection may arrive.
    grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def assert_gradients(op, inputs, exact, share, *others):
    """In float32 the kernel equals the reference; in bfloat16 its error is at most `share` times the reference's."""
    low = tuple(x.bfloat16() for x in inputs)
    expected = with_gradients(exact, [x.float() for x in low], *others)
    for actual, value in zip(with_gradients(op, [x.float() for x in low], *others), expected, strict=True):
        assert relative_l2(actual, value) < FLOAT32
    references = with_gradients(exact, low, *others)
    for actual, reference, value in zip(with_gradients(op, low, *others), references, expected, strict=True):
        assert actual.dtype == torch.bfloat16
        error = relative_l2(actual, value)
        assert error < BOUNDS["bf16"]
        assert error < share * relative_l2(reference, value)


@pytest.mark.parametrize(("tokens", "head_dim", "block_q", "block_k"), [(65, 128, 64, 64), (200, 64, 128, 64)])
def test_gradients_of_the_sparse_part(tokens, head_dim, block_q, block_k, poisoned):
    inputs = attention_inputs(tokens, head_dim, device=DEVICE)
    blocks = {"block_q": block_q, "block_k": block_k}
    kept = block_map(*inputs[:2], topk=0.5, **blocks)

    def attend(impl):
        return lambda q, k, v: sparse_attention(q, k, v, kept, impl=impl, **blocks)

    assert_gradients(attend("triton"), inputs, attend("reference"), OF_THE_EMULATION)


@pytest.mark.parametrize(("tokens", "head_dim"), [(65, 128), (200, 64)])
def test_gradients_of_the_linear_part(tokens, head_dim, poisoned):
    inputs = attention_inputs(tokens, head_dim, device=DEVICE)
    # Both round phi and the state. On tensor cores dO / w is rounded too, where autograd's products are in float32:
    # at most as many roundings again, independent of each other.
    assert_gradients(lambda *x: linear_attention(*x, impl="triton"), inputs, linear_attention, 2**0.5)


def test_keys_that_nobody_keeps_have_no_gradient(poisoned):
    inputs = attention_inputs(200, 64, heads=1, device=DEVICE)
    kept = torch.tensor([[[[1], [3]]]], dtype=torch.int32, device=DEVICE)
    _, _, dk, dv = with_gradients(lambda q, k, v: sparse_attention(q, k, v, kept, impl="triton"), inputs)
    for grad in (dk, dv):
        assert (grad[:, :64] == 0).all()
        assert (grad[:, 128:192] == 0).all()
        assert (grad[:, 192:] != 0).any()


def test_inverted_map():
    kept = torch.tensor([[[[0, 2], [1, 2]], [[0, 1], [0, 3]]]], dtype=torch.int32)
    keepers, first = invert(kept, 4)
    lists = [keepers[a:b].tolist() for a, b in pairwise(first)]
    assert lists == [[0], [1], [0, 1], [], [0, 1], [0], [], [1]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BOUNDS["bf16"])])
@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (65, 2)])
def test_sla_fused(tokens, batch, dtype, tolerance, poisoned):
    q, k, v = attention_inputs(tokens, 128, batch=batch, heads=1, dtype=dtype, device=DEVICE)
    proj = [x.to(DEVICE) for x in projection(128)]
    expected = sla_attention(*(x.float() for x in (q, k, v)), *proj, topk=0.7)
    assert relative_l2(sla_attention(q, k, v, *proj, topk=0.7, impl="triton"), expected) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BOUNDS["bf16"])])
def test_gradients_of_sla(dtype, tolerance, poisoned):
    """q, k, v, the projection's weight and bias."""
    qkv = attention_inputs(140, 64, batch=2, heads=1, dtype=dtype, device=DEVICE)
    proj = [x.to(DEVICE) for x in projection(64)]
    expected = with_gradients(lambda *x: sla_attention(*x, topk=0.7), [x.float() for x in qkv] + proj)
    actual = with_gradients(lambda *x: sla_attention(*x, topk=0.7, impl="triton"), [*qkv, *proj])
    for got, value in zip(actual, expected, strict=True):
        assert relative_l2(got, value) < tolerance


@pytest.mark.parametrize("qk", ["int8", "fp8"])
def test_sagesla_fused(qk, poisoned):
    q, k, v = attention_inputs(200, 64, batch=2, heads=1, dtype=torch.bfloat16, device=DEVICE)
    proj = [x.to(DEVICE) for x in projection(64)]
    out = sagesla_attention(q, k, v, *proj, topk=0.5, qk=qk, impl="triton")
    exact = sla_attention(*(x.float() for x in (q, k, v)), *proj, topk=0.5)
    emulation = relative_l2(sagesla_attention(q, k, v, *proj, topk=0.5, qk=qk), exact)
    assert relative_l2(out, exact) < min(BOUNDS[qk], OF_THE_EMULATION * emulation)


def test_impl_triton_of_the_parts(poisoned):
    q, k, v = attention_inputs(130, 64, heads=1, device=DEVICE)
    kept = block_map(q, k, topk=0.7, impl="triton")
    assert torch.equal(kept, block_map(q, k, topk=0.7))
    for kwargs in ({"impl": "triton"}, {}):
        out = sage_sparse_attention(q, k, v, kept, **kwargs)
        assert relative_l2(out, sparse_attention(q, k, v, kept)) < BOUNDS["int8"]
    assert relative_l2(sage_attention(q, k, v, impl="triton"), sage_attention(q, k, v)) < BOUNDS["int8"]


def test_invalid_arguments_raise(monkeypatch):
    q, k, v = attention_inputs(130, 64, heads=1, device=DEVICE)
    kept = block_map(q, k, topk=0.7)
    for op in (sparse_attention, sage_sparse_attention):
        with pytest.raises(ValueError, match="map_BHNK must hold ascending blocks from 0 to 2"):
            op(q, k, v, kept + 2, impl="triton")
    with pytest.raises(ValueError, match="blocks of 64 or 128, got 64, 96 and 64; use 'reference'"):
        sla_attention(q, k, v, *projection(64), topk=0.5, block_q=96, impl="triton")
    with pytest.raises(ValueError, match="has no gradient, but q_BLHD requires one"):
        sagesla_attention(q.clone().requires_grad_(), k, v, *projection(64), topk=0.5, impl="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(MachineError, match="needs q_BLHD on a GPU, it is on cpu; use 'reference'"):
        sla_attention(*(x.cpu() for x in (q, k, v)), *projection(64), topk=0.5, impl="triton")
