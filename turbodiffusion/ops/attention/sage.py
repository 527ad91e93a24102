"""SageAttention: dense attention in 8 bits (arXiv 2410.02367; p and v in fp8 as in SageAttention2, arXiv 2411.10958).

    S = (q8 k8^T) * scale_q * scale_k / sqrt(D)     q8, k8: one scale per block and head, k less its mean over S
    P = exp(S - max S),  total = sum P              float32
    O = (fp8(448 P) v8) * scale_v / (448 total)     v8: fp8 with one scale per channel

The mean of k adds the same number to all scores of a row, which the softmax cancels; without it the 8 bits resolve
more. This emulates the arithmetic in float32. A sum of D int8 products stays below 2^24 for every D up to 1040, so
float32 holds the int32 scores exactly. P is rounded relative to its row's final maximum; a kernel that rounds it
relative to the maximum so far rounds differently, with the same relative precision.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.ops.attention.sla import heads_first, heads_last, kept_keys, take_rows
from turbodiffusion.ops.contract import FLOATS, check_dtype, check_layout, check_no_grad, check_triton, select_impl
from turbodiffusion.ops.rounding import FP8, FP8_MAX, to_fp8, to_int8


@dataclass(frozen=True)
class QuantizedQKV:
    """What an 8-bit attention kernel reads."""

    q_BLHD: Tensor  # int8, or fp8 on request
    q_scale_BHN: Tensor  # float32, one per block of queries and head
    k_BSHD: Tensor  # as q, less the mean over S
    k_scale_BHN: Tensor
    v_BSHD: Tensor  # fp8
    v_scale_BHD: Tensor  # float32, one per channel


def sage_attention(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 64,
    qk: str = "int8",
    impl: str = "reference",
) -> Tensor:
    """Attend from every query to all keys in 8 bits: [B, L, H, D] in q's dtype. No gradient.

    `qk` is the format of q and k: "int8" (127 levels a side, amax / 127) or "fp8" (amax / 448).
    Raises ValueError for shapes or dtypes that do not agree, or when a gradient is asked for.
    """
    check_layout("sage_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    check_dtype("sage_attention", FLOATS, q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    check_no_grad("sage_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    attend = select_impl("sage_attention", impl, {"reference": _reference, "triton": _triton})
    return attend(q_BLHD, k_BSHD, v_BSHD, block_q, block_k, qk)


def quantize(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, block_q: int, block_k: int, qk: str) -> QuantizedQKV:
    """Round q, k and v to 8 bits; a ragged last block has its own scale. Raises ValueError for an unknown `qk`."""
    k = k_BSHD.float()
    return QuantizedQKV(
        *_by_block(q_BLHD, block_q, qk),
        *_by_block(k - k.mean(dim=1, keepdim=True), block_k, qk),
        *_by_channel(v_BSHD),
    )


def attend_quantized(
    x: QuantizedQKV, tiles: Iterable[tuple[slice, Tensor, Tensor]], block_q: int, block_k: int, dtype: torch.dtype
) -> Tensor:
    """Attend to the keys that each tile of `sla.kept_keys` names: [B, L, H, D] in `dtype`."""
    B, L, _, D = x.q_BLHD.shape
    S = x.k_BSHD.shape[1]
    q, k, v = (heads_first(values.float()) for values in (x.q_BLHD, x.k_BSHD, x.v_BSHD))
    q_scale, k_scale = (
        scale.flatten(0, 1).repeat_interleave(block, dim=1)[:, :tokens, None]
        for scale, block, tokens in ((x.q_scale_BHN, block_q, L), (x.k_scale_BHN, block_k, S))
    )
    v_scale = x.v_scale_BHD.flatten(0, 1)[:, None]
    out = torch.empty_like(q)
    for rows, keys, beyond in tiles:
        scores = (q[:, rows] @ take_rows(k, keys).mT) * q_scale[:, rows] * take_rows(k_scale, keys).mT * D**-0.5
        scores = scores.masked_fill_(beyond, -torch.inf)
        p = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        p8 = (p * FP8_MAX).to(FP8).float()
        out[:, rows] = (p8 @ take_rows(v, keys)) * v_scale / (FP8_MAX * p.sum(dim=-1, keepdim=True))
    return heads_last(out, B).to(dtype)


def _reference(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, block_q: int, block_k: int, qk: str) -> Tensor:
    B, L, H, _ = q_BLHD.shape
    S = k_BSHD.shape[1]
    all_blocks = torch.arange(-(-S // block_k), dtype=torch.int32, device=q_BLHD.device)
    tiles = kept_keys(all_blocks.expand(B, H, -(-L // block_q), -1), S, block_q, block_k)
    quantized = quantize(q_BLHD, k_BSHD, v_BSHD, block_q, block_k, qk)
    return attend_quantized(quantized, tiles, block_q, block_k, q_BLHD.dtype)


def _triton(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, block_q: int, block_k: int, qk: str) -> Tensor:
    check_triton("sage_attention", q_BLHD=q_BLHD, k_BSHD=k_BSHD, v_BSHD=v_BSHD)
    # imports triton, which not every machine has
    from turbodiffusion.ops.attention.kernels.sage import sage_attention as kernel

    return kernel(q_BLHD, k_BSHD, v_BSHD, block_q, block_k, qk)


def _by_block(x_BLHD: Tensor, block: int, qk: str) -> tuple[Tensor, Tensor]:
    """Round with one scale per block of tokens and head: 8-bit [B, L, H, D] and scale [B, H, N]."""
    formats = {"int8": to_int8, "fp8": to_fp8}
    if qk not in formats:
        raise ValueError(f"qk: unknown format {qk!r}, expected 'int8' or 'fp8'")
    rounding = formats[qk]
    parts = [rounding(x, x.abs().amax(dim=(1, 3), keepdim=True)) for x in x_BLHD.split(block, dim=1)]
    values, scales = zip(*parts, strict=True)
    return torch.cat(values, dim=1), torch.cat(scales, dim=1).squeeze(-1).transpose(1, 2).contiguous()


def _by_channel(v_BSHD: Tensor) -> tuple[Tensor, Tensor]:
    """Round with one scale per channel: fp8 [B, S, H, D] and scale [B, H, D]."""
    values, scale = to_fp8(v_BSHD, v_BSHD.abs().amax(dim=1, keepdim=True))
    return values, scale[:, 0]
