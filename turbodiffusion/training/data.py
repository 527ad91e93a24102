"""Training data from the demo world: clips for the VAE, a rolling bank of latents and captions for the transformer.

Nothing is stored on disk. Clip number k is the same clip on every machine: its factors come from (seed, k), the
renderer is deterministic. Which clips the bank holds at a step follows from the step alone, so a resumed run sees what
it would have seen.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turbodiffusion.demo.captions import caption
from turbodiffusion.demo.factors import Factors, sample_factors
from turbodiffusion.demo.renderer import MASK_CELL, World
from turbodiffusion.demo.subjects import Subject
from turbodiffusion.models.text import Tokenizer
from turbodiffusion.models.vae.model import WanVAE


def clip_factors(world: World, seed: int, clip: int) -> Factors:
    """What clip number `clip` shows; never a held-out combination."""
    return world.sample_factors(np.random.default_rng((seed, clip)), 1)[0]


def caption_sample(subjects: Sequence[Subject], count: int, seed: int = 0) -> Iterator[str]:
    """`count` captions of random clips, to train a vocabulary on."""
    rng = np.random.default_rng(seed)
    for factors in sample_factors(rng, count, subjects=subjects):
        yield caption(factors, rng)


class ClipBank:
    """`size` rendered clips, uint8 on the world's device (6.5 MB each at 33x256x256), to cut random crops from."""

    def __init__(self, world: World, *, size: int, seed: int, chunk: int = 16) -> None:
        self.device = world.device
        pieces, places = [], []
        for first in range(0, size, chunk):
            factors = [clip_factors(world, seed, clip) for clip in range(first, min(size, first + chunk))]
            video, place_BFHW = world.render_with_masks(factors)
            pieces.append(((video + 1) * 127.5).round().to(torch.uint8))
            places.append(place_BFHW.mean(1).cpu())
        self.video_BCFHW = torch.cat(pieces)
        # Where a random moment's subject is: running sums over the cells of 8x8 pixels.
        self.place_BN = torch.cat(places).flatten(1).double().cumsum(1).numpy()

    def crops(self, rng: np.random.Generator, count: int, side: int, on_subject: float = 0.0) -> Tensor:
        """`count` whole-length crops of side x side pixels, each of another random clip; float32 in [-1, 1].

        A share `on_subject` of them has its middle where the subject is at some moment, as near as the picture's edge
        allows.
        """
        clips, _, _, height, width = self.video_BCFHW.shape
        out = []
        for _ in range(count):
            clip, y, x = (int(rng.integers(0, n)) for n in (clips, height - side + 1, width - side + 1))
            sums = self.place_BN[clip]
            if rng.random() < on_subject and sums[-1] > 0:
                cell = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
                middle = divmod(cell, width // MASK_CELL)
                y, x = (
                    min(max(place * MASK_CELL + int(rng.integers(MASK_CELL)) - side // 2, 0), extent - side)
                    for place, extent in zip(middle, (height, width), strict=True)
                )
            out.append(self.video_BCFHW[clip, :, :, y : y + side, x : x + side])
        return torch.stack(out).float() / 127.5 - 1


@dataclass(frozen=True)
class Batch:
    """Normalised latents [B, C, T, H, W] in bfloat16, where their subjects are [B, T, H, W] in 0 to 1, token ids and
    mask [B, S]."""

    latent_BCTHW: Tensor
    subject_BTHW: Tensor
    ids_BS: Tensor
    mask_BS: Tensor


class LatentBank:
    """The newest `size` clips of an endless list, encoded, each with several captions.

    Every `period` steps `refresh` new clips replace the oldest, in one batch of the VAE.
    """

    def __init__(
        self,
        world: World,
        vae: WanVAE,
        tokenizer: Tokenizer,
        *,
        size: int,
        refresh: int,
        seed: int,
        period: int = 8,
        captions: int = 8,
        chunk: int = 16,
    ) -> None:
        self.world, self.vae, self.tokenizer = world, vae, tokenizer
        self.size, self.refresh, self.seed, self.period = size, refresh, seed, period
        self.captions, self.chunk = captions, chunk
        channels = (1, -1, 1, 1, 1)
        self.shift = torch.tensor(vae.config.latents_mean, device=world.device).view(channels)
        self.scale = torch.tensor(vae.config.latents_std, device=world.device).view(channels)
        self.end = 0  # clips [end - size, end) are here
        self.empty_ids, self.empty_mask = (x.to(world.device) for x in tokenizer([""], clean=False))
        self.latents: Tensor | None = None
        self.places: Tensor | None = None
        self.ids = torch.zeros(size, captions, tokenizer.text_len, dtype=torch.int32, device=world.device)
        self.mask = torch.zeros_like(self.ids)

    def advance(self, step: int) -> None:
        """Hold the clips that belong to `step`; encodes only what is missing, says what a long filling costs."""
        want = self.size + step // self.period * self.refresh
        first = max(self.end, want - self.size)
        began, said = time.monotonic(), time.monotonic()
        while first < want:
            last = min(want, first + self.chunk)
            self._encode(first, last)
            first = self.end = last
            if time.monotonic() - said > 10:
                said = time.monotonic()
                done = 1 - (want - last) / self.size
                left = (said - began) * (1 - done) / max(done, 1e-3)
                print(f"rendering and encoding clips: {done:.0%}, {left:.0f} s left", flush=True)

    @torch.no_grad()
    def _encode(self, first: int, last: int) -> None:
        factors = [clip_factors(self.world, self.seed, clip) for clip in range(first, last)]
        video, place_BFHW = self.world.render_with_masks(factors)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.world.device.type == "cuda"):
            mean, _ = self.vae.encode_moments(video)
        place_BTHW = of_latent_frames(place_BFHW, self.vae.config.time_factor).to(torch.bfloat16)
        latent = ((mean.float() - self.shift) / self.scale).to(torch.bfloat16)
        if self.latents is None:
            self.latents = latent.new_empty(self.size, *latent.shape[1:])
            self.places = place_BTHW.new_empty(self.size, *place_BTHW.shape[1:])
        assert self.places is not None
        texts = []
        for clip, factor in zip(range(first, last), factors, strict=True):
            rng = np.random.default_rng((self.seed, clip, 1))
            texts += [caption(factor, rng) for _ in range(self.captions)]
        ids, mask = self.tokenizer(texts, clean=False)
        slots = torch.arange(first, last, device=latent.device) % self.size
        self.latents[slots] = latent
        self.places[slots] = place_BTHW
        self.ids[slots] = ids.view(last - first, self.captions, -1).to(self.ids)
        self.mask[slots] = mask.view(last - first, self.captions, -1).to(self.mask)

    def batch(self, rng: np.random.Generator, count: int, *, drop: float = 0.1) -> Batch:
        """`count` random clips, one caption each; a share `drop` of the captions is the empty prompt (for guidance)."""
        assert self.latents is not None and self.places is not None, "advance() fills the bank"
        device = self.latents.device
        slots = torch.from_numpy(rng.integers(0, self.size, count)).to(device)
        which = torch.from_numpy(rng.integers(0, self.captions, count)).to(device)
        dropped = torch.from_numpy(rng.random(count) < drop).to(device)[:, None]
        ids = torch.where(dropped, self.empty_ids, self.ids[slots, which])
        mask = torch.where(dropped, self.empty_mask, self.mask[slots, which])
        return Batch(self.latents[slots], self.places[slots], ids.long(), mask.long())


def of_latent_frames(x_BFHW: Tensor, time_factor: int) -> Tensor:
    """The largest value in the frames of each latent frame: the first alone, then `time_factor` at a time."""
    later = x_BFHW[:, 1:].unflatten(1, (-1, time_factor)).amax(dim=2)
    return torch.cat((x_BFHW[:, :1], later), dim=1)
