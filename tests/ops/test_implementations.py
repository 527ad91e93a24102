import pytest

from turbodiffusion.ops.implementations import attention_unsupported_reason, linear_unsupported_reason


@pytest.mark.parametrize(
    ("kind", "head_dim", "block_q", "block_k", "capability", "reason"),
    [
        ("sla", 128, 128, 64, (8, 0), None),
        ("sagesla", 128, 128, 64, (8, 9), None),
        ("sagesla", 128, 128, 64, None, None),  # the interpreter
        ("original", 48, 32, 32, (7, 5), None),  # PyTorch's own
        ("sla", 48, 128, 64, (9, 0), "take a head dim of 32, 64, 128, not 48"),
        ("sla", 128, 128, 32, (9, 0), "take blocks of 64 or 128 tokens, not 128 and 32"),
        ("sage", 128, 128, 64, (8, 0), "attention sage needs fp8"),
    ],
)
def test_attention(kind, head_dim, block_q, block_k, capability, reason):
    actual = attention_unsupported_reason(kind, head_dim, block_q, block_k, capability)
    assert actual is None if reason is None else reason in actual


def test_linear():
    assert linear_unsupported_reason((1536, 8960)) is None
    assert "multiples of 16, not 1544" in linear_unsupported_reason((1536, 1544))
