"""nn.RMSNorm and nn.LayerNorm: float32 weights and arithmetic, x's dtype out, PyTorch's results."""

import pytest
import torch

from turbodiffusion.nn.norm import LayerNorm, RMSNorm

EPS = 1e-2  # large enough for its place in the formula to show
PEERS = {RMSNorm: torch.nn.RMSNorm, LayerNorm: torch.nn.LayerNorm}


@pytest.mark.parametrize("kind", PEERS)
@torch.no_grad()
def test_as_pytorch_in_float32(kind):
    torch.manual_seed(0)
    ours, theirs = kind(24, EPS), PEERS[kind](24, eps=EPS)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight)
    theirs.load_state_dict(ours.state_dict())
    x = 0.1 * torch.randn(2, 5, 24) + 0.2
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)  # float32 rounding
    out = ours(x.bfloat16())
    assert out.dtype == torch.bfloat16
    # bfloat16 in, float32 inside, one rounding at the end: at most a flip of its last bit against PyTorch's float32
    torch.testing.assert_close(out, theirs(x.bfloat16().float()).bfloat16(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("kind", PEERS)
def test_reset_parameters(kind):
    norm = kind(8, EPS)
    fresh = {key: weight.clone() for key, weight in norm.state_dict().items()}
    for weight in norm.parameters():
        torch.nn.init.normal_(weight)
    norm.reset_parameters()
    assert all(
        weight.dtype == torch.float32 and torch.equal(weight, fresh[key]) for key, weight in norm.state_dict().items()
    )
    assert torch.equal(norm.weight, torch.ones(8))
