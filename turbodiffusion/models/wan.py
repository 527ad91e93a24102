"""The Wan video diffusion transformer (arXiv 2503.20314, section 4.2): Wan 2.1 and 2.2, T2V and I2V.

One network for all of them; fields of `WanConfig` tell them apart. State dict keys are the original release's.

Shapes: B batch, C channels, T latent frames, H and W latent height and width (after q_, k_, v_: H heads, D head dim),
L tokens of the video, S tokens of the text, N tokens of the image, M model dim, E width of the text or image states.

Precision: `dtype` is that of the blocks' linears, the embeddings and the stream between blocks. The time path, the
modulations, the norms, the gated sums and the head stay float32, as in the original.

A block has two roads. `Block.forward` is op by op, for training and for every kind of linear. `Block._rows`, for 8-bit
linears with row scales after `WanTransformer.prepare`, rounds every activation where it is made: one rounding serves
q, k and v, and gate and residual are part of the product before them.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from turbodiffusion.config import PATCH, WanConfig
from turbodiffusion.nn.attention import DENSE_IMPL, Attention
from turbodiffusion.nn.autocast import no_autocast
from turbodiffusion.nn.linear import ROW_DTYPES, QuantizedLinear, join, joined, joined_product, linear
from turbodiffusion.nn.norm import LayerNorm, RMSNorm
from turbodiffusion.ops.attention.dense import dense_attention
from turbodiffusion.ops.linear.int8 import BLOCK
from turbodiffusion.ops.linear.per_token import quantize_rows, row_linear
from turbodiffusion.ops.norm.gate import add_gated
from turbodiffusion.ops.norm.layer_norm import modulated_layer_norm
from turbodiffusion.ops.norm.qk_rope import norm_rope_qk
from turbodiffusion.ops.norm.quantized_norm import quantized_layer_norm, quantized_modulated_layer_norm
from turbodiffusion.ops.norm.rope import apply_rope, rope_angles, rope_turns, video_turns

IMAGE_NORM_EPS = 1e-5  # of img_emb alone; the other norms use WanConfig.eps


# Keys and values of a block's cross attention, [B, S, H, D] each: of the text, then [B, N, H, D] of the image where
# WanConfig.image_dim is set.
KeyValues = tuple[Tensor, ...]
# What the network reads of a prompt (and image), one entry a block: the same at every step of a video.
Context = tuple[KeyValues, ...]


class SelfAttention(nn.Module):
    """Attention among the video's tokens, positions by RoPE."""

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
        self.joined = False  # q, k and v are one product

    def forward(self, x_BLM: Tensor, turns: Tensor) -> Tensor:
        if self.joined:
            return self.o(self.attend(joined_product((self.q, self.k, self.v), x_BLM), turns))
        q_BLHD = apply_rope(self.norm_q(self.q(x_BLM)).unflatten(-1, (self.num_heads, -1)), turns)
        k_BLHD = apply_rope(self.norm_k(self.k(x_BLM)).unflatten(-1, (self.num_heads, -1)), turns)
        v_BLHD = self.v(x_BLM).unflatten(-1, (self.num_heads, -1))
        return self.o(self.attention(q_BLHD, k_BLHD, v_BLHD).flatten(-2))

    def of_rows(self, rows: tuple[Tensor, Tensor], dtype: torch.dtype, turns: Tensor) -> Tensor:
        """As `forward` up to o, from an input in 8 bits."""
        weight, scale, bias = joined((self.q, self.k, self.v))
        impl = cast("QuantizedLinear", self.q).impl
        return self.attend(row_linear(*rows, weight, scale, bias, dtype=dtype, impl=impl), turns)

    def attend(self, qkv_BLC: Tensor, turns: Tensor) -> Tensor:
        """[B, L, M] from the product of q, k and v, [B, L, 3 M]."""
        M, heads = qkv_BLC.shape[-1] // 3, self.num_heads
        weights = self.norm_q.weight, self.norm_k.weight
        qk = norm_rope_qk(qkv_BLC, *weights, turns, heads, self.norm_q.eps, impl=self.norm_impl)
        v_BLHD = qkv_BLC[..., 2 * M :].unflatten(-1, (heads, -1))
        return self.attention(qk.q_BLHD, qk.k_BLHD, v_BLHD).flatten(-2)


