"""The layers of the Wan2.1 video VAE (`model.py`): plain PyTorch, differentiable, on any device.

Every layer that looks back in time is a function (x, cache) -> (y, cache): `cache` holds the frames that it must
remember and is used up by the call, `None` means that x starts the clip. A clip in one call (training) and a clip in
chunks are therefore the same code and agree to rounding. Shape suffixes: B batch, C channels, T frames at any stage, F
video frames, H and W height and width at any stage, N = B * T frames folded into the batch, L = H * W positions.

Activations are kept in the channels_last_3d layout: there, folding the frames into the batch is free.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbodiffusion.config import VAEConfig

# What a layer keeps of the frames before x: a tensor [B, C, frames, H, W], a sequence of such for a block of
# layers; None at the start of the clip, and for a layer that does not look back.
Cache = Any


class CausalConv3d(nn.Conv3d):
    """A convolution whose output at a frame sees no later frame; zeros stand before the clip."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3), time_stride: int = 1
    ) -> None:
        padding = (0, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1), padding=padding)

    def forward(self, x_BCTHW: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        cached_frames = self.kernel_size[0] - self.stride[0]
        if cache is None:
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, cached_frames, 0))
        else:
            x_BCTHW = torch.cat((cache, x_BCTHW), dim=2)
        y_BCTHW = self._conv2d_per_tap(x_BCTHW) if x_BCTHW.is_cpu else super().forward(x_BCTHW)
        return y_BCTHW, _copy(x_BCTHW[:, :, -cached_frames:])

    def _conv2d_per_tap(self, x_BCTHW: Tensor) -> Tensor:
        """Sum one 2D convolution per tap in time: on short chunks PyTorch's 3D one is several times slower."""
        step = self.stride[0]
        span = x_BCTHW.shape[2] - self.kernel_size[0] + 1
        y_NCHW: Tensor | None = None
        for tap, weight in enumerate(self.weight.unbind(2)):
            x_NCHW = _fold_frames(x_BCTHW[:, :, tap : tap + span : step])
            part_NCHW = F.conv2d(x_NCHW, weight, self.bias if tap == 0 else None, padding=self.padding[1:])
            y_NCHW = part_NCHW if y_NCHW is None else y_NCHW.add_(part_NCHW)
        assert y_NCHW is not None
        return _unfold_frames(y_NCHW, len(x_BCTHW))


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution as the matrix product that it is when the channels are innermost in memory."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return _pointwise(self, x_BCTHW.movedim(1, -1)).movedim(-1, 1)


