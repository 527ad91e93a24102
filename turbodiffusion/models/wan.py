"""The Wan video diffusion transformer (arXiv 2503.20314, section 4.2): Wan 2.1 and 2.2, T2V and I2V.

One network for all of them; fields of `WanConfig` tell them apart. State dict keys are the original release's.

Shapes: B batch, C channels, T latent frames, H and W latent height and width (after q_, k_, v_: H heads, D head dim),
L tokens of the video, S tokens of the prompt, N tokens of the image, M model dim, E width of the prompt or image
embeds.

Precision: `dtype` is that of the blocks' linears, the embeddings and the residual stream between blocks. The time path,
the modulations, the norms, the gated sums and the head stay float32, as in the original.

Two kinds of block, chosen by the configuration: `Block` computes op by op, for training and for every kind of linear.
`QuantizedBlock`, for 8-bit linears with per-token scales, rounds every activation where it is made once the network is
prepared for inference (`WanTransformer.prepare`).
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from turbodiffusion.config import PATCH, WanConfig
from turbodiffusion.nn.attention import DENSE_IMPL, Attention
from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.nn.linear import (
    PER_TOKEN_DTYPES,
    Quantized,
    QuantizedLinear,
    as_quantized,
    fuse_linears,
    fused_linear,
    fused_linear_quantized,
    linear,
)
from turbodiffusion.nn.norm import LayerNorm, RMSNorm
from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.linear.int8 import BLOCK
from turbodiffusion.ops.linear.per_token import quantize_per_token
from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rope import apply_rope, video_cos_sin

IMAGE_NORM_EPS = 1e-5  # of img_emb alone; the other norms use WanConfig.eps

# Keys and values of a block's cross attention, [B, S, H, D] each: of the prompt, then [B, N, H, D] of the image where
# WanConfig.image_dim is set.
KeyValues = tuple[Tensor, ...]
# What the network reads of a prompt (and image), one entry per block: the same at every step of a video.
Context = tuple[KeyValues, ...]


class WanTransformer(nn.Module):
    """Predict the velocity of a noisy latent from its time and from what the video shall show.

    `encode_context` projects the prompt once per video, `forward` predicts the velocity at each step. Built on any
    device but "meta" it is initialised for training (`reset_parameters`).
    """

    def __init__(
        self, config: WanConfig, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        dim = config.dim
        self.patch_embedding = nn.Linear(config.in_dim * PATCH * PATCH, dim, device=device, dtype=dtype)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim, device=device, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(dim, dim, device=device, dtype=dtype),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim, device=device, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(dim, dim, device=device, dtype=torch.float32),
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim, device=device, dtype=torch.float32))
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim, device=device, dtype=dtype)
        block = QuantizedBlock if config.quant_linear in PER_TOKEN_DTYPES else Block
        self.blocks = nn.ModuleList(block(config, device=device, dtype=dtype) for _ in range(config.num_layers))
        self.head = Head(config, device=device)
        if not self.patch_embedding.weight.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise for training from scratch as the original does; the velocity is zero at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, QuantizedLinear | RMSNorm | LayerNorm):
                module.reset_parameters()
        for module in self.modules():  # again: these set their own linears apart
            if isinstance(module, Attention):
                module.reset_parameters()
            elif isinstance(module, Block | Head):
                nn.init.normal_(module.modulation, std=self.config.dim**-0.5)
        for layer in (*self.text_embedding, *self.time_embedding):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def prepare(self) -> "WanTransformer":
        """Make the network ready for inference and return it: q, k and v of each self-attention become one product.

        Call it after the weights are loaded; the network keeps its state dict and has no gradient for q, k and v from
        then on. In int8 blocks they stay apart where the width is not in whole blocks, whose scales would span two.
        """
        if self.config.quant_linear != "int8_block" or self.config.dim % BLOCK == 0:
            for block in self._blocks():
                block.self_attn.fuse_qkv()
        return self

    def encode_context(self, prompt_embeds_BSE: Tensor, image_embeds_BNE: Tensor | None = None) -> Context:
        """Project the prompt embeds to the keys and values of every cross attention: once per video.

        prompt_embeds_BSE: the text encoder's output [B, text_len, text_dim], zeros past each prompt's end (they are
        attended to). image_embeds_BNE: the image encoder's [B, N, image_dim], for a network with image_dim and only for
        one. Raises ValueError where they do not fit the network.
        """
        config, shape = self.config, list(prompt_embeds_BSE.shape)
        if len(shape) != 3 or shape[1:] != [config.text_len, config.text_dim]:
            raise ValueError(f"prompt_embeds_BSE must be [B, {config.text_len}, {config.text_dim}], got {shape}")
        if (image_embeds_BNE is None) != (config.image_dim is None):
            raise ValueError(
                f"image_embeds_BNE {'is needed' if image_embeds_BNE is None else 'fits no network'} "
                f"with image_dim {config.image_dim}"
            )
        prompt_BSM = self.text_embedding(prompt_embeds_BSE.to(self.dtype))
        image_BNM = None if image_embeds_BNE is None else self.img_emb(image_embeds_BNE.to(self.dtype))
        return tuple(block.cross_attn.key_value(prompt_BSM, image_BNM) for block in self._blocks())

    def time_modulation(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the time as the head reads it, [B, M], and as the blocks do, [B, 6, M]; float32."""
        if self.config.round_time_to_bf16:
            t_B = t_B.to(torch.bfloat16)
        with no_autocast(t_B.device):
            time_BM = self.time_embedding(sinusoid(t_B, self.config.freq_dim))
            return time_BM, self.time_projection(time_BM).unflatten(-1, (6, -1))

    def forward(self, x_BCTHW: Tensor, t_B: Tensor, context: Context) -> Tensor:
        """Predict the velocity [B, out_dim, T, H, W], float32.

        x_BCTHW: latent with in_dim channels (image to video: noisy latent, mask and condition concatenated), H and W
        even. t_B: flow time of each video times 1000, float32. context: from `encode_context`, for the same B.
        Raises ValueError where x or t do not fit the network.
        """
        config = self.config
        if (
            x_BCTHW.ndim != 5
            or x_BCTHW.shape[1] != config.in_dim
            or x_BCTHW.shape[3] % PATCH
            or x_BCTHW.shape[4] % PATCH
        ):
            raise ValueError(f"x_BCTHW must be [B, {config.in_dim}, T, even H, even W], got {list(x_BCTHW.shape)}")
        if tuple(t_B.shape) != (x_BCTHW.shape[0],):
            raise ValueError(f"t_B must be [{x_BCTHW.shape[0]}], one time a video, got {list(t_B.shape)}")
        grid = (x_BCTHW.shape[2], x_BCTHW.shape[3] // PATCH, x_BCTHW.shape[4] // PATCH)

        # 1. the time, the positions and the latent's patches as tokens
        time_BM, time_B6M = self.time_modulation(t_B)
        cos_sin = video_cos_sin(grid, config.head_dim, x_BCTHW.device)
        x_BLM = self.patch_embedding(patchify(x_BCTHW).to(self.dtype)).to(self.dtype)
        # 2. the blocks; one sum makes the modulations of all N, [N, 6, B, M], instead of a small one in each
        blocks = self._blocks()
        modulations = torch.stack([block.modulation[0] for block in blocks])[:, :, None] + time_B6M.transpose(0, 1)
        for block, modulation_6BM, kv in zip(blocks, modulations, context, strict=True):
            x_BLM = block(x_BLM, modulation_6BM, cos_sin, kv)
        # 3. tokens to the velocity's patches
        with no_autocast(x_BLM.device):
            patches_BLP = self.head(x_BLM, time_BM)
        return unpatchify(patches_BLP, grid)

    def _blocks(self) -> "Sequence[Block]":
        return cast("Sequence[Block]", self.blocks)


class Block(nn.Module):
    """Self-attention, cross attention to the prompt, and ffn; the time modulates and gates the first and the last."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.kernels = config.eps, config.kernels
        self.self_attn = SelfAttention(config, device=device, dtype=dtype)
        self.norm3 = LayerNorm(config.dim, config.eps, impl=config.kernels.norm, device=device)
        self.cross_attn = CrossAttention(config, device=device, dtype=dtype)
        self.ffn = nn.Sequential(
            _linear(config, config.dim, config.ffn_dim, device=device, dtype=dtype),
            nn.GELU(approximate="tanh"),
            _linear(config, config.ffn_dim, config.dim, device=device, dtype=dtype),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim, device=device, dtype=torch.float32))

    def forward(self, x_BLM: Tensor, modulation_6BM: Tensor, cos_sin: Tensor, kv: KeyValues) -> Tensor:
        """Add the three sublayers to the residual stream x.

        modulation_6BM: float32, shift, scale and gate of self-attention, then of the ffn; cos_sin [2, L, D // 2]:
        RoPE's table.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation_6BM.unbind()
        impl = self.kernels.norm
        # Under autocast the linears' results are narrower than the residual stream.
        y_BLM = self.self_attn(modulated_layer_norm(x_BLM, shift, scale, self.eps, impl=impl), cos_sin)
        x_BLM = add_gated(x_BLM, y_BLM.to(x_BLM.dtype), gate, impl=impl)
        x_BLM = x_BLM + self.cross_attn(self.norm3(x_BLM), kv)
        y_BLM = self.ffn(modulated_layer_norm(x_BLM, ffn_shift, ffn_scale, self.eps, impl=impl))
        return add_gated(x_BLM, y_BLM.to(x_BLM.dtype), ffn_gate, impl=impl)


class QuantizedBlock(Block):
    """A block of 8-bit linears with per-token scales; for inference, with Block's parameters by the same names.

    Once q, k and v are fused (`WanTransformer.prepare`) every activation is rounded where it is made: norms write 8
    bits, one rounding serves q, k and v, and gate and residual are part of the product before them. Until then it
    computes as Block; in float32 both are equal.
    """

    def __init__(self, config: WanConfig, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__(config, device=device, dtype=dtype)
        self.activation_dtype = PER_TOKEN_DTYPES[config.quant_linear]

    def forward(self, x_BLM: Tensor, modulation_6BM: Tensor, cos_sin: Tensor, kv: KeyValues) -> Tensor:
        """Add the three sublayers to the residual stream x, as Block does; y8: 8-bit values and their scale."""
        attn, cross = self.self_attn, self.cross_attn
        if not attn.fused_qkv:
            return super().forward(x_BLM, modulation_6BM, cos_sin, kv)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation_6BM.unbind()
        norm, impl, low, dtype = self.kernels.norm, self.kernels.linear, self.activation_dtype, x_BLM.dtype
        attn_o, cross_q, cross_o = map(as_quantized, (attn.o, cross.q, cross.o))
        up, down = as_quantized(self.ffn[0]), as_quantized(self.ffn[2])

        y8 = quantized_modulated_layer_norm(x_BLM, shift, scale, self.eps, low, impl=norm)
        y8 = quantize_per_token(attn.attend(attn.project_quantized(y8, dtype), cos_sin), low, impl=impl)
        x_BLM = attn_o.forward_quantized(y8, dtype, gate_BO=gate, residual=x_BLM)

        y8 = quantized_layer_norm(x_BLM, self.norm3.weight, self.norm3.bias, self.eps, low, impl=norm)
        y8 = quantize_per_token(cross.attend(cross_q.forward_quantized(y8, dtype), kv), low, impl=impl)
        x_BLM = cross_o.forward_quantized(y8, dtype, residual=x_BLM)

        y8 = quantized_modulated_layer_norm(x_BLM, ffn_shift, ffn_scale, self.eps, low, impl=norm)
        y8 = quantize_per_token(up.forward_quantized(y8, dtype), low, gelu=True, impl=impl)
        return down.forward_quantized(y8, dtype, gate_BO=ffn_gate, residual=x_BLM)


class SelfAttention(nn.Module):
    """Attention among the video's tokens, their positions by RoPE."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.norm_impl = config.num_heads, config.kernels.norm
        self.q, self.k, self.v, self.o = (
            _linear(config, config.dim, config.dim, device=device, dtype=dtype) for _ in range(4)
        )
        self.norm_q = RMSNorm(config.dim, config.eps, impl=self.norm_impl, device=device)
        self.norm_k = RMSNorm(config.dim, config.eps, impl=self.norm_impl, device=device)
        self.attention = Attention(
            config.attention_type,
            config.num_heads,
            config.head_dim,
            topk=config.sla_topk,
            block_q=config.sla_block_q,
            block_k=config.sla_block_k,
            impl=config.kernels.attention,
            device=device,
        )
        self.fused_qkv = False

    def fuse_qkv(self) -> None:
        """Make q, k and v one product, without a gradient, from now on."""
        fuse_linears((self.q, self.k, self.v))
        self.fused_qkv = True

    def forward(self, x_BLM: Tensor, cos_sin: Tensor) -> Tensor:
        """Attend [B, L, M] to itself; cos_sin [2, L, D // 2]: RoPE's table."""
        if self.fused_qkv:
            return self.o(self.attend(fused_linear((self.q, self.k, self.v), x_BLM), cos_sin))
        q_BLHD = apply_rope(self.norm_q(self.q(x_BLM)).unflatten(-1, (self.num_heads, -1)), cos_sin)
        k_BLHD = apply_rope(self.norm_k(self.k(x_BLM)).unflatten(-1, (self.num_heads, -1)), cos_sin)
        v_BLHD = self.v(x_BLM).unflatten(-1, (self.num_heads, -1))
        return self.o(self.attention(q_BLHD, k_BLHD, v_BLHD).flatten(-2))

    def project_quantized(self, x8: Quantized, dtype: torch.dtype) -> Tensor:
        """Compute q, k and v of an input in 8 bits, after `fuse_qkv`: [B, L, 3 M] in `dtype`."""
        return fused_linear_quantized((self.q, self.k, self.v), x8, dtype)

    def attend(self, qkv_BLC: Tensor, cos_sin: Tensor) -> Tensor:
        """Norm, rotate and attend from the product of q, k and v, [B, L, 3 M]: [B, L, M], before o."""
        M, heads = qkv_BLC.shape[-1] // 3, self.num_heads
        weights = self.norm_q.weight, self.norm_k.weight
        qk = norm_rope_qk(qkv_BLC, *weights, cos_sin, heads, self.norm_q.eps, impl=self.norm_impl)
        v_BLHD = qkv_BLC[..., 2 * M :].unflatten(-1, (heads, -1))
        return self.attention(qk.q_BLHD, qk.k_BLHD, v_BLHD).flatten(-2)


class CrossAttention(nn.Module):
    """Attention from the video's tokens to the prompt's, and to the image's in Wan2.1 I2V; always dense."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        dim, eps, impl = config.dim, config.eps, config.kernels.norm
        self.num_heads, self.dense = config.num_heads, DENSE_IMPL[config.kernels.attention]
        self.q, self.k, self.v, self.o = (_linear(config, dim, dim, device=device, dtype=dtype) for _ in range(4))
        self.norm_q = RMSNorm(dim, eps, impl=impl, device=device)
        self.norm_k = RMSNorm(dim, eps, impl=impl, device=device)
        if config.image_dim is not None:
            self.k_img, self.v_img = (_linear(config, dim, dim, device=device, dtype=dtype) for _ in range(2))
            self.norm_k_img = RMSNorm(dim, eps, impl=impl, device=device)

    def key_value(self, prompt_BSM: Tensor, image_BNM: Tensor | None) -> KeyValues:
        """Project prompt and image embeds, at model width, to keys and values."""
        k_BSHD = self.norm_k(self.k(prompt_BSM)).unflatten(-1, (self.num_heads, -1))
        v_BSHD = self.v(prompt_BSM).unflatten(-1, (self.num_heads, -1))
        if image_BNM is None:
            return k_BSHD, v_BSHD
        k_image_BNHD = self.norm_k_img(self.k_img(image_BNM)).unflatten(-1, (self.num_heads, -1))
        v_image_BNHD = self.v_img(image_BNM).unflatten(-1, (self.num_heads, -1))
        return k_BSHD, v_BSHD, k_image_BNHD, v_image_BNHD

    def forward(self, x_BLM: Tensor, kv: KeyValues) -> Tensor:
        """Attend from x [B, L, M] to the keys and values: [B, L, M]."""
        return self.o(self.attend(self.q(x_BLM), kv))

    def attend(self, q_BLM: Tensor, kv: KeyValues) -> Tensor:
        """Norm and attend from the product of q, [B, L, M]: [B, L, M], before o."""
        q_BLHD = self.norm_q(q_BLM).unflatten(-1, (self.num_heads, -1))
        k_BSHD, v_BSHD, *of_image = kv
        out_BLHD = dense_attention(q_BLHD, k_BSHD, v_BSHD, impl=self.dense)
        if of_image:
            out_BLHD = out_BLHD + dense_attention(q_BLHD, *of_image, impl=self.dense)
        return out_BLHD.flatten(-2)


class Head(nn.Module):
    """Norm, modulation by the time and projection of tokens to patches of the velocity, float32."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None) -> None:
        super().__init__()
        self.eps, self.impl = config.eps, config.kernels.norm
        self.head = nn.Linear(config.dim, config.out_dim * PATCH * PATCH, device=device, dtype=torch.float32)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, device=device, dtype=torch.float32))

    def forward(self, x_BLM: Tensor, time_BM: Tensor) -> Tensor:
        """Project [B, L, M] to patches [B, L, out_dim * 4]."""
        shift, scale = (self.modulation + time_BM[:, None]).unbind(1)
        return self.head(modulated_layer_norm(x_BLM.float(), shift, scale, self.eps, impl=self.impl))


class ImageEmbedding(nn.Module):
    """Projection of CLIP's tokens to model width (Wan2.1 I2V)."""

    def __init__(self, image_dim: int, dim: int, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim, IMAGE_NORM_EPS, device=device),
            nn.Linear(image_dim, image_dim, device=device, dtype=dtype),
            nn.GELU(),
            nn.Linear(image_dim, dim, device=device, dtype=dtype),
            LayerNorm(dim, IMAGE_NORM_EPS, device=device),
        )

    def forward(self, image_embeds_BNE: Tensor) -> Tensor:
        """Project [B, N, image_dim] to [B, N, M]."""
        return self.proj(image_embeds_BNE)


def sinusoid(t_B: Tensor, freq_dim: int) -> Tensor:
    """Embed times as cat(cos, sin) of t * 10000^(-i / half), i < half = freq_dim / 2: float32 [B, freq_dim].

    Computed in float64 (arXiv 1706.03762, section 3.5).
    """
    half = freq_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t_B.device) / half
    angles = t_B.to(torch.float64)[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def patchify(x_BCTHW: Tensor) -> Tensor:
    """Cut [B, C, T, H, W] to tokens in (t, h, w) order with features in (c, h, w) order: [B, L, C * 4]."""
    x = x_BCTHW.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpatchify(patches_BLP: Tensor, grid_THW: tuple[int, int, int]) -> Tensor:
    """Join tokens in (t, h, w) order with features in (h, w, c) order to [B, C, T, H, W]."""
    x = patches_BLP.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, grid_THW)
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def _linear(
    config: WanConfig, features: int, out: int, *, device: torch.device | str | None, dtype: torch.dtype
) -> nn.Module:
    return linear(features, out, kind=config.quant_linear, impl=config.kernels.linear, device=device, dtype=dtype)