class CrossAttention(nn.Module):
    """Attention from the video's tokens to the text's, and to the image's in Wan2.1 I2V; always dense."""

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

    def key_value(self, text_BSM: Tensor, image_BNM: Tensor | None) -> KeyValues:
        k_BSHD = self.norm_k(self.k(text_BSM)).unflatten(-1, (self.num_heads, -1))
        v_BSHD = self.v(text_BSM).unflatten(-1, (self.num_heads, -1))
        if image_BNM is None:
            return k_BSHD, v_BSHD
        k_image_BNHD = self.norm_k_img(self.k_img(image_BNM)).unflatten(-1, (self.num_heads, -1))
        v_image_BNHD = self.v_img(image_BNM).unflatten(-1, (self.num_heads, -1))
        return k_BSHD, v_BSHD, k_image_BNHD, v_image_BNHD

    def forward(self, x_BLM: Tensor, kv: KeyValues) -> Tensor:
        return self.o(self.attend(self.q(x_BLM), kv))

    def attend(self, q_BLM: Tensor, kv: KeyValues) -> Tensor:
        """[B, L, M] from the product of q."""
        q_BLHD = self.norm_q(q_BLM).unflatten(-1, (self.num_heads, -1))
        k_BSHD, v_BSHD, *of_image = kv
        out_BLHD = dense_attention(q_BLHD, k_BSHD, v_BSHD, impl=self.dense)
        if of_image:
            out_BLHD = out_BLHD + dense_attention(q_BLHD, *of_image, impl=self.dense)
        return out_BLHD.flatten(-2)


class Block(nn.Module):
    """Self-attention and ffn, modulated and gated by the time; cross attention to the prompt between them."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.kernels = config.eps, config.kernels
        self.row_dtype = ROW_DTYPES.get(config.quant_linear)
        self.self_attn = SelfAttention(config, device=device, dtype=dtype)
        self.norm3 = LayerNorm(config.dim, config.eps, impl=config.kernels.norm, device=device)
        self.cross_attn = CrossAttention(config, device=device, dtype=dtype)
        self.ffn = nn.Sequential(
            _linear(config, config.dim, config.ffn_dim, device=device, dtype=dtype),
            nn.GELU(approximate="tanh"),
            _linear(config, config.ffn_dim, config.dim, device=device, dtype=dtype),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim, device=device, dtype=torch.float32))

    def forward(self, x_BLM: Tensor, modulation_6BM: Tensor, turns: Tensor, kv: KeyValues) -> Tensor:
        if self.row_dtype is not None and self.self_attn.joined:
            return self._rows(x_BLM, self.row_dtype, modulation_6BM, turns, kv)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation_6BM.unbind()
        impl = self.kernels.norm
        # Under autocast the linears' results are narrower than the stream.
        y_BLM = self.self_attn(modulated_layer_norm(x_BLM, shift, scale, self.eps, impl=impl), turns)
        x_BLM = add_gated(x_BLM, y_BLM.to(x_BLM.dtype), gate, impl=impl)
        x_BLM = x_BLM + self.cross_attn(self.norm3(x_BLM), kv)
        y_BLM = self.ffn(modulated_layer_norm(x_BLM, ffn_shift, ffn_scale, self.eps, impl=impl))
        return add_gated(x_BLM, y_BLM.to(x_BLM.dtype), ffn_gate, impl=impl)

    def _rows(self, x_BLM: Tensor, to: torch.dtype, modulation_6BM: Tensor, turns: Tensor, kv: KeyValues) -> Tensor:
        """`forward` with activations in 8 bits, of dtype `to`, between the products and what surrounds them."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation_6BM.unbind()
        norm, impl, dtype = self.kernels.norm, self.kernels.linear, x_BLM.dtype
        attn_o, cross_q, cross_o, up, down = (
            cast("QuantizedLinear", layer)
            for layer in (self.self_attn.o, self.cross_attn.q, self.cross_attn.o, self.ffn[0], self.ffn[2])
        )
        y = quantized_modulated_layer_norm(x_BLM, shift, scale, self.eps, to, impl=norm)
        y = quantize_rows(self.self_attn.of_rows(y, dtype, turns), to, impl=impl)
        x_BLM = attn_o.of_rows(y, dtype, gate_BO=gate, residual=x_BLM)

        y = quantized_layer_norm(x_BLM, self.norm3.weight, self.norm3.bias, self.eps, to, impl=norm)
        y = quantize_rows(self.cross_attn.attend(cross_q.of_rows(y, dtype), kv), to, impl=impl)
        x_BLM = cross_o.of_rows(y, dtype, residual=x_BLM)

        y = quantized_modulated_layer_norm(x_BLM, ffn_shift, ffn_scale, self.eps, to, impl=norm)
        y = quantize_rows(up.of_rows(y, dtype), to, gelu=True, impl=impl)
        return down.of_rows(y, dtype, gate_BO=ffn_gate, residual=x_BLM)


