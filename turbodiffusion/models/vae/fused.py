"""The fused Wan VAE: the layers of `layers.py` with one kernel between each two convolutions.

Counted for 81 frames at 832x480 in bfloat16 on an H200. The decoder's convolutions are 274 TFLOP: 97 of 3x3x3 at 96
channels, 97 at 192, 55 at 384, 24 to sample up. Winograd's way along time makes two thirds of the first 249, folding
the upsampling 4/9 of most of the rest: 178 TFLOP. At what cuDNN does there with channels innermost (425, 629 and 722
TFLOP/s) they take 0.33 s, against 0.50 s. A full-resolution tensor has 6.2 GB, 1.5 ms to read or to write at 4.2 TB/s:
the last stage's kernels make 34 such passes, with half and an eighth as many bytes in the stages before, 0.09 s in all.

How:
- `norm_silu` adds the bias of the convolution before it and the residual, norms, activates, and writes what the
  next convolution reads, with the frames that it must cache.
- 3x3x3 convolutions of an even number of frames are four 2D ones for each two frames (`ops/vae/winograd.py`).
- Nearest upsampling to twice the size and then a 3x3 convolution are four 2x2 convolutions of the small picture, one
  for each phase (row and column even or odd), with the sums of the taps that meet the same position: 2.25 times less
  work, and the large picture before the convolution is never made.
- The last convolution, to 3 channels, is `conv3d_few_channels`.
- Two latent frames are decoded at once, because one does not fill a large GPU in the early stages.
- cuDNN takes the algorithms that it expects to be best. To time them at each new shape (`cudnn.benchmark`) made a video
  on an H200 0.02 s quicker and a process's first 0.75 s slower, and the choice, so the last bits, could differ from one
  process to the next.

Activations are [B, T, H, W, C] with the channels innermost. `PendingSum` is a tensor of the residual stream that is not
added up yet. Weights in the form that is used here are made anew for each video: milliseconds, and never out of date.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbodiffusion.models.vae.layers import (
    AttentionBlock,
    Decoder,
    Downsample,
    Encoder,
    PointwiseConv3d,
    ResidualBlock,
    Upsample,
)
from turbodiffusion.ops.vae.conv3d_few_channels import conv3d_few_channels
from turbodiffusion.ops.vae.norm_silu import norm_silu
from turbodiffusion.ops.vae.winograd import WinogradProducts, transform_weight

Cache = Any  # of a layer: None at the clip's start, then what the layer returned for the next chunk


@dataclass(frozen=True)
class Choices:
    """Ways to the same result; the defaults are the fastest known. `impl` is that of the ops."""

    impl: str = "triton"
    fold_upsample: bool = True  # four 2x2 convolutions instead of an upsampled picture
    winograd: bool = True  # 3x3x3 convolutions on an even number of frames by `winograd.py`
    few_channels_head: bool = True  # conv3d_few_channels for the last convolution
    write_out_attention: bool = False  # two products and a softmax instead of PyTorch's fused attention
    pair_columns: int = 0  # convolutions to at most so many channels make two columns at once (`pair_columns`)


@dataclass(frozen=True)
class PendingSum:
    """x + bias + residual; x may be the phases of a picture twice as large, or products (`norm_silu`)."""

    x: Tensor | Sequence[Tensor] | WinogradProducts
    bias_C: Tensor | None = None
    residual: Tensor | None = None


@dataclass(frozen=True)
class Convolution:
    """A convolution's weight with its input channels innermost, and its bias; without gradients."""

    weight: Tensor
    bias: Tensor
    transformed: tuple[Tensor, ...] = ()  # its 2D kernels by `winograd.py`, where they are used
    paired: Tensor | None = None  # `pair_columns` of it, for pictures of an even width


Layer = Callable[[PendingSum, Cache], tuple[PendingSum, Cache]]


