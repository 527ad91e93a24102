"""nn.Attention hands each kind to its op; proj_l is float32, starts at zero and is trained."""

import pytest
import torch
from torch import Tensor

from turbodiffusion.config import ATTENTION_KINDS
from turbodiffusion.nn.attention import Attention
from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sagesla_attention
from turbodiffusion.ops.attention.sla import sla_attention

SPARSE = {"topk": 0.5, "block_q": 16, "block_k": 8}


def make(kind: str) -> Attention:
    attention = Attention(kind, 2, 16, **SPARSE)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return attention


def qkv(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 40, 2, 16).to(dtype).unbind()
    return q, k, v


def expected(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    blocks = {"block_q": 16, "block_k": 8}
    if attention.kind == "original":
        return dense_attention(q, k, v)
    if attention.kind == "sage":
        return sage_attention(q, k, v, **blocks)
    op = {"sla": sla_attention, "sagesla": sagesla_attention}[attention.kind]
    return op(q, k, v, attention.proj_l.weight, attention.proj_l.bias, topk=0.5, **blocks)


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@torch.no_grad()
def test_each_kind_is_its_op(kind):
    attention, (q, k, v) = make(kind), qkv(torch.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected(attention, q, k, v))


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@torch.no_grad()
def test_autocast_does_not_reach_inside(kind):
    attention, (q, k, v) = make(kind), qkv(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v)
    assert torch.equal(out, expected(attention, q, k, v))


@pytest.mark.parametrize("kind", ["sla", "sagesla"])
def test_proj_l_is_float32_and_zero_at_first(kind):
    attention = Attention(kind, 2, 16, **SPARSE)
    state = attention.state_dict()
    assert {key: tuple(w.shape) for key, w in state.items()} == {"proj_l.weight": (16, 16), "proj_l.bias": (16,)}
    assert all(w.dtype == torch.float32 and not w.any() for w in state.values())


@pytest.mark.parametrize("kind", ["original", "sage"])
def test_dense_kinds_have_no_weights(kind):
    assert not Attention(kind, 2, 16, **SPARSE).state_dict()


def test_proj_l_receives_gradients():
    attention = Attention("sla", 2, 16, **SPARSE)
    attention(*qkv(torch.float32)).square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in attention.parameters())


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'flash' is not one of original, sla, sage, sagesla"):
        Attention("flash", 2, 16, **SPARSE)
