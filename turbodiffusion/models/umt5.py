"""The layers of umT5's encoder (arXiv 2304.09151): T5 v1.1 with a relative position table in every layer.

The operations are those of transformers' UMT5EncoderModel in the same order, and the state dict has its names; tests
compare the two. Its classes are not used here because importing them costs a process 3 s and more.

Suffixes: B batch, S text tokens, E d_model, H heads.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from turbodiffusion.config import TEXT_BUCKETS as BUCKETS
from turbodiffusion.config import TextConfig

MAX_DISTANCE = 128  # of tokens; what is further apart shares the last bucket
EPS = 1e-6


class Norm(nn.Module):
    """RMS norm with its mean in float32, rounded before the weight is applied: `nn.norm.RMSNorm` rounds after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BSE: Tensor) -> Tensor:
        variance = x_BSE.float().pow(2).mean(-1, keepdim=True)
        y_BSE = x_BSE * torch.rsqrt(variance + EPS)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            y_BSE = y_BSE.to(self.weight.dtype)
        return self.weight * y_BSE


class Attention(nn.Module):
    """Self-attention with PyTorch's fused one, which does not round the scores on the way, as transformers' does."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = empty_embedding(BUCKETS, config.num_heads)

    def forward(self, x_BSE: Tensor, buckets_BSS: Tensor) -> Tensor:
        """Attend [B, S, E] to itself.

        buckets_BSS: of each pair of tokens, from `relative_position_buckets`; BUCKETS itself for one that is masked
        out.

        T5 does not divide scores by sqrt(D). The bias of a pair is its bucket's entry in the layer's table, [buckets,
        H].
        """
        (batch, length, _), heads = x_BSE.shape, self.num_heads
        q, k, v = (
            project(x_BSE).view(batch, length, heads, -1).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        biases = self.relative_attention_bias.weight.T
        biases = torch.cat((biases, biases.new_full((heads, 1), torch.finfo(biases.dtype).min)), dim=1)
        bias_HBSS = biases.index_select(1, buckets_BSS.flatten()).unflatten(1, buckets_BSS.shape)
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias_HBSS.transpose(0, 1).to(q.dtype), scale=1.0)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """gelu(wi_0 x) * wi_1 x, then wo. GELU in its tanh form, op by op as transformers' "gelu_new": in bfloat16 the
    fused one rounds less, and the networks have seen the other."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BSE: Tensor) -> Tensor:
        gate = self.wi_0(x_BSE)
        gate = 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))))
        return self.wo(gate * self.wi_1(x_BSE))


class Block(nn.Module):
    """Attention and ffn, each behind a norm and beside a shortcut; the nesting is that of the tensors' names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        parts = {"SelfAttention": Attention(config)}, {"DenseReluDense": FeedForward(config)}
        self.layer = nn.ModuleList(nn.ModuleDict({**part, "layer_norm": Norm(config.d_model)}) for part in parts)

    def forward(self, x_BSE: Tensor, buckets_BSS: Tensor) -> Tensor:
        attend, feed = (cast("nn.ModuleDict", part) for part in self.layer)
        x_BSE = x_BSE + attend["SelfAttention"](attend["layer_norm"](x_BSE), buckets_BSS)
        return x_BSE + feed["DenseReluDense"](feed["layer_norm"](x_BSE))


class Stack(nn.Module):
    """The blocks and the norm behind them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = Norm(config.d_model)


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """Build an embedding without values: to draw some on the meta device PyTorch imports its compiler, for a second."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


@torch.no_grad()
def init_weights(stack: Stack) -> None:
    """Draw the weights as transformers does: so that scores, which are not divided by sqrt(D), keep their size."""
    for module in stack.modules():
        if isinstance(module, Attention):
            inner, width = module.q.weight.shape
            nn.init.normal_(module.q.weight, std=(width * inner / module.num_heads) ** -0.5)
            for part in (module.k, module.v, module.relative_attention_bias):
                nn.init.normal_(part.weight, std=width**-0.5)
            nn.init.normal_(module.o.weight, std=inner**-0.5)
        elif isinstance(module, FeedForward):
            for part in (module.wi_0, module.wi_1, module.wo):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)


def relative_position_buckets(length: int, device: torch.device) -> Tensor:
    """Return the bucket of each pair of tokens, int64 [S, S]: exact for near ones, logarithmic for far ones."""
    positions = torch.arange(length, device=device)
    distance = positions[None] - positions[:, None]
    half = BUCKETS // 2
    exact = half // 2
    behind, distance = (distance > 0).long() * half, distance.abs()
    ratio = torch.log(distance.float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    far = (exact + ratio.long()).clamp(max=half - 1)
    return behind + torch.where(distance < exact, distance, far)