class FusedCoder:
    """Encode or decode the chunks of one clip, in order, with the weights of `coder`.

    The first chunk is one frame, [B, C, 1, H, W], each later one any number. Returns [B, C', T', H', W'] with the
    channels innermost in memory.
    """

    def __init__(self, coder: Encoder | Decoder, choices: Choices = Choices()) -> None:
        self._choices = choices
        first, layers = (
            (coder.downsamples, coder.middle) if isinstance(coder, Encoder) else (coder.middle, coder.upsamples)
        )
        conv_in = _convolution(coder.conv1)
        self._conv_in = Convolution(_innermost(_pad_channels(conv_in.weight, 1)), conv_in.bias)
        self._layers = [self._layer(module) for module in (*first, *layers)]
        self._gamma_out, self._conv_out = _gamma(coder.head["0"]), _convolution(coder.head["2"])
        self._few = choices.few_channels_head and isinstance(coder, Decoder)
        self._cache_in: Tensor | None = None
        self._caches: list[Cache] = [None] * len(self._layers)
        self._cache_out: Tensor | None = None

    @torch.no_grad()
    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        impl = self._choices.impl
        x = _pad_channels(x_BCTHW.movedim(1, -1), 4)
        seen = norm_silu(x, cache_BNHWC=self._cache_in, cache_frames=2, impl=impl)
        self._cache_in = seen.cache_BNHWC
        pending = PendingSum(_convolve(seen.y, self._conv_in), self._conv_in.bias)
        for index, layer in enumerate(self._layers):
            # Handed over, so that a layer can free it once it is added up, before its own convolutions.
            handed = [pending]
            del pending
            pending, self._caches[index] = layer(handed.pop(), self._caches[index])
        y, self._cache_out, _ = _norm_silu(pending, self._gamma_out, self._cache_out, 2, impl)
        del pending
        if self._few:
            return conv3d_few_channels(y, self._conv_out.weight, self._conv_out.bias, impl=impl).movedim(-1, 1)
        return (_convolve(y, self._conv_out) + self._conv_out.bias).movedim(-1, 1)

    def _layer(self, module: nn.Module) -> Layer:
        if isinstance(module, ResidualBlock):
            return residual_block(module, self._choices)
        if isinstance(module, AttentionBlock):
            return attention_block(module, self._choices)
        if isinstance(module, Downsample):
            return downsample(module, self._choices)
        assert isinstance(module, Upsample)
        return upsample(module, self._choices)


def residual_block(block: ResidualBlock, choices: Choices) -> Layer:
    """Fuse `layers.ResidualBlock`: two norm_silu passes, two convolutions, and a sum left pending."""
    gamma_1, gamma_2 = _gamma(block.residual["0"]), _gamma(block.residual["3"])
    conv_1, conv_2 = (_block_convolution(block.residual[place], choices) for place in ("2", "6"))
    shortcut = _convolution(block.shortcut) if isinstance(block.shortcut, PointwiseConv3d) else None
    bias = conv_2.bias if shortcut is None else conv_2.bias + shortcut.bias

    def run(pending: PendingSum, cache: Cache) -> tuple[PendingSum, Cache]:
        cache_1, cache_2 = cache or (None, None)
        transform = choices.winograd and _frames(pending) % 2 == 0
        y, cache_1, x = _norm_silu(pending, gamma_1, cache_1, 2, choices.impl, keep_sum=True, transform=transform)
        del pending
        h = _convolve_transformed(y, conv_1) if transform else _convolve(y, conv_1)
        del y
        y, cache_2, _ = _norm_silu(PendingSum(h, conv_1.bias), gamma_2, cache_2, 2, choices.impl, transform=transform)
        del h
        residual = x if shortcut is None else F.linear(x, shortcut.weight.flatten(1))
        h = _convolve_transformed(y, conv_2) if transform else _convolve(y, conv_2)
        return PendingSum(h, bias, residual), (cache_1, cache_2)

    return run


def attention_block(block: AttentionBlock, choices: Choices) -> Layer:
    """Fuse `layers.AttentionBlock`: one norm_silu pass before the attention among a frame's positions."""
    gamma = _gamma(block.norm)

    def run(pending: PendingSum, cache: Cache) -> tuple[PendingSum, Cache]:
        y, _, x = _norm_silu(pending, gamma, None, 0, choices.impl, activate=False, keep_sum=True)
        del pending
        B, T, H, W, C = y.shape
        qkv = F.linear(y.view(B * T, H * W, C), block.to_qkv.weight.flatten(1), block.to_qkv.bias)
        q_NLC, k_NLC, v_NLC = qkv.chunk(3, dim=-1)
        h = (attend_written_out if choices.write_out_attention else attend)(q_NLC, k_NLC, v_NLC)
        h = F.linear(h, block.proj.weight.flatten(1), block.proj.bias)
        return PendingSum(h.view(B, T, H, W, C), None, x), None

    return run


def attend(q_NLC: Tensor, k_NLC: Tensor, v_NLC: Tensor) -> Tensor:
    """Attend with one head among the positions of each frame, [N, L, C] each."""
    return F.scaled_dot_product_attention(q_NLC[:, None], k_NLC[:, None], v_NLC[:, None])[:, 0]


