"""The Wan2.1 video VAE: causal in time, 8x8 in space and 4x in time, with the original parameter names.

Source: "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314), section 4.1. A clip has 4k + 1
frames: the first is coded alone, then each 4 become one latent frame. The layers are in `layers.py`, their
fused form in `fused.py`.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from turbodiffusion.config import VAEConfig
from turbodiffusion.errors import UserError
from turbodiffusion.models.vae.layers import Cache, CausalConv3d, Decoder, Encoder, PointwiseConv3d
from turbodiffusion.ops.contract import check_triton

__all__ = ["CausalConv3d", "VAEConfig", "WanVAE"]


class WanVAE(nn.Module):
    """Encode video [B, 3, F, H, W] in [-1, 1], F = 4k + 1, to a latent [B, z_dim, k + 1, H/8, W/8], and decode it.

    `encode`, `decode` and `decode_chunks` work on normalised latents, (z - mean) / std, chunk by chunk, and record no
    gradients. `encode_moments` and `decode_whole` run a clip in one call, on z itself, and are differentiable.

    impl: "triton" makes those three with the kernels of `fused.py` (an NVIDIA GPU, no gradient; results as of
    "reference" to rounding); the other two always run "reference". latents_per_chunk: how many latent frames after the
    first are decoded at once, and four times as many frames encoded; it may be set between two videos. More fill a
    large GPU better and need more memory (`memory/vae.py`). The result is the same to rounding.
    """

    def __init__(
        self,
        config: VAEConfig = VAEConfig(),  # noqa: B008 - frozen
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        impl: str = "reference",
        latents_per_chunk: int = 1,
    ) -> None:
        super().__init__()
        if impl not in ("reference", "triton"):
            raise ValueError(f"WanVAE: unknown impl {impl!r}, expected 'reference' or 'triton'")
        if latents_per_chunk < 1:
            raise ValueError(f"WanVAE: latents_per_chunk is at least 1, got {latents_per_chunk}")
        self.config, self.impl, self.latents_per_chunk = config, impl, latents_per_chunk
        with torch.device(device or torch.get_default_device()):
            self.encoder = Encoder(config)
            self.conv1 = PointwiseConv3d(2 * config.z_dim, 2 * config.z_dim)
            self.conv2 = PointwiseConv3d(config.z_dim, config.z_dim)
            self.decoder = Decoder(config)
        self.to(dtype=dtype)

    @torch.no_grad()
    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """Encode to the normalised mean, float32 [B, z_dim, T, H/8, W/8]. UserError where the size does not fit."""
        self._check_video(video_BCFHW)
        encoder = self._runner(self.encoder)
        means = []
        for chunk in _chunks(video_BCFHW, self.config.time_factor * self.latents_per_chunk):
            means.append(self.conv1(encoder(self._prepare(chunk))).chunk(2, dim=1)[0])
        mean, std = self._latent_scale(video_BCFHW.device)
        return (torch.cat(means, dim=2).float() - mean) / std

    def encode_moments(self, video_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of z, [B, z_dim, T, H/8, W/8] each, not normalised. UserError as in `encode`."""
        self._check_video(video_BCFHW)
        features, _ = self.encoder(self._prepare(video_BCFHW))
        mean, logvar = self.conv1(features).chunk(2, dim=1)
        return mean, logvar

    @torch.no_grad()
    def decode_chunks(self, latent_BCTHW: Tensor) -> Iterator[Tensor]:
        """Yield video [B, 3, 1, H, W], then [B, 3, 4, H, W] for each further latent frame; not clamped."""
        mean, std = self._latent_scale(latent_BCTHW.device)
        decoder = self._runner(self.decoder)
        for chunk in _chunks(latent_BCTHW, self.latents_per_chunk):
            z = self._prepare(chunk.float() * std + mean)
            yield from decoder(self.conv2(z)).split(self.config.time_factor, dim=2)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode a normalised latent to video [B, 3, 4 * (T - 1) + 1, H, W]; not clamped."""
        return torch.cat(list(self.decode_chunks(latent_BCTHW)), dim=2)

    def decode_whole(self, z_BCTHW: Tensor) -> Tensor:
        """Decode z, not normalised, to video [B, 3, 4 * (T - 1) + 1, H, W] in one call; differentiable."""
        video, _ = self.decoder(self.conv2(self._prepare(z_BCTHW)))
        return video

    def _runner(self, coder: Encoder | Decoder) -> Callable[[Tensor], Tensor]:
        """Return `coder` as a function of the chunks of one clip in order, in this VAE's impl."""
        if self.impl == "triton":
            from turbodiffusion.models.vae.fused import FusedCoder

            check_triton("WanVAE", weight=self.conv1.weight.detach())
            return FusedCoder(coder)
        cache: Cache = None

        def run(x_BCTHW: Tensor) -> Tensor:
            nonlocal cache
            y_BCTHW, cache = coder(x_BCTHW, cache)
            return y_BCTHW

        return run

    def _prepare(self, x: Tensor) -> Tensor:
        return x.to(dtype=self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last_3d)

    def _latent_scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Not buffers: those of a model built on the meta device would have no values.
        values = (self.config.latents_mean, self.config.latents_std)
        mean, std = torch.tensor(values, dtype=torch.float32, device=device).view(2, 1, -1, 1, 1, 1)
        return mean, std

    def _check_video(self, video_BCFHW: Tensor) -> None:
        if video_BCFHW.ndim != 5 or video_BCFHW.shape[1] != 3:
            raise UserError("model.video_shape", shape=str(list(video_BCFHW.shape)))
        frames, height, width = video_BCFHW.shape[2:]
        step, side = self.config.time_factor, self.config.space_factor
        if frames < 1 or frames % step != 1 % step:
            nearest = max(round((frames - 1) / step), 0) * step + 1
            raise UserError("model.frames", value=frames, step=step, nearest=nearest)
        if height % side or width % side or not height or not width:
            near_width, near_height = (max(round(n / side), 1) * side for n in (width, height))
            nearest_size = f"{near_width}x{near_height}"
            raise UserError("model.sides", size=f"{width}x{height}", multiple=side, nearest=nearest_size)


def _chunks(x_BCTHW: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the first frame, then `size` frames at a time."""
    yield x_BCTHW[:, :, :1]
    for start in range(1, x_BCTHW.shape[2], size):
        yield x_BCTHW[:, :, start : start + size]
