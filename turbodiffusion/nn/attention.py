"""Self-attention over the tokens of a video, its kind chosen at construction."""

from torch import Tensor, nn

from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.ops.attention.dense import dense_attention

ATTENTION_KINDS = ("original",)


class Attention(nn.Module):
    """q, k and v in, attention's output out, all [batch, tokens, heads, head dim].

    "original" is dense. Raises ValueError for an unknown kind.
    """

    def __init__(self, kind: str, num_heads: int, head_dim: int) -> None:
        super().__init__()
        if kind not in ATTENTION_KINDS:
            raise ValueError(f"attention kind {kind!r} is not one of {', '.join(ATTENTION_KINDS)}")
        self.kind, self.num_heads, self.head_dim = kind, num_heads, head_dim

    def forward(self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        with no_autocast(q_BLHD.device):
            return dense_attention(q_BLHD, k_BSHD, v_BSHD)
