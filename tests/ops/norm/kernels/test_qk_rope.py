"""RMS norm and rotary embedding of a fused buffer in Triton against their reference: on a GPU, else interpreted."""

import pytest
import torch
from inputs import relative_l2, strided

from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.rope import rope_angles, rope_cos_sin

pytest.importorskip("triton", reason="Triton is not installed")

# NumPy, under the interpreter, warns of infinities and NaNs; a GPU does not.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
LENGTHS = (1, 16, 37)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def qkv(length, dtype=torch.float32, head_dim=24):
    """q, k and v of four heads beside each other, as one projection writes them."""
    buffer = random(2, length, 3 * 4 * head_dim, dtype=dtype)
    weights = random(2, 4 * head_dim, seed=1)
    cos_sin = rope_cos_sin(rope_angles((length, 1, 1), head_dim, device=DEVICE))
    return buffer, weights[0], weights[1], cos_sin


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("blocks", [None, (16, 8), (7, 50)])
def test_norm_and_rope_of_a_fused_buffer(length, blocks):
    buffer, weight_q, weight_k, cos_sin = qkv(length)
    actual = norm_rope_qk(buffer, weight_q, weight_k, cos_sin, 4, EPS, blocks=blocks, impl="triton")
    single = norm_rope_qk(buffer, weight_q, weight_k, cos_sin, 4, EPS, blocks=blocks)
    exact = norm_rope_qk(buffer.double(), weight_q.double(), weight_k.double(), cos_sin.double(), 4, EPS, blocks=blocks)
    for name, value in vars(exact).items():
        if value is None:
            assert getattr(actual, name) is None
        else:
            error = relative_l2(getattr(single, name), value)
            # Twice the float32 reference's own error, and no less than two float32 roundings.
            assert relative_l2(getattr(actual, name), value) <= max(2 * error, 2**-22)


def test_norm_and_rope_round_once_to_bfloat16():
    buffer, weight_q, weight_k, cos_sin = qkv(37, torch.bfloat16)
    actual = norm_rope_qk(strided(buffer), weight_q, weight_k, cos_sin, 4, EPS, blocks=(16, 8), impl="triton")
    exact = norm_rope_qk(buffer.double(), weight_q.double(), weight_k.double(), cos_sin.double(), 4, EPS)
    assert actual.q_BLHD.dtype == torch.bfloat16
    for name in ("q_BLHD", "k_BLHD"):
        # Half of the last of bfloat16's 8 bits is the most that one rounding of each value can add.
        assert relative_l2(getattr(actual, name), getattr(exact, name)) < 2**-9
    # The means are those of what was written, as the choice of blocks takes them.
    expected = torch.stack([rows.float().mean(dim=1) for rows in actual.q_BLHD.split(16, dim=1)], dim=1)
    torch.testing.assert_close(actual.pooled_q_BNHD, expected, rtol=1e-5, atol=1e-6)