def attend_written_out(q_NLC: Tensor, k_NLC: Tensor, v_NLC: Tensor) -> Tensor:
    """Attend with the scores in memory, in float32: fused kernels are not made for a head of 384 channels."""
    if q_NLC.is_cuda and q_NLC.dtype != torch.float32:
        scores = torch.bmm(q_NLC, k_NLC.transpose(1, 2), out_dtype=torch.float32)
    else:
        scores = q_NLC.float() @ k_NLC.float().transpose(1, 2)
    weights = scores.mul_(q_NLC.shape[-1] ** -0.5).softmax(-1).to(v_NLC.dtype)
    return weights @ v_NLC


def downsample(layer: Downsample, choices: Choices) -> Layer:
    """Fuse `layers.Downsample`."""
    conv = _convolution(layer.resample["1"])
    time_conv = None if layer.time_conv is None else _convolution(layer.time_conv)

    def run(pending: PendingSum, cache: Cache) -> tuple[PendingSum, Cache]:
        x = _materialize(pending, choices.impl)
        # The odd row and column of padding are at the bottom and right.
        h = _convolve_frames(F.pad(x, (0, 0, 0, 1, 0, 1)), conv.weight, stride=2, padding=0)
        if time_conv is None:
            return PendingSum(h, conv.bias), None
        if cache is None:
            assert h.shape[1] == 1, "a clip starts with one frame"
            first = _materialize(PendingSum(h, conv.bias), choices.impl)
            return PendingSum(first), first.clone()
        y, cache, _ = _norm_silu(PendingSum(h, conv.bias), None, cache, 1, choices.impl)
        return PendingSum(_convolve(y, time_conv, stride=2), time_conv.bias), cache

    return run


def upsample(layer: Upsample, choices: Choices) -> Layer:
    """Fuse `layers.Upsample`, nearest upsampling folded into its convolution (`fold_upsample`)."""
    conv = _convolution(layer.resample["1"])
    time_conv = None if layer.time_conv is None else _convolution(layer.time_conv)
    bias, kernels = conv.bias, fold_upsample(conv.weight) if choices.fold_upsample else (conv.weight,)
    weights = tuple(map(_innermost, kernels))

    def run(pending: PendingSum, cache: Cache) -> tuple[PendingSum, Cache]:
        if time_conv is None or cache is None:
            x = _materialize(pending, choices.impl)
            del pending
            if time_conv is not None:
                assert x.shape[1] == 1, "a clip starts with one frame"
                # The temporal convolution starts at the clip's second frame, with zeros before it.
                cache = torch.zeros_like(x).expand(-1, 2, -1, -1, -1)
        else:
            y, cache, _ = _norm_silu(pending, None, cache, 2, choices.impl)
            del pending
            x = _double_frames(_convolve(y, time_conv) + time_conv.bias)
        return PendingSum(_upsampled_convolution(x, weights), bias), cache

    return run


def fold_upsample(weight_OCHW: Tensor) -> tuple[Tensor, ...]:
    """Fold a 3x3 kernel after nearest upsampling into four 2x2 ones, of the phases (row, column).

    Of three taps in a row of the large picture two meet the same position of the small one: the last two in an even
    phase, the first two in an odd one. Their sum is rounded once, to the weight's dtype. The picture is padded by 1.
    """
    phases = []
    for row in range(2):
        rows = _fold_axis(weight_OCHW.float(), 2, row)
        phases += [_fold_axis(rows, 3, column).to(weight_OCHW.dtype) for column in range(2)]
    return tuple(phases)


def _fold_axis(weight: Tensor, dim: int, phase: int) -> Tensor:
    a, b, c = weight.unbind(dim)
    return torch.stack((a, b + c) if phase == 0 else (a + b, c), dim)


