"""The sparse kernel, forward: on a GPU if there is one, else in Triton's interpreter (conftest.py)."""

import pytest
import torch
from inputs import attention_inputs, relative_l2, strided

from turbodiffusion.ops.attention.kernels.sparse import Launch, sparse_forward
from turbodiffusion.ops.attention.sla import block_map, sparse_attention_forward

# Kernels in the interpreter: seconds in all, too long for make test-fast.
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Float32 sums in another order; the worst case of a row of some 300 products is far above what is seen.
FLOAT32 = 2e-6
# P and the output are rounded to 8 bits each (2^-9 at most, 2^-9 / sqrt(3) in the mean), P relative to the maximum so
# far and not to the final one: the two results differ by two such roundings, independent of each other.
BFLOAT16 = 2 * 2**-9


def both(q, k, v, block_q, block_k, topk=0.5, **launch):
    kept = block_map(q, k, topk=topk, block_q=block_q, block_k=block_k)
    actual = sparse_forward(q, k, v, kept, block_q, block_k, launch=Launch(**launch))
    return actual, sparse_attention_forward(q, k, v, kept, block_q, block_k)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)])
@pytest.mark.parametrize(
    ("tokens", "head_dim", "block_q", "block_k", "rows"),
    [(1, 64, 128, 64, 128), (65, 128, 64, 64, 64), (129, 64, 128, 64, 64), (300, 64, 64, 128, 128)],
)
def test_equals_the_reference(tokens, head_dim, block_q, block_k, rows, dtype, tolerance, poisoned):
    q, k, v = attention_inputs(tokens, head_dim, dtype=dtype, device=DEVICE)
    (out, lse), (expected, expected_lse) = both(q, k, v, block_q, block_k, rows=rows)
    assert out.dtype == dtype
    assert relative_l2(out, expected) < tolerance
    # The scores of bfloat16 inputs are exact products summed in float32 in both.
    assert relative_l2(lse, expected_lse) < FLOAT32


@pytest.mark.parametrize("topk", [0.01, 0.5, 0.61, 0.9])
def test_pairs_of_blocks(topk, poisoned):
    """1, 2, 3 and 4 kept blocks of 5: none and one pair, with and without one block after it; the last is ragged."""
    q, k, v = attention_inputs(300, 64, device=DEVICE)
    (out, lse), (expected, expected_lse) = both(q, k, v, 128, 64, topk=topk, pair=True)
    assert relative_l2(out, expected) < FLOAT32
    assert relative_l2(lse, expected_lse) < FLOAT32


def test_more_warps_than_rows_raise():
    q, k, v = attention_inputs(8, 64, device=DEVICE)
    with pytest.raises(ValueError, match="64 rows take at most 4 warps, got 8"):
        both(q, k, v, 64, 64, num_warps=8)


def test_batches_and_heads_with_strides(poisoned):
    """Two heads and two batches inside one projection of q, k and v: read where they lie, and not beyond."""
    qkv = torch.full((2, 140, 3, 2, 80), torch.nan, device=DEVICE)
    qkv[:, :130, :, :, :64] = torch.stack(attention_inputs(130, 64, batch=2, device=DEVICE), dim=2)
    q, k, v = qkv[:, :130, :, :, :64].unbind(2)
    (out, lse), (expected, expected_lse) = both(q, k, v, 128, 64, topk=0.7)
    assert relative_l2(out, expected) < FLOAT32
    assert relative_l2(lse, expected_lse) < FLOAT32


def test_strides_that_no_descriptor_takes(poisoned):
    q, k, v = (strided(x) for x in attention_inputs(70, 64, device=DEVICE))
    (out, _), (expected, _) = both(q, k, v, 64, 64)
    assert relative_l2(out, expected) < FLOAT32


def test_only_kept_blocks_are_read(poisoned):
    q, k, v = attention_inputs(300, 64, heads=1, device=DEVICE)
    kept = torch.tensor([[[[1], [3], [4]]]], dtype=torch.int32, device=DEVICE)
    expected, _ = sparse_forward(q, k, v, kept, 128, 64)
    k[:, :64], v[:, 128:192] = torch.nan, torch.nan
    assert torch.equal(sparse_forward(q, k, v, kept, 128, 64)[0], expected)


def test_large_scores_stay_finite(poisoned):
    """Scores of several thousand, with the largest in the block that comes last."""
    q, k, v = attention_inputs(192, 64, heads=1, device=DEVICE)
    q, k[:, 64:128] = 30 * q, 30 * k[:, 64:128]
    (out, lse), (expected, expected_lse) = both(q, k, v, 128, 64, topk=1.0)
    # A score of 10^4 in float32 is known to 5e-4, and so is the logarithm of its probability.
    assert relative_l2(out, expected) < 2e-3
    assert relative_l2(lse, expected_lse) < FLOAT32


def test_sizes_that_the_kernel_does_not_take_raise():
    q, k, v = attention_inputs(8, 48, device=DEVICE)
    kept = torch.zeros(1, 2, 1, 1, dtype=torch.int32, device=DEVICE)
    with pytest.raises(
        ValueError, match=r"takes a head dim of 32, 64, 128 and blocks of 64 or 128, got 48, 128 and 64"
    ):
        sparse_forward(q, k, v, kept, 128, 64)
