import pytest
import torch
from inputs import strided

from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.rms_norm import rms_norm
from turbodiffusion.ops.norm.rope import apply_rope, rope_angles, rope_cos_sin

EPS = 1e-6
HEADS, HEAD_DIM = 4, 24


def qkv(length, dtype=torch.float32):
    """q, k and v of four heads beside each other, as one projection writes them; the norms' weights; RoPE's table."""
    M = HEADS * HEAD_DIM
    buffer, weights = torch.randn(2, length, 3 * M, dtype=dtype), torch.randn(2, M)
    return buffer, *weights, rope_cos_sin(rope_angles((length, 1, 1), HEAD_DIM))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_norm_then_rotation(dtype):
    buffer, weight_q, weight_k, cos_sin = qkv(37, dtype)
    qk = norm_rope_qk(strided(buffer), weight_q, weight_k, cos_sin, HEADS, EPS)
    q, k, _ = buffer.chunk(3, dim=-1)
    for actual, x, weight in ((qk.q_BLHD, q, weight_q), (qk.k_BLHD, k, weight_k)):
        assert torch.equal(actual, apply_rope(rms_norm(x, weight, EPS).unflatten(-1, (HEADS, -1)), cos_sin))
    assert qk.pooled_q_BNHD is None and qk.pooled_k_BNHD is None


def test_means_are_those_of_the_rounded_blocks():
    buffer, weight_q, weight_k, cos_sin = qkv(37, torch.bfloat16)
    qk = norm_rope_qk(buffer, weight_q, weight_k, cos_sin, HEADS, EPS, blocks=(16, 8))
    for pooled, x, block in ((qk.pooled_q_BNHD, qk.q_BLHD, 16), (qk.pooled_k_BNHD, qk.k_BLHD, 8)):
        assert pooled.shape == (2, -(-37 // block), HEADS, HEAD_DIM) and pooled.dtype == torch.float32
        for n, tokens in enumerate(x.float().split(block, dim=1)):  # the last one is ragged
            torch.testing.assert_close(pooled[:, n], tokens.mean(dim=1))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_invalid_arguments_raise(impl):
    buffer, weight_q, weight_k, cos_sin = qkv(5)
    with pytest.raises(ValueError, match=r"cos_sin must be \[2, 5, 12\], got \[2, 4, 12\]"):
        norm_rope_qk(buffer, weight_q, weight_k, cos_sin[:, :4], HEADS, EPS, impl=impl)
    with pytest.raises(ValueError, match="100 columns do not hold q and k of 4 heads of 96 columns"):
        norm_rope_qk(buffer[..., :100], weight_q, weight_k, cos_sin, HEADS, EPS, impl=impl)
    with pytest.raises(ValueError, match=r"blocks must hold at least one token, got \(0, 64\)"):
        norm_rope_qk(buffer, weight_q, weight_k, cos_sin, HEADS, EPS, blocks=(0, 64), impl=impl)