def _upsampled_convolution(x_BTHWC: Tensor, weights: Sequence[Tensor]) -> Tensor | list[Tensor]:
    if len(weights) == 1:
        x_NCHW = x_BTHWC.flatten(0, 1).movedim(-1, 1)
        x_NCHW = F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest-exact")
        return _convolve_frames(x_NCHW.movedim(1, -1).unflatten(0, x_BTHWC.shape[:2]), weights[0], padding=1)
    H, W = x_BTHWC.shape[2:4]
    # Padded by 1 on every side, a 2x2 convolution gives one row and column more than the picture has.
    phases = [_convolve_frames(x_BTHWC, weight, padding=1) for weight in weights]
    return [h[:, :, n // 2 : n // 2 + H, n % 2 : n % 2 + W] for n, h in enumerate(phases)]


def _double_frames(pairs_BTHWC: Tensor) -> Tensor:
    """Split each frame into two: the first half of the channels is the earlier one."""
    return pairs_BTHWC.unflatten(-1, (2, -1)).movedim(4, 2).contiguous().flatten(1, 2)


def pair_columns(weight_OCTHW: Tensor) -> Tensor:
    """Widen a kernel to [2 * O, C, 3, 3, 4], which makes the output columns 2j and 2j + 1 at a stride of 2 along rows.

    A third more work, in a product twice as wide, which tensor cores are better at where O is small. With the channels
    innermost the output [.., W / 2, 2 * O] is [.., W, O] in memory.
    """
    return torch.cat((F.pad(weight_OCTHW, (0, 1)), F.pad(weight_OCTHW, (1, 0))))


def _norm_silu(
    pending: PendingSum,
    gamma: Tensor | None,
    cache: Tensor | None,
    cache_frames: int,
    impl: str,
    *,
    activate: bool = True,
    keep_sum: bool = False,
    transform: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, its last frames, and the residual stream itself if `keep_sum`: else nothing keeps x alive."""
    plain = isinstance(pending.x, Tensor) and pending.bias_C is None and pending.residual is None
    out = norm_silu(
        pending.x,
        gamma,
        bias_C=pending.bias_C,
        residual_BTHWC=pending.residual,
        cache_BNHWC=cache,
        cache_frames=cache_frames,
        activate=activate,
        keep_sum=keep_sum and not plain,
        transform=transform,
        impl=impl,
    )
    kept = pending.x if keep_sum and plain else out.sum_BTHWC
    return out.y, out.cache_BNHWC, kept  # type: ignore[return-value]


def _materialize(pending: PendingSum, impl: str) -> Tensor:
    return _norm_silu(pending, None, None, 0, impl)[0]


def _convolve(x_BPHWC: Tensor, conv: Convolution, *, stride: int = 1) -> Tensor:
    """Convolve without bias and, in time, without padding: PyTorch would add a bias in a pass of its own."""
    x_BCTHW = x_BPHWC.movedim(-1, 1)
    if conv.paired is not None and x_BPHWC.shape[3] % 2 == 0:
        y_BCTHW = F.conv3d(x_BCTHW, conv.paired, stride=(1, 1, 2), padding=(0, 1, 1))
        return y_BCTHW.movedim(1, -1).contiguous().unflatten(-1, (2, -1)).flatten(3, 4)
    padding = (0, conv.weight.shape[3] // 2, conv.weight.shape[4] // 2)
    return F.conv3d(x_BCTHW, conv.weight, stride=(stride, 1, 1), padding=padding).movedim(1, -1).contiguous()


def _convolve_transformed(v: Tensor, conv: Convolution) -> WinogradProducts:
    """Convolve v [4, B, T / 2, H, W, C] to the frames [B, T, H, W, C'], as products."""
    a, b, c, d = (_convolve_frames(x, kernel, padding=1) for x, kernel in zip(v, conv.transformed, strict=True))
    return WinogradProducts((a, b, c, d))


def _convolve_frames(x_BTHWC: Tensor, weight: Tensor, *, padding: int, stride: int = 1) -> Tensor:
    y_NCHW = F.conv2d(x_BTHWC.flatten(0, 1).movedim(-1, 1), weight, stride=stride, padding=padding)
    return y_NCHW.movedim(1, -1).contiguous().unflatten(0, x_BTHWC.shape[:2])


def _gamma(norm: Any) -> Tensor:
    return norm.gamma.detach().flatten()


def _frames(pending: PendingSum) -> int:
    x = pending.x
    return 2 * x.m[0].shape[1] if isinstance(x, WinogradProducts) else (x if isinstance(x, Tensor) else x[0]).shape[1]


def _convolution(conv: Any) -> Convolution:
    return Convolution(_innermost(conv.weight.detach()), conv.bias.detach())


def _block_convolution(conv: Any, choices: Choices) -> Convolution:
    """Return it with the other forms of its weight that are going to be used."""
    weight = conv.weight.detach()
    kernels = transform_weight(weight) if choices.winograd else ()
    paired = _innermost(pair_columns(weight)) if len(weight) <= choices.pair_columns else None
    return replace(_convolution(conv), transformed=tuple(map(_innermost, kernels)), paired=paired)


def _innermost(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last_3d if weight.ndim == 5 else torch.channels_last)


def _pad_channels(x: Tensor, dim: int) -> Tensor:
    """Append zeros up to a multiple of 8 channels, which tensor cores ask for: the encoder's picture has 3."""
    missing = -x.shape[dim] % 8
    return x if not missing else torch.cat((x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])), dim)