class ChannelNorm(nn.Module):
    """x / ||x|| * sqrt(C) * gamma with the norm over channels (axis 1); computed in float32, returned in x's dtype."""

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        # sqrt(C) is inside the mean. The addend only keeps an all-zero position zero.
        inverse = (x32.square().mean(dim=1, keepdim=True) + 1e-24).rsqrt()
        return (x32 * inverse * self.gamma.float()).to(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 convolution on x where the number of channels changes."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # The numbers are the places in Wan's sequence norm, silu, conv, norm, silu, dropout, conv.
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(in_dim, 3),
                "2": CausalConv3d(in_dim, out_dim),
                "3": ChannelNorm(out_dim, 3),
                "6": CausalConv3d(out_dim, out_dim),
            }
        )
        self.shortcut = PointwiseConv3d(in_dim, out_dim) if in_dim != out_dim else nn.Identity()

    def forward(self, x_BCTHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        cache_1, cache_2 = cache or (None, None)
        h, cache_1 = self.residual["2"](F.silu(self.residual["0"](x_BCTHW)), cache_1)
        h, cache_2 = self.residual["6"](F.silu(self.residual["3"](h)), cache_2)
        return self.shortcut(x_BCTHW) + h, (cache_1, cache_2)


class AttentionBlock(nn.Module):
    """Single-head self-attention among the positions of each frame; it does not look across frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCTHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        x_NCHW = _fold_frames(x_BCTHW)
        h_NLC = self.norm(x_NCHW).flatten(2).transpose(1, 2)
        # The axis of one is the head.
        q, k, v = _pointwise(self.to_qkv, h_NLC).unsqueeze(1).chunk(3, dim=-1)
        h_NLC = _pointwise(self.proj, F.scaled_dot_product_attention(q, k, v).squeeze(1))
        h_NCHW = h_NLC.transpose(1, 2).unflatten(2, x_NCHW.shape[2:])
        return x_BCTHW + _unfold_frames(h_NCHW, len(x_BCTHW)), None


class Downsample(nn.Module):
    """Half the height and width; with `temporal`, also half the frames but the clip's first, which passes unchanged."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        # "1": place in Wan's sequence pad, conv. The odd row and column of padding are at the bottom and right.
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x_BCTHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        x_NCHW = self.resample["1"](F.pad(_fold_frames(x_BCTHW), (0, 1, 0, 1)))
        x_BCTHW = _unfold_frames(x_NCHW, len(x_BCTHW))
        if self.time_conv is None:
            return x_BCTHW, None
        return _after_first_frame(self.time_conv, x_BCTHW, cache, cache_of=_copy)


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `temporal`, also two frames for each but the clip's first.

    The temporal convolution starts at the clip's second frame, with zeros before it: it never sees the first frame.
    """

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        # "1": place in Wan's sequence upsample, conv.
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x_BCTHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        if self.time_conv is not None:
            x_BCTHW, cache = _after_first_frame(self._double_frames, x_BCTHW, cache, cache_of=self._two_zero_frames)
        x_NCHW = F.interpolate(_fold_frames(x_BCTHW), scale_factor=2.0, mode="nearest-exact")
        return _unfold_frames(self.resample["1"](x_NCHW), len(x_BCTHW)), cache

    def _double_frames(self, x_BCTHW: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        assert self.time_conv is not None
        pairs_BCTHW, cache = self.time_conv(x_BCTHW, cache)
        # The first half of the channels is the earlier frame of each pair. Channels stay innermost in memory.
        pairs_BTHW2C = pairs_BCTHW.movedim(1, -1).unflatten(-1, (2, -1))
        return pairs_BTHW2C.movedim(4, 2).contiguous().flatten(1, 2).movedim(-1, 1), cache

    @staticmethod
    def _two_zero_frames(frame_BCTHW: Tensor) -> Tensor:
        return _copy(torch.zeros_like(frame_BCTHW).expand(-1, -1, 2, -1, -1))


class Encoder(nn.Module):
    """Video [B, 3, F, H, W] to features [B, 2 * z_dim, T, H/8, W/8]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * multiple for multiple in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3, dims[0])
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
            widths = [in_dim] + [out_dim] * config.num_res_blocks
            layers += [ResidualBlock(a, b) for a, b in pairwise(widths)]
            if stage < len(config.temporal_downsample):
                layers.append(Downsample(out_dim, config.temporal_downsample[stage]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1])
        self.head = nn.ModuleDict({"0": ChannelNorm(dims[-1], 3), "2": CausalConv3d(dims[-1], 2 * config.z_dim)})

    def forward(self, x_BCFHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        cache_in, cache_layers, cache_out = cache or (None, None, None)
        x, cache_in = self.conv1(x_BCFHW, cache_in)
        x, cache_layers = _through((*self.downsamples, *self.middle), x, cache_layers)
        x, cache_out = self.head["2"](F.silu(self.head["0"](x)), cache_out)
        return x, (cache_in, cache_layers, cache_out)


class Decoder(nn.Module):
    """Features [B, z_dim, T, H/8, W/8] to video [B, 3, F, H, W]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * multiple for multiple in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, dims[0])
        self.middle = _middle(dims[0])
        temporal_upsample = config.temporal_downsample[::-1]
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
            # Upsample halves the channels.
            widths = [in_dim // 2 if stage else in_dim] + [out_dim] * (config.num_res_blocks + 1)
            layers += [ResidualBlock(a, b) for a, b in pairwise(widths)]
            if stage < len(temporal_upsample):
                layers.append(Upsample(out_dim, temporal_upsample[stage]))
        self.upsamples = nn.ModuleList(layers)
        self.head = nn.ModuleDict({"0": ChannelNorm(dims[-1], 3), "2": CausalConv3d(dims[-1], 3)})

    def forward(self, x_BCTHW: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        cache_in, cache_layers, cache_out = cache or (None, None, None)
        x, cache_in = self.conv1(x_BCTHW, cache_in)
        x, cache_layers = _through((*self.middle, *self.upsamples), x, cache_layers)
        x, cache_out = self.head["2"](F.silu(self.head["0"](x)), cache_out)
        return x, (cache_in, cache_layers, cache_out)


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def _through(layers: Sequence[nn.Module], x: Tensor, caches: list[Cache] | None) -> tuple[Tensor, list[Cache]]:
    """Run x through every layer. Each cache gives way to the new one at once, so two sets are never held."""
    caches = caches or [None] * len(layers)
    for index, layer in enumerate(layers):
        x, caches[index] = layer(x, caches[index])
    return x, caches


def _after_first_frame(
    layer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x_BCTHW: Tensor,
    cache: Cache,
    *,
    cache_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Apply `layer` to all frames but the clip's first, which passes unchanged; `cache_of(first)` is the cache then."""
    if cache is not None:
        return layer(x_BCTHW, cache)
    first = x_BCTHW[:, :, :1]
    cache = cache_of(first)
    if x_BCTHW.shape[2] == 1:
        return first, cache
    rest, cache = layer(x_BCTHW[:, :, 1:], cache)
    return torch.cat((first, rest), dim=2), cache


def _pointwise(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a convolution of size one as a matrix product on the last axis of x."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _copy(frames_BCTHW: Tensor) -> Tensor:
    """Copy frames for the cache; a view of them would keep their whole chunk alive."""
    return frames_BCTHW.clone(memory_format=torch.channels_last_3d)


def _fold_frames(x_BCTHW: Tensor) -> Tensor:
    # With the channels last in the view too, a batch of one keeps strides that PyTorch takes for channels_last.
    return x_BCTHW.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def _unfold_frames(x_NCHW: Tensor, batch: int) -> Tensor:
    return x_NCHW.movedim(1, -1).unflatten(0, (batch, -1)).movedim(-1, 1)
