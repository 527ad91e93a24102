"""Self-attention over the tokens of a video, its kind chosen at construction."""

import torch
from torch import Tensor, nn

from turbodiffusion.config import ATTENTION_KINDS
from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.attention.sage import sage_attention
from turbodiffusion.ops.attention.sagesla import sagesla_attention
from turbodiffusion.ops.attention.sla import sla_attention

# Dense attention is PyTorch's own; which of its kernels comes first, where the others are reference or Triton.
DENSE_IMPL = {"reference": "sdpa", "triton": "cudnn"}


class Attention(nn.Module):
    """Attend from q to k and v, all [batch, tokens, heads, head dim] in one dtype.

    kind: "original" is dense attention, each query over all keys (the name is the one that model files store); "sage"
    is dense in 8 bits; "sla" and "sagesla" are the two with most blocks left to a linear term, whose projection
    `proj_l` is float32 and starts at zero. impl: "reference" or "triton". Raises ValueError for an unknown kind or
    impl.
    """

    def __init__(
        self,
        kind: str,
        num_heads: int,
        head_dim: int,
        *,
        topk: float,
        block_q: int,
        block_k: int,
        impl: str = "reference",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if impl not in DENSE_IMPL:
            raise ValueError(f"attention impl {impl!r} is not one of {', '.join(DENSE_IMPL)}")
        if kind not in ATTENTION_KINDS:
            raise ValueError(f"attention kind {kind!r} is not one of {', '.join(ATTENTION_KINDS)}")
        self.kind, self.num_heads, self.head_dim, self.impl = kind, num_heads, head_dim, impl
        self.topk, self.block_q, self.block_k = topk, block_q, block_k
        if kind in ("sla", "sagesla"):
            self.proj_l = nn.Linear(head_dim, head_dim, device=device, dtype=torch.float32)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as the sparse part alone: a network with dense weights is fine-tuned from there."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Attend as `kind` says: [B, L, H, D]."""
        with no_autocast(q_BLHD.device):  # each op states its own number formats
            if self.kind == "original":
                return dense_attention(q_BLHD, k_BSHD, v_BSHD, impl=DENSE_IMPL[self.impl])
            if self.kind == "sage":
                return sage_attention(
                    q_BLHD, k_BSHD, v_BSHD, block_q=self.block_q, block_k=self.block_k, impl=self.impl
                )
            attention = sla_attention if self.kind == "sla" else sagesla_attention
            return attention(
                q_BLHD,
                k_BSHD,
                v_BSHD,
                self.proj_l.weight,
                self.proj_l.bias,
                topk=self.topk,
                block_q=self.block_q,
                block_k=self.block_k,
                impl=self.impl,
            )

    def extra_repr(self) -> str:
        return f"{self.kind}, num_heads={self.num_heads}, head_dim={self.head_dim}"
