"""The choice of blocks by kernels: on a GPU if there is one, else in Triton's interpreter (conftest.py)."""

import pytest
import torch
from inputs import attention_inputs, strided

from turbodiffusion.ops.attention import sla
from turbodiffusion.ops.attention.kernels.block_map import block_map, select_highest

# Kernels in the interpreter: seconds in all, too long for make test-fast.
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def highest(scores, kept):
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :kept].sort(dim=-1).values.int()


@pytest.mark.parametrize(("tokens", "head_dim", "block_q", "block_k"), [(1, 64, 128, 64), (400, 128, 64, 64)])
@pytest.mark.parametrize("topk", [0.05, 0.4])
def test_exact_means_give_the_references_map(tokens, head_dim, block_q, block_k, topk, poisoned):
    """Small integers in whole blocks of 64: every score is exact in float32, ties included, whatever the order."""
    q, k, _ = (x.mul(4).round() for x in attention_inputs(-(-tokens // 64) * 64, head_dim, device=DEVICE))
    k -= k.sum(1, keepdim=True) / k.shape[1]
    k = k.round()
    k[:, -1] -= k.sum(1)  # a mean of zero
    expected = sla.block_map(q, k, topk=topk, block_q=block_q, block_k=block_k)
    assert torch.equal(block_map(q, k, topk, block_q, block_k), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [65, 300])
def test_ragged_map_overlaps_the_references(tokens, dtype, poisoned):
    """A kernel's map is judged by its overlap; sums in another order swap blocks only where scores all but tie."""
    q, k, _ = attention_inputs(tokens, 64, dtype=dtype, device=DEVICE)
    q, k = (strided(q), strided(k)) if tokens == 65 else (q, k)
    actual, expected = block_map(q, k, 0.3, 128, 64), sla.block_map(q, k, topk=0.3)
    assert actual.shape == expected.shape
    assert actual.dtype == torch.int32
    assert (actual == expected).float().mean() > 0.99


@pytest.mark.parametrize("kept", [1, 7, 37])
def test_highest_of_a_row_with_ties_signs_zeros_and_infinities(kept, poisoned):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (1, 2, 6, 37), generator=generator).float()
    scores[0, 1, 0] = torch.randn(37, generator=generator) * 1e-30
    scores[0, 1, 1] = torch.randn(37, generator=generator) * 1e30
    scores[0, 1, 2, ::2] = -0.0
    scores[0, 1, 3, :5] = -torch.inf
    scores[0, 1, 4, -5:] = torch.inf
    scores[0, 1, 5] = -torch.inf
    assert torch.equal(select_highest(scores.to(DEVICE), kept).cpu(), highest(scores, kept))