class Head(nn.Module):
    """Tokens to patches of velocity, float32."""

    def __init__(self, config: WanConfig, *, device: torch.device | str | None) -> None:
        super().__init__()
        self.eps, self.impl = config.eps, config.kernels.norm
        self.head = nn.Linear(config.dim, config.out_dim * PATCH * PATCH, device=device, dtype=torch.float32)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, device=device, dtype=torch.float32))

    def forward(self, x_BLM: Tensor, time_BM: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_BM[:, None]).unbind(1)
        return self.head(modulated_layer_norm(x_BLM.float(), shift, scale, self.eps, impl=self.impl))


class ImageEmbedding(nn.Module):
    """CLIP tokens [B, N, image_dim] to model width (Wan2.1 I2V)."""

    def __init__(self, image_dim: int, dim: int, *, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim, IMAGE_NORM_EPS, device=device),
            nn.Linear(image_dim, image_dim, device=device, dtype=dtype),
            nn.GELU(),
            nn.Linear(image_dim, dim, device=device, dtype=dtype),
            LayerNorm(dim, IMAGE_NORM_EPS, device=device),
        )

    def forward(self, image_BNE: Tensor) -> Tensor:
        return self.proj(image_BNE)


class WanTransformer(nn.Module):
    """Velocity of a noisy latent, given its time and what it shall show.

    Built on any device but "meta" it is initialised for training (`reset_parameters`).
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
        self.blocks = nn.ModuleList(Block(config, device=device, dtype=dtype) for _ in range(config.num_layers))
        self.head = Head(config, device=device)
        if not self.patch_embedding.weight.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise for training from scratch as the original does; a velocity of zero at first."""
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
        """Make it ready for inference: q, k and v of each self-attention become one product. Returns itself.

        Call it after the weights are loaded; the network keeps its state dict and has no gradient for q, k and v from
        then on. In int8 blocks they stay apart where the width is not in whole blocks, whose scales would span two.
        """
        whole = self.config.quant_linear != "int8_block" or self.config.dim % BLOCK == 0
        for block in cast("Iterable[Block]", self.blocks):
            attention = block.self_attn
            attention.joined = whole
            if whole:
                join((attention.q, attention.k, attention.v))
        return self

    def encode_context(self, text_BSE: Tensor, image_BNE: Tensor | None = None) -> Context:
        """Project the prompt, and take the keys and values of every cross attention: once a video.

        text_BSE: the text encoder's states [B, text_len, text_dim], zeros past each prompt's end (they are attended).
        image_BNE: the image encoder's [B, N, image_dim], for a network with image_dim and only for one.
        Raises ValueError where the states do not fit the network.
        """
        config = self.config
        if text_BSE.ndim != 3 or tuple(text_BSE.shape[1:]) != (config.text_len, config.text_dim):
            raise ValueError(f"text_BSE must be [B, {config.text_len}, {config.text_dim}], got {list(text_BSE.shape)}")
        if (image_BNE is None) != (config.image_dim is None):
            raise ValueError(
                f"image_BNE {'is needed' if image_BNE is None else 'fits no network'} with image_dim {config.image_dim}"
            )
        text_BSM = self.text_embedding(text_BSE.to(self.dtype))
        image_BNM = None if image_BNE is None else self.img_emb(image_BNE.to(self.dtype))
        blocks = cast("Iterable[Block]", self.blocks)
        return tuple(block.cross_attn.key_value(text_BSM, image_BNM) for block in blocks)

    def time_modulation(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """The time as the head reads it, [B, M], and as the blocks do, [B, 6, M]; float32, of t_B alone."""
        if self.config.round_time_to_bf16:
            t_B = t_B.to(torch.bfloat16)
        with no_autocast(t_B.device):
            time_BM = self.time_embedding(sinusoid(t_B, self.config.freq_dim))
            return time_BM, self.time_projection(time_BM).unflatten(-1, (6, -1))

    def forward(self, x_BCTHW: Tensor, t_B: Tensor, context: Context) -> Tensor:
        """Velocity [B, out_dim, T, H, W], float32.

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

        time_BM, time_B6M = self.time_modulation(t_B)
        make_turns: Callable[..., Tensor]
        if torch.compiler.is_compiling():
            make_turns = video_turns  # a cache keyed by sizes cannot be traced: the operator runs once a forward
        elif x_BCTHW.is_cuda and torch.cuda.is_current_stream_capturing():
            make_turns = _turns  # as part of the graph: what the cache holds may be gone when it is replayed
        else:
            make_turns = _cached_turns
        turns = make_turns(*grid, config.head_dim, x_BCTHW.device)
        x_BLM = self.patch_embedding(patchify(x_BCTHW).to(self.dtype)).to(self.dtype)
        blocks = cast("Iterable[Block]", self.blocks)
        # One sum for all blocks, [N, 6, B, M] with N blocks, instead of one small one in each.
        modulations = torch.stack([block.modulation[0] for block in blocks])[:, :, None] + time_B6M.transpose(0, 1)
        for block, modulation_6BM, kv in zip(blocks, modulations, context, strict=True):
            x_BLM = block(x_BLM, modulation_6BM, turns, kv)
        with no_autocast(x_BLM.device):
            patches_BLP = self.head(x_BLM, time_BM)
        return unpatchify(patches_BLP, grid)


def sinusoid(t_B: Tensor, freq_dim: int) -> Tensor:
    """cat(cos, sin) of t * 10000^(-i / half) for i below half = freq_dim / 2: float32 [B, freq_dim], float64 inside."""
    half = freq_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t_B.device) / half
    angles = t_B.to(torch.float64)[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def _turns(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """RoPE's cosines and sines for a size of video.

    Not as the operator: outside of torch.compile its first call imports the compiler, for a second and more.
    """
    return rope_turns(rope_angles((time, height, width), head_dim, device=device))


@lru_cache(maxsize=4)
def _cached_turns(time: int, height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """`_turns`, kept for the next step and the next video of that size."""
    with torch.inference_mode(False):  # training may use what generation computed first
        return _turns(time, height, width, head_dim, device)


def patchify(x_BCTHW: Tensor) -> Tensor:
    """[B, C, T, H, W] to tokens in (t, h, w) order with features in (c, h, w) order: [B, L, C * 4]."""
    x = x_BCTHW.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpatchify(patches_BLP: Tensor, grid_THW: tuple[int, int, int]) -> Tensor:
    """Tokens in (t, h, w) order with features in (h, w, c) order to [B, C, T, H, W]."""
    x = patches_BLP.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, grid_THW)
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def _linear(
    config: WanConfig, features: int, out: int, *, device: torch.device | str | None, dtype: torch.dtype
) -> nn.Module:
    return linear(features, out, kind=config.quant_linear, impl=config.kernels.linear, device=device, dtype=dtype)
